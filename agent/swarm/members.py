"""The agents that this node has heard of: whom to connect to next, whom to leave alone for a while. Pure.

What is known of them comes from trackers, from neighbours, and from connections that ended. The book is bounded; who
is in it and of no use any more is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from imgdist.wire.tracker import Peer

KNOWN_MAX = 512
"""Members remembered: some twenty lists of a tracker (a guess)."""
SHARING_S = 120.0
"""How long a tracker's word counts that a member has chunks which this node lacks (a guess)."""
FAILURES_MAX = 2
"""Connections in a row that failed, before a member is taken for dead."""
RETRY_S = (0.5, 1.0)
"""Between them, jittered. At once would meet an agent that is being started again."""
PARTED_S = 120.0
"""How long one that left in order, or was of no use, is not asked again."""
BAN_S = (60.0, 3600.0)
"""How long one that broke the rules is kept out: first time, at most; doubling."""


@dataclass(slots=True)
class _Known:
    peer: Peer
    heard_at: float
    sharing_until: float = 0.0
    failures: int = 0
    not_before: float = 0.0


class Members:
    """`own` is this node's id, which is never in the book; `random` is in [0, 1)."""

    def __init__(self, own: str, random: Callable[[], float]) -> None:
        self._own = own
        self._random = random
        self._known: dict[str, _Known] = {}
        self._banned: dict[str, tuple[float, float]] = {}  # node: until when, for how long

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, peers: Iterable[Peer], now: float, *, sharing: bool = False) -> None:
        """Others tell of these; `sharing`: they are said to have chunks that this node lacks."""
        for peer in peers:
            if peer.node == self._own:
                continue
            known = self._known.pop(peer.node, None)
            if known is None or known.peer.address != peer.address:
                known = _Known(peer, now)
            known.peer, known.heard_at = peer, now
            if sharing:
                known.sharing_until = now + SHARING_S
            self._known[peer.node] = known  # the last heard of is last
        while len(self._known) > KNOWN_MAX:
            del self._known[self._least_useful(now)]

    def met(self, node: str) -> None:
        """A connection with it stands."""
        if node in self._known:
            self._known[node].failures = 0

    def lost(self, peer: Peer, now: float, wait_s: float) -> None:
        """The connection with it broke: whether it lives is found out by a new one, after `wait_s`."""
        self.learn((peer,), now)
        if (known := self._known.get(peer.node)) is not None:
            known.failures, known.not_before = FAILURES_MAX - 1, now + wait_s

    def failed(self, node: str, now: float) -> bool:
        """A connection to it did not come about. True: it is taken for dead, and forgotten."""
        known = self._known.get(node)
        if known is None:
            return False
        known.failures += 1
        first, span = RETRY_S
        known.not_before = now + first + span * self._random()
        if known.failures < FAILURES_MAX:
            return False
        del self._known[node]
        return True

    def forget(self, node: str) -> None:
        """What its address leads to is somebody else."""
        self._known.pop(node, None)

    def parted(self, node: str, now: float) -> None:
        """It left in order, or was of no use."""
        if node in self._known:
            self._known[node].not_before = now + PARTED_S * (0.75 + self._random() / 2)

    def ban(self, node: str, now: float) -> None:
        """It broke the rules."""
        until, span = self._banned.get(node, (0.0, 0.0))
        first, most = BAN_S
        span = min(2 * span, most) if span and now - until < most else first
        self._banned[node] = (now + span, span)
        while len(self._banned) > KNOWN_MAX:
            del self._banned[next(iter(self._banned))]

    def is_banned(self, node: str, now: float) -> bool:
        """Whether it is kept out."""
        return now < self._banned.get(node, (0.0, 0.0))[0]

    def candidates(self, now: float, without: Collection[str], count: int) -> list[Peer]:
        """At most `count` to connect to: those that have what this node lacks, then any, each in random order."""
        order = sorted(self._due(now, without), key=lambda known: (known.sharing_until <= now, self._random()))
        return [known.peer for known in order[:count]]

    def sharing(self, now: float, without: Collection[str]) -> int:
        """How many candidates are said to have what this node lacks."""
        return sum(known.sharing_until > now for known in self._due(now, without))

    def _due(self, now: float, without: Collection[str]) -> Iterable[_Known]:
        return (
            known
            for node, known in self._known.items()
            if node not in without and known.not_before <= now and not self.is_banned(node, now)
        )

    def _least_useful(self, now: float) -> str:
        """The one heard of longest ago, among those that nobody says to share anything, if there are any."""
        return next(
            (node for node, known in self._known.items() if known.sharing_until <= now), next(iter(self._known))
        )

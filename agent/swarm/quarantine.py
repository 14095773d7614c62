"""What is held against sources that sent wrong bytes: chunk by chunk first, then against the source. Pure.

One rotten chunk on a disk says nothing of the others, so a lie is first remembered against that chunk at that source.
A peer that lied also rests at once, because there are others: 1 s, doubling, and with `LIES_MAX` different chunks for
the whole `QUARANTINE_S[1]`, also if it is resting: answers under way come then. A supernode rests only after `LIES_MAX`
(there may be no other), 1 s and doubling. A lie is forgotten after `QUARANTINE_S[1]`; how often a source was in
quarantine, when it was not for as long.

To say that one has chunks, and when asked that one has not, is a lie that costs a round trip. An honest peer does so
once or twice, when it has just dropped a layer: after `DENIALS_MAX` in a row a peer rests as after a lie.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field

from agent.swarm.bitset import bits_of

QUARANTINE_S = (1.0, 300.0)
"""How long a suspect source is asked last: first time, at most; doubling (a guess)."""
LIES_MAX = 3
"""Different chunks it lied about within the longest quarantine, before it is out (a guess)."""
LIARS_MAX = 3
"""Different sources in a row, before the fault is sought on this machine (a guess)."""
DENIALS_MAX = 3
"""Answers in a row that a peer lacks what it told to have, before it rests, and with each further one (a guess)."""
_LIES_KEPT = 4096
"""A source's latest lies that are remembered (a guess)."""


@dataclass(slots=True)
class Conviction:
    """One source's lies. `until` is when its quarantine ends."""

    is_peer: bool
    until: float = 0.0
    total: int = 0
    _denials: int = 0
    _quarantines: int = 0
    _lies: dict[tuple[Hashable, int], float] = field(default_factory=dict)  # (layer, chunk): when last, in that order

    def lied(self, layer: Hashable, chunk: int, now: float) -> bool:
        """It sent wrong bytes for this chunk. True: it is in quarantine now, and was not before."""
        self.total += 1
        is_new = self._lies.pop((layer, chunk), None) is None
        self._lies[layer, chunk] = now
        while len(self._lies) > _LIES_KEPT or now - next(iter(self._lies.values())) >= QUARANTINE_S[1]:
            del self._lies[next(iter(self._lies))]
        is_out = len(self._lies) >= LIES_MAX
        if not is_new or not (self.is_peer or is_out):
            return False
        if self.is_peer and is_out:
            return self._rest(now, QUARANTINE_S[1])
        return now >= self.until and self._rest(now)

    def denied(self, now: float) -> bool:
        """A peer lacks what it told to have. True: it is in quarantine now, and was not before."""
        self._denials += 1
        return self.is_peer and self._denials >= DENIALS_MAX and now >= self.until and self._rest(now)

    def served(self) -> None:
        """It sent a chunk that is right."""
        self._denials = 0

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to remember of it."""
        return not self.total and not self._denials

    def _rest(self, now: float, least_s: float = 0.0) -> bool:
        """Ask it last for a while; whether that is new."""
        is_new = now >= self.until
        if now - self.until > QUARANTINE_S[1]:
            self._quarantines = 0
        pause = max(QUARANTINE_S[0] * 2**self._quarantines, least_s)
        self._quarantines = min(self._quarantines + 1, 16)
        self.until = max(self.until, now + min(pause, QUARANTINE_S[1]))
        return is_new

    def about(self, layer: Hashable, chunks: Collection[int], now: float) -> bool:
        """Whether it lately lied about one of these chunks."""
        return bool(self._lies) and any(
            now - self._lies.get((layer, chunk), float("-inf")) < QUARANTINE_S[1] for chunk in chunks
        )

    def chunks(self, layer: Hashable, now: float) -> int:
        """The layer's chunks it lately lied about."""
        if not self._lies:
            return 0
        lately = now - QUARANTINE_S[1]
        return bits_of(chunk for (other, chunk), at in self._lies.items() if other == layer and at > lately)


class Suspicion:
    """Whether it is rather this machine that is wrong: different sources lied in a row, and none told the truth."""

    def __init__(self) -> None:
        self._liars: set[Hashable] = set()

    def lied(self, source: Hashable) -> bool:
        """True with the source that makes it `LIARS_MAX`: say so once."""
        if source in self._liars:
            return False
        self._liars.add(source)
        return len(self._liars) == LIARS_MAX

    def cleared(self) -> None:
        """A verified chunk came: decoding and hashing work here."""
        self._liars.clear()

    @property
    def is_raised(self) -> bool:
        """Whether this machine's memory or its copy of an index is suspect."""
        return len(self._liars) >= LIARS_MAX

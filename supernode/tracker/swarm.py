"""Members of swarms, and a few of them drawn at random. Pure: randomness is passed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from imgdist.wire.tracker import NEAR_MAX, PEERS_MAX

COMPLETE_MAX = 4
"""Of `PEERS_MAX`, at most so many are drawn for having everything: at random alone a few seeds among thousands of
starters would hardly be found, and more of them would be the same few for everybody."""
_TRIES = 4
"""Draws for each peer wanted from a set too large to be listed; the next is only drawn again if it does not suit."""


@dataclass(eq=False, slots=True)
class Member:
    """An agent. `shares`: (chunks it has, chunks there are or 0) of each swarm that it takes part in.

    `address` is where others reach it, "" if nowhere; they are told only while `reachable`. One at a loopback address
    (`is_loopback`) is told only to those that the tracker itself sees at one (`from_loopback`): they share a machine.
    """

    node: str
    name: str
    zone: str
    address: str
    is_loopback: bool
    from_loopback: bool
    seen: float
    shares: dict[Swarm, tuple[int, int]] = field(default_factory=dict)
    gone_at: float | None = None
    reachable: bool | None = None
    failures: int = 0
    probe_at: float | None = None
    probed_at: float = float("-inf")
    is_probed: bool = False
    push_at: float | None = None
    push_wait_s: float = 0.0
    wants: tuple[Swarm, ...] = ()

    def lacking(self) -> list[Swarm]:
        """The swarms that it still needs chunks of."""
        return [swarm for swarm, share in self.shares.items() if not is_complete(share)]


def is_complete(share: tuple[int, int]) -> bool:
    """Whether nothing lacks."""
    have, count = share
    return 0 < count <= have


class Roster:
    """A set of members, one of which is drawn at random; everything in constant time."""

    __slots__ = ("_members", "_places")

    def __init__(self) -> None:
        self._members: list[Member] = []
        self._places: dict[Member, int] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members)

    def add(self, member: Member) -> bool:
        """Whether it was not there yet."""
        if member in self._places:
            return False
        self._places[member] = len(self._members)
        self._members.append(member)
        return True

    def discard(self, member: Member) -> None:
        """Take it out, if it is there."""
        place = self._places.pop(member, None)
        if place is None:
            return
        last = self._members.pop()
        if last is not member:
            self._members[place] = last
            self._places[last] = place

    def draw(self, random: Random) -> Member:
        """One of them; there must be one."""
        return self._members[int(random.random() * len(self._members))]


@dataclass(eq=False, slots=True)
class Swarm:
    """Who takes part: `size` members; those that may be told to others in all, by zone, and the complete ones.

    `hungry`: members that know few others of it, told when more come.
    """

    name: str
    size: int = 0
    listed: Roster = field(default_factory=Roster)
    complete: Roster = field(default_factory=Roster)
    zones: dict[str, Roster] = field(default_factory=dict)
    hungry: dict[Member, None] = field(default_factory=dict)

    def list(self, member: Member) -> bool:
        """From now on others may be told of this member. Whether that is news."""
        if is_complete(member.shares[self]):
            self.complete.add(member)
        else:
            self.complete.discard(member)
        if member.zone:
            self.zones.setdefault(member.zone, Roster()).add(member)
        return self.listed.add(member)

    def unlist(self, member: Member) -> None:
        """Others are not told of it any more."""
        self.listed.discard(member)
        self.complete.discard(member)
        zone = self.zones.get(member.zone)
        if zone is not None:
            zone.discard(member)
            if not zone:
                del self.zones[member.zone]


def choose(asker: Member, swarms: Sequence[Swarm], random: Random) -> list[Member]:
    """At most `PEERS_MAX` members of the swarms, in random order: up to `NEAR_MAX` of the asker's zone, up to
    `COMPLETE_MAX` that have everything, the others at random, which is what keeps the graph of neighbours connected.

    Every swarm has the same weight: each layer of an image is to have neighbours.
    """
    chosen: dict[Member, None] = {}
    if asker.zone:
        _draw(chosen, [swarm.zones.get(asker.zone) for swarm in swarms], NEAR_MAX, asker, random)
    _draw(chosen, [swarm.complete for swarm in swarms], min(len(chosen) + COMPLETE_MAX, PEERS_MAX), asker, random)
    _draw(chosen, [swarm.listed for swarm in swarms], PEERS_MAX, asker, random)
    peers = list(chosen)
    random.shuffle(peers)
    return peers


def _draw(
    chosen: dict[Member, None], rosters: Sequence[Roster | None], limit: int, asker: Member, random: Random
) -> None:
    """Add members at random until there are `limit`; fewer if too few suit."""
    filled = [roster for roster in rosters if roster]
    tries = (limit - len(chosen)) * _TRIES
    if sum(map(len, filled)) <= tries:
        everyone = list(dict.fromkeys(member for roster in filled for member in roster))
        random.shuffle(everyone)
        candidates: Iterator[Member] = iter(everyone)
    else:
        candidates = (filled[int(random.random() * len(filled))].draw(random) for _ in range(tries))
    for member in candidates:
        if len(chosen) >= limit:
            return
        if member is not asker and (asker.from_loopback or not member.is_loopback):
            chosen[member] = None

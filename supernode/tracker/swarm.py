"""Members of swarms, and a few of them drawn at random. Pure: randomness is passed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from random import Random

from imgdist.wire.tracker import NEAR_MAX, PEERS_MAX

COMPLETE_MAX = 4
"""Of `PEERS_MAX`, at most so many are drawn for having everything: at random alone a few seeds among thousands of
starters would hardly be found, and more of them would be the same few for everybody."""
ZONE_SCAN_MAX = 512
"""A zone of at most so many is looked through for members of the swarms in question: 0.2 ms."""
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

    def discard(self, member: Member) -> bool:
        """Take it out; whether it was there."""
        place = self._places.pop(member, None)
        if place is None:
            return False
        last = self._members.pop()
        if last is not member:
            self._members[place] = last
            self._places[last] = place
        return True

    def draw(self, random: Random) -> Member:
        """One of them; there must be one."""
        return self._members[int(random.random() * len(self._members))]


@dataclass(eq=False, slots=True)
class Swarm:
    """Who takes part: `size` members; those that may be told to others are in one of two rosters.

    `hungry`: members that know few others of it, told when more come.
    """

    name: str
    size: int = 0
    complete: Roster = field(default_factory=Roster)
    filling: Roster = field(default_factory=Roster)
    hungry: dict[Member, None] = field(default_factory=dict)
    whole: tuple[int, int] = (0, 0)

    def share(self, have: int, count: int) -> tuple[int, int]:
        """What a member has. Whoever has everything shares one object: in most swarms most do."""
        if have == count and self.whole != (have, count):
            self.whole = (have, count)
        return self.whole if have == count else (have, count)

    def list(self, member: Member) -> bool:
        """From now on others may be told of this member. Whether that is news."""
        here, there = self.complete, self.filling
        if not is_complete(member.shares[self]):
            here, there = there, here
        was_there = there.discard(member)
        return here.add(member) and not was_there

    def unlist(self, member: Member) -> None:
        """Others are not told of it any more."""
        self.complete.discard(member)
        self.filling.discard(member)

    def __len__(self) -> int:
        return len(self.complete) + len(self.filling)

    def __iter__(self) -> Iterator[Member]:
        return chain(self.complete, self.filling)

    def draw(self, random: Random) -> Member:
        """One of those listed; there must be one."""
        seeds = len(self.complete)
        return (self.complete if random.random() * len(self) < seeds else self.filling).draw(random)


def choose(asker: Member, swarms: Sequence[Swarm], zone: Roster | None, random: Random) -> list[Member]:
    """At most `PEERS_MAX` members of the swarms, in random order: up to `NEAR_MAX` of the asker's zone, up to
    `COMPLETE_MAX` that have everything, the others at random, which is what keeps the graph of neighbours connected.

    Every swarm has the same weight: each layer of an image is to have neighbours. `zone` are the reachable members of
    the asker's zone. If they are few they are looked through; of many some are met by drawing from the swarms.
    """
    chosen: dict[Member, None] = {}
    if zone and len(zone) <= ZONE_SCAN_MAX:
        near = [member for member in zone if any(swarm in member.shares for swarm in swarms)]
        _take(chosen, _shuffled(near, random), NEAR_MAX, asker)
    elif zone:
        drawn = _drawn(swarms, NEAR_MAX * _TRIES, random)
        _take(chosen, (member for member in drawn if member.zone == asker.zone), NEAR_MAX, asker)
    limit = min(len(chosen) + COMPLETE_MAX, PEERS_MAX)
    _take(chosen, _drawn([swarm.complete for swarm in swarms], (limit - len(chosen)) * _TRIES, random), limit, asker)
    _take(chosen, _drawn(swarms, (PEERS_MAX - len(chosen)) * _TRIES, random), PEERS_MAX, asker)
    return list(_shuffled(list(chosen), random))


def _drawn(sets: Sequence[Roster] | Sequence[Swarm], tries: int, random: Random) -> Iterator[Member]:
    """Members at random, some perhaps more than once; all of them, where that takes no more `tries`."""
    filled = [each for each in sets if each]
    if sum(map(len, filled)) <= tries:
        return _shuffled([member for each in filled for member in each], random)
    return (filled[int(random.random() * len(filled))].draw(random) for _ in range(tries))


def _shuffled(members: list[Member], random: Random) -> Iterator[Member]:
    random.shuffle(members)
    return iter(members)


def _take(chosen: dict[Member, None], candidates: Iterator[Member], limit: int, asker: Member) -> None:
    """Add those that suit until there are `limit`; fewer if too few come."""
    while len(chosen) < limit and (member := next(candidates, None)) is not None:
        if member is not asker and (asker.from_loopback or not member.is_loopback):
            chosen[member] = None

"""The tracker's state: who is there, in which swarms, reachable or not, and what is to be done when.

Pure and synchronous: `now` (seconds of any steady clock) and randomness are passed in; what is to be done comes back as
values. Whoever holds it sends the messages and makes the probes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from imgdist.wire.tracker import PEERS_MAX, SILENT_S, SWARMS_MAX, Join, Peer, Share
from supernode.tracker.swarm import Member, Roster, Swarm, choose, is_complete

GRACE_S = 30.0
"""A member whose connection is gone is forgotten after so long, so that connecting again changes nothing for others."""
SWEEP_S = 10.0
REPROBE_S = 5.0
"""A member is not probed again for a report within so long of the last probe, however many report it."""
SECOND_TRY_S = 2.0
"""A reachable member is given up only if it does not answer twice, so far apart."""
RETRY_FIRST_S, RETRY_LAST_S = 10.0, 600.0
PUSH_FIRST_S, PUSH_LAST_S = 0.2, 60.0
"""The first newcomers are told after so long, less up to half at random; each further time waits twice as long."""


@dataclass(frozen=True, slots=True)
class Probe:
    """See whether this node answers at this address; tell `Members.probed`."""

    node: str
    address: str


@dataclass(frozen=True, slots=True)
class Push:
    """Tell this member these peers."""

    node: str
    peers: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class Silent:
    """This member said nothing for `SILENT_S`: end its connection."""

    node: str


Deed = Probe | Push | Silent


@dataclass(frozen=True, slots=True)
class Census:
    """How many there are."""

    members: int
    reachable: int
    swarms: int


class Members:
    """All members. `probe` False: every address is taken to be reachable."""

    def __init__(self, random: Random, *, probe: bool = True) -> None:
        self._random = random
        self._probe = probe
        self._members: dict[str, Member] = {}
        self._swarms: dict[str, Swarm] = {}
        self._zones: dict[str, Roster] = {}
        self._timers: list[tuple[float, int, Member]] = []
        self._order = count()
        self._sweep_at: float | None = None

    def __len__(self) -> int:
        return len(self._members)

    def get(self, node: str) -> Member | None:
        """A member, to be read."""
        return self._members.get(node)

    def census(self) -> Census:
        """Counted now."""
        reachable = sum(1 for member in self._members.values() if member.reachable)
        return Census(len(self._members), reachable, len(self._swarms))

    def wanted(self) -> set[str]:
        """Names of the swarms of which some member lacks chunks; looks at every membership."""
        return {swarm.name for member in self._members.values() for swarm in member.lacking()}

    def join(self, join: Join, address: str, *, is_loopback: bool, from_loopback: bool, now: float) -> tuple[Peer, ...]:
        """A member comes, or says anew what it takes part in. `address`: where it is to be reached, "" if nowhere.

        Returns peers of the swarms that it lacks chunks of; if there is none, of all.
        """
        member = self._members.get(join.node)
        if member is None:
            member = Member(join.node, join.name, join.zone, address, is_loopback, from_loopback, now)
            member.push_wait_s = PUSH_FIRST_S
            self._members[join.node] = member
            self._sweep_at = self._sweep_at or now + SWEEP_S
            self._look(member, now)
        elif (member.address, member.zone, member.gone_at) != (address, join.zone, None):
            self._move(member, address, join.zone, is_loopback, now)
        member.name, member.from_loopback, member.seen, member.gone_at = join.name, from_loopback, now, None
        shares = {share.swarm: share for share in join.swarms}
        for swarm in [swarm for swarm in member.shares if swarm.name not in shares]:
            self._quit(member, swarm)
        if any(name not in self._swarms or self._swarms[name] not in member.shares for name in shares):
            member.push_wait_s = PUSH_FIRST_S
        for share in shares.values():
            self._enter(member, share)
        if member.reachable:
            self._list(member, now)
        return self._peers(member, member.lacking() or list(member.shares))

    def progress(self, node: str, shares: Iterable[Share], now: float) -> None:
        """A member has more chunks, or only lives. Swarms that it did not join are left out."""
        member = self._members[node]
        member.seen = now
        for share in shares:
            swarm = self._swarms.get(share.swarm)
            if swarm is not None and swarm in member.shares:
                member.shares[swarm] = swarm.share(share.have, share.count)
                if member.reachable:
                    swarm.list(member)

    def seek(self, node: str, names: Sequence[str], now: float) -> tuple[Peer, ...]:
        """Peers in these swarms; without any, in those that the member lacks chunks of."""
        member = self._members[node]
        member.seen = now
        named = [swarm for name in names[:SWARMS_MAX] if (swarm := self._swarms.get(name)) is not None]
        return self._peers(member, named if names else member.lacking())

    def dead(self, node: str, nodes: Iterable[str], now: float) -> None:
        """A member says that others do not answer. Each is probed, soon, and given up only if that fails."""
        self._members[node].seen = now
        for other in nodes:
            member = self._members.get(other)
            if member is not None and member.reachable and not member.is_probed and self._probe:
                at = max(now, member.probed_at + REPROBE_S)
                if member.probe_at is None or member.probe_at > at:
                    self._probe_at(member, at)

    def left(self, node: str) -> None:
        """A member goes for good."""
        member = self._members.pop(node, None)
        if member is not None:
            self._unlist(member)
            for swarm in list(member.shares):
                self._quit(member, swarm)
            self._sate(member)
            member.probe_at = member.push_at = None

    def lost(self, node: str, now: float) -> None:
        """A member's connection is gone. It may come back; whether it still answers is looked at soon."""
        member = self._members.get(node)
        if member is not None:
            member.gone_at = now
            self._sate(member)
            if member.reachable and self._probe and not member.is_probed:
                self._probe_at(member, now + SECOND_TRY_S / 2)

    def probed(self, probe: Probe, answered: bool, now: float) -> bool:
        """What a probe found. Whether that changes what the member is to be told of itself."""
        member = self._members.get(probe.node)
        if member is None or not member.is_probed:
            return False
        member.is_probed, member.probed_at = False, now
        if member.address != probe.address:
            self._look(member, now)
            return False
        before = member.reachable
        if answered:
            member.failures, member.reachable = 0, True
            self._list(member, now)
            return before is not True
        member.failures += 1
        if before and member.failures < 2 and member.gone_at is None:
            self._probe_at(member, now + SECOND_TRY_S)
            return False
        member.reachable = False
        self._unlist(member)
        wait_s = min(RETRY_FIRST_S * 2 ** min(member.failures - 1, 10), RETRY_LAST_S)
        if member.gone_at is None:
            self._probe_at(member, now + wait_s * (0.5 + self._random.random() / 2))
        return before is not False

    def next_at(self) -> float | None:
        """When `due` has something to say, at the latest; None: nothing is to be done."""
        times = [self._timers[0][0]] if self._timers else []
        return min(times + ([self._sweep_at] if self._sweep_at is not None else []), default=None)

    def due(self, now: float) -> list[Deed]:
        """What is to be done by now; each is told once."""
        deeds: list[Deed] = []
        while self._timers and self._timers[0][0] <= now:
            at, _, member = heapq.heappop(self._timers)
            if member.probe_at == at:
                member.probe_at, member.is_probed = None, True
                deeds.append(Probe(member.node, member.address))
            if member.push_at == at:
                member.push_at = None
                peers = self._peers(member, member.lacking() or list(member.shares))
                deeds.append(Push(member.node, peers))
        if self._sweep_at is not None and self._sweep_at <= now:
            deeds += self._sweep(now)
        return deeds

    def _sweep(self, now: float) -> list[Deed]:
        gone = [m.node for m in self._members.values() if m.gone_at is not None and m.gone_at + GRACE_S <= now]
        for node in gone:
            self.left(node)
        self._sweep_at = now + SWEEP_S if self._members else None
        return [
            Silent(member.node)
            for member in self._members.values()
            if member.gone_at is None and member.seen + SILENT_S <= now
        ]

    def _look(self, member: Member, now: float) -> None:
        """Find out whether its address answers."""
        member.failures = 0
        if not member.address:
            member.reachable, member.probe_at = False, None
        elif not self._probe:
            member.reachable = True
        elif not member.is_probed:
            self._probe_at(member, now)

    def _move(self, member: Member, address: str, zone: str, is_loopback: bool, now: float) -> None:
        """It came back, or is elsewhere now: where it was reachable at the same address it stays so meanwhile."""
        self._unlist(member)
        if member.address != address:
            member.address, member.reachable, member.is_loopback = address, None, is_loopback
        member.zone = zone
        self._look(member, now)

    def _enter(self, member: Member, share: Share) -> None:
        swarm = self._swarms.get(share.swarm)
        if swarm is None:
            swarm = self._swarms[share.swarm] = Swarm(share.swarm)
        swarm.size += swarm not in member.shares
        member.shares[swarm] = swarm.share(share.have, share.count)

    def _quit(self, member: Member, swarm: Swarm) -> None:
        swarm.unlist(member)
        swarm.hungry.pop(member, None)
        del member.shares[swarm]
        swarm.size -= 1
        if not swarm.size:
            del self._swarms[swarm.name]

    def _list(self, member: Member, now: float) -> None:
        if member.zone:
            self._zones.setdefault(member.zone, Roster()).add(member)
        for swarm in member.shares:
            if swarm.list(member):
                self._feed(swarm, member, now)

    def _unlist(self, member: Member) -> None:
        zone = self._zones.get(member.zone)
        if zone is not None and zone.discard(member) and not zone:
            del self._zones[member.zone]
        for swarm in member.shares:
            swarm.unlist(member)

    def _peers(self, member: Member, swarms: Sequence[Swarm]) -> tuple[Peer, ...]:
        """Some of the swarms' members. Who is told few is told of more when they come."""
        chosen = choose(member, swarms, self._zones.get(member.zone), self._random)
        self._sate(member)
        if len(chosen) < PEERS_MAX and _needs_peers(member):
            member.wants = tuple(swarms)
            for swarm in swarms:
                swarm.hungry[member] = None
        return tuple(Peer(peer.node, peer.address, peer.zone) for peer in chosen)

    def _feed(self, swarm: Swarm, newcomer: Member, now: float) -> None:
        """Whoever is hungry will be told, once, however many come until then."""
        for member in [member for member in swarm.hungry if member is not newcomer]:
            self._sate(member)
            if _needs_peers(member):
                member.push_at = now + member.push_wait_s * (0.5 + self._random.random() / 2)
                member.push_wait_s = min(2 * member.push_wait_s, PUSH_LAST_S)
                self._time(member.push_at, member)

    def _sate(self, member: Member) -> None:
        for swarm in member.wants:
            swarm.hungry.pop(member, None)
        member.wants = ()

    def _probe_at(self, member: Member, at: float) -> None:
        member.probe_at = at
        self._time(at, member)

    def _time(self, at: float, member: Member) -> None:
        heapq.heappush(self._timers, (at, next(self._order), member))


def _needs_peers(member: Member) -> bool:
    """It lacks chunks, or those who lack some cannot come to it."""
    return not member.reachable or any(not is_complete(share) for share in member.shares.values())

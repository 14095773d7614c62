"""The tracker's state, with a clock of its own: who is told of whom, what is probed when, what is forgotten."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgdist.wire.tracker import NEAR_MAX, PEERS_MAX, SILENT_S, Join, Peer, Share
from supernode.tracker import members as rules
from supernode.tracker.members import Census, Deed, Members, Probe, Push
from supernode.tracker.swarm import COMPLETE_MAX, Member, Roster


def node(number: int) -> str:
    return f"{number:032x}"


def layer(number: int) -> str:
    return f"sha256-{number:064x}-v0"


class World:
    """Members and a clock; every address answers but those in `deaf`."""

    def __init__(self, *, probe: bool = True) -> None:
        self.members = Members(Random(4), probe=probe)
        self.now = 1000.0
        self.deaf: set[str] = set()
        self.probes: list[tuple[float, str]] = []
        self.told: dict[str, list[tuple[float, set[str]]]] = {}
        self.changed: list[str] = []
        self.silent: list[str] = []

    def join(
        self,
        number: int,
        *layers: int,
        have: int = 0,
        zone: str = "",
        address: str | None = None,
        local: bool = False,
        loopback: bool = False,
    ) -> set[str]:
        shares = tuple(Share(layer(name), have, 10) for name in layers)
        where = f"10.0.{number >> 8}.{number & 255}:7651" if address is None else address
        join = Join(1, 1, node(number), "host", "", 7651, zone, shares)
        return ids(self.members.join(join, where, is_loopback=loopback, from_loopback=local, now=self.now))

    def settle(self) -> None:
        """Everything that is due now, probes answered at once."""
        for deed in self.members.due(self.now):
            self._do(deed)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while (at := self.members.next_at()) is not None and at <= end:
            self.now = max(self.now, at)
            self.settle()
        self.now = end

    def _do(self, deed: Deed) -> None:
        if isinstance(deed, Probe):
            self.probes.append((self.now, deed.node))
            if self.members.probed(deed, deed.node not in self.deaf, self.now):
                self.changed.append(deed.node)
        elif isinstance(deed, Push):
            self.told.setdefault(deed.node, []).append((self.now, ids(deed.peers)))
        else:
            self.silent.append(deed.node)

    def reachable(self, number: int) -> bool | None:
        member = self.members.get(node(number))
        assert member is not None
        return member.reachable


def ids(peers: tuple[Peer, ...]) -> set[str]:
    assert len({peer.node for peer in peers}) == len(peers) <= PEERS_MAX
    return {peer.node for peer in peers}


def crowd(world: World, numbers: range, *layers: int, have: int = 0, zone: str = "") -> None:
    for number in numbers:
        world.join(number, *layers, have=have, zone=zone)
    world.settle()


def test_a_member_is_told_only_once_it_answered() -> None:
    world = World()
    assert world.join(1, 7) == set()
    assert world.join(2, 7) == set()
    world.settle()
    assert world.changed == [node(1), node(2)]
    assert world.join(3, 7) == {node(1), node(2)}
    assert world.join(4, 8) == set()
    assert world.members.census() == Census(4, 2, 2)


def test_a_member_out_of_reach_gets_peers_and_is_never_told() -> None:
    world = World()
    world.deaf = {node(1)}
    world.join(1, 7)
    world.join(2, 7)
    world.settle()
    assert (world.reachable(1), world.reachable(2)) == (False, True)
    assert world.changed == [node(1), node(2)]
    assert world.join(1, 7) == {node(2)}
    assert world.join(3, 7) == {node(2)}
    # Without an address nothing is tried.
    world.join(4, 7, address="")
    assert world.reachable(4) is False
    world.run(1)
    assert node(4) not in {name for _, name in world.probes}


def test_who_is_out_of_reach_is_tried_again_ever_more_rarely() -> None:
    world = World()
    world.deaf = {node(1)}
    world.join(1, 7)
    for _ in range(36):
        world.run(100)
        world.members.progress(node(1), (), world.now)
    times = [at for at, _ in world.probes]
    gaps = [after - before for before, after in pairwise(times)]
    assert rules.RETRY_FIRST_S / 2 <= gaps[0] <= rules.RETRY_FIRST_S
    assert len(times) < 20
    assert max(gaps) <= rules.RETRY_LAST_S
    world.deaf.clear()
    world.run(rules.RETRY_LAST_S)
    assert world.reachable(1)


def test_sixteen_that_start_at_once_soon_know_each_other() -> None:
    world = World()
    known = {}
    for number in range(16):
        known[node(number)] = world.join(number, 7)
        world.now += 0.02
        world.settle()
    world.run(1)
    for name, told in world.told.items():
        for _, peers in told:
            known[name] |= peers
    assert all(len(peers) == 15 for peers in known.values()), {name: len(peers) for name, peers in known.items()}
    assert max(map(len, world.told.values())) <= 3


def test_pushes_to_one_member_become_rare_however_many_come() -> None:
    world = World()
    world.join(0, 7, address="")
    for number in range(1, 2000):
        world.join(1, 7)
        world.settle()
        world.members.left(node(1))
        world.run(0.05)
        assert number
    assert 3 <= len(world.told[node(0)]) <= 10
    # A swarm it had not joined before begins anew.
    world.run(100)
    before = len(world.told[node(0)])
    world.join(0, 7, 8, address="")
    world.join(2, 8)
    world.run(rules.PUSH_FIRST_S)
    assert len(world.told[node(0)]) > before


def test_who_knows_enough_or_needs_nothing_is_left_in_peace() -> None:
    world = World()
    crowd(world, range(100), 7)
    world.run(10)
    world.told.clear()
    crowd(world, range(100, 200), 7)
    crowd(world, range(200, 210), 9, have=10)  # complete and reachable: others come to them
    world.run(10)
    world.told.clear()
    crowd(world, range(210, 220), 9)
    world.run(10)
    assert all(int(name, 16) >= 210 for name in world.told)


def test_near_ones_seeds_and_others() -> None:
    world = World()
    crowd(world, range(1000), 7)
    crowd(world, range(1000, 1020), 7, have=10)
    crowd(world, range(1020, 1040), 7, zone="rack")
    seen: dict[str, int] = {}
    for _ in range(200):
        peers = world.join(2000, 7, zone="rack")
        assert len(peers) == PEERS_MAX
        near = {name for name in peers if 1020 <= int(name, 16) < 1040}
        seeds = {name for name in peers if 1000 <= int(name, 16) < 1020}
        assert NEAR_MAX <= len(near) <= NEAR_MAX + 4
        assert COMPLETE_MAX <= len(seeds) <= COMPLETE_MAX + 4
        for name in peers:
            seen[name] = seen.get(name, 0) + 1
    # The rest is anybody: 200 draws of about 12 reach most of a thousand.
    assert len(seen) > 800


def test_near_ones_of_a_zone_too_large_to_look_through() -> None:
    world = World()
    crowd(world, range(1200), 7, zone="here")
    crowd(world, range(1200, 2400), 7, zone="there")
    crowd(world, range(2400, 4000), 8, zone="here")
    near = [len({name for name in world.join(5000, 7, zone="here") if int(name, 16) < 1200}) for _ in range(50)]
    # Half of 16 at random are near, too.
    assert min(near) >= NEAR_MAX
    assert 13 < sum(near) / len(near) < 19


def test_seeds_among_thousands_of_seeds_are_as_random_as_others() -> None:
    world = World()
    crowd(world, range(100), 7, have=10)
    crowd(world, range(100, 200), 7)
    seeds = [len({name for name in world.join(900, 7) if int(name, 16) < 100}) for _ in range(200)]
    assert min(seeds) >= COMPLETE_MAX
    assert 12 < sum(seeds) / len(seeds) < 16  # 4 and half of the others


def test_each_layer_gets_neighbours_however_small_its_swarm() -> None:
    world = World()
    crowd(world, range(1000), 7)
    crowd(world, range(1000, 1003), 8)
    found = [world.join(2000, 7, 8) for _ in range(20)]
    assert all(peers & {node(1000), node(1001), node(1002)} for peers in found)


def test_peers_are_of_what_lacks() -> None:
    world = World()
    crowd(world, range(3), 7)
    crowd(world, range(3, 6), 8)
    shares = (Share(layer(7), 10, 10), Share(layer(8), 0, 10))
    join = Join(1, 1, node(9), "", "", 1, "", shares)
    told = world.members.join(join, "", is_loopback=False, from_loopback=False, now=world.now)
    assert ids(told) == {node(3), node(4), node(5)}
    assert ids(world.members.seek(node(9), (), world.now)) == {node(3), node(4), node(5)}
    assert ids(world.members.seek(node(9), (layer(7), layer(99)), world.now)) == {node(0), node(1), node(2)}
    world.members.progress(node(9), (Share(layer(8), 10, 10),), world.now)
    assert ids(world.members.seek(node(9), (), world.now)) == set()
    assert len(world.join(9, 7, 8, have=10)) == 6  # one that has all of it may still hear who is there


def test_progress_makes_a_seed() -> None:
    world = World()
    crowd(world, range(500), 7)
    world.members.progress(node(3), (Share(layer(7), 10, 10), Share(layer(8), 1, 2)), world.now)
    assert all(node(3) in world.join(1000, 7) for _ in range(20))
    world.members.progress(node(3), (Share(layer(7), 9, 10),), world.now)
    assert not all(node(3) in world.join(1000, 7) for _ in range(20))
    assert world.members.census().swarms == 1  # what it did not join it does not enter


def test_joining_again_states_everything_anew() -> None:
    world = World()
    crowd(world, range(1, 3), 7, 8)
    world.join(1, 8, 9)
    assert world.join(5, 7) == {node(2)}
    assert world.join(5, 8) == {node(1), node(2)}
    assert world.join(5, 9) == {node(1)}
    world.join(1, 8, 9, zone="z")
    member = world.members.get(node(1))
    assert member is not None
    assert member.zone == "z"
    assert world.join(5, 9) == {node(1)}


def test_another_address_is_probed_before_it_is_told() -> None:
    world = World()
    crowd(world, range(1, 3), 7)
    world.join(1, 7, address="10.9.9.9:1")
    assert world.join(2, 7) == set()
    world.settle()
    assert world.join(2, 7) == {node(1)}


def test_an_answer_for_an_address_left_meanwhile_counts_for_nothing() -> None:
    world = World()
    world.join(1, 7)
    (probe,) = world.members.due(world.now)
    assert isinstance(probe, Probe)
    world.join(1, 7, address="10.9.9.9:1")
    assert not world.members.probed(probe, True, world.now)
    assert world.reachable(1) is None
    world.settle()
    assert world.reachable(1)


def test_one_report_of_death_does_not_throw_a_live_member_out() -> None:
    world = World()
    crowd(world, range(1, 4), 7)
    world.run(60)
    before = len(world.probes)
    for _ in range(50):
        world.members.dead(node(1), (node(2), node(77)), world.now)
        world.settle()
    assert [name for _, name in world.probes[before:]] == [node(2)]
    world.run(rules.REPROBE_S)
    assert len(world.probes) <= before + 2
    assert node(2) in world.join(9, 7)


def test_a_dead_member_is_not_told_after_two_probes() -> None:
    world = World()
    crowd(world, range(1, 4), 7)
    world.run(60)
    world.deaf = {node(2)}
    world.changed.clear()
    world.members.dead(node(1), (node(2),), world.now)
    world.settle()
    assert node(2) in world.join(9, 7)  # one probe may have been lost
    world.run(rules.SECOND_TRY_S)
    assert world.join(9, 7) == {node(1), node(3)}
    assert node(2) in world.changed
    world.deaf.clear()
    world.run(rules.RETRY_FIRST_S * 2)
    assert node(2) in world.join(9, 7)


def test_connecting_again_within_the_grace_changes_nothing_for_others() -> None:
    world = World()
    crowd(world, range(1, 4), 7)
    world.members.lost(node(1), world.now)
    world.run(rules.GRACE_S / 2)
    assert node(1) in world.join(2, 7)
    assert world.join(1, 7) == {node(2), node(3)}
    world.run(rules.GRACE_S * 2)
    assert node(1) in world.join(2, 7)


def test_who_does_not_come_back_is_forgotten() -> None:
    world = World()
    crowd(world, range(1, 4), 7)
    world.members.lost(node(1), world.now)
    world.run(rules.GRACE_S + rules.SWEEP_S)
    assert world.members.get(node(1)) is None
    world.deaf = {node(2)}
    world.members.lost(node(2), world.now)
    world.run(rules.SECOND_TRY_S)
    assert world.join(9, 7) == {node(3)}  # it is gone, and does not answer
    world.members.left(node(3))
    world.members.left(node(9))
    world.run(rules.GRACE_S + rules.SWEEP_S)
    assert world.members.census() == Census(0, 0, 0)
    assert world.members.next_at() is None


def test_silence_is_told() -> None:
    world = World()
    crowd(world, range(1, 3), 7)
    world.run(SILENT_S - rules.SWEEP_S)
    world.members.progress(node(2), (), world.now)
    assert world.silent == []
    world.run(rules.SWEEP_S * 2)
    assert set(world.silent) == {node(1)}


def test_loopback_addresses_are_for_those_on_the_same_machine() -> None:
    world = World()
    world.join(1, 7, address="127.0.0.1:1", loopback=True, local=True)
    world.join(2, 7)
    world.settle()
    assert world.join(3, 7) == {node(2)}
    assert world.join(4, 7, local=True) == {node(1), node(2)}


def test_without_probing_every_address_is_told() -> None:
    world = World(probe=False)
    world.join(1, 7)
    world.join(2, 7, address="")
    assert world.join(3, 7) == {node(1)}
    world.members.dead(node(3), (node(1),), world.now)
    world.run(10)
    assert world.probes == []


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 7), st.integers(0, 5)), max_size=120), st.booleans())
def test_state_stays_whole_whatever_happens(steps: list[tuple[int, int, int]], probe: bool) -> None:
    world = World(probe=probe)
    for number, what, more in steps:
        here = world.members.get(node(number)) is not None
        if what < 2:
            world.join(number, *range(more), have=5 * what, zone="ab"[what], address="" if more == 5 else None)
        elif what == 2:
            world.deaf ^= {node(number)}
        elif what == 3:
            world.run(more * 7)
        elif here and what == 4:
            world.members.progress(node(number), (Share(layer(more), 10, 10),), world.now)
        elif here and what == 5:
            world.members.dead(node(number), map(node, range(more)), world.now)
        elif what == 6:
            world.members.lost(node(number), world.now)
        elif what == 7:
            world.members.left(node(number))
        check(world.members)
    for number in range(10):
        world.members.left(node(number))
    assert world.members.census() == Census(0, 0, 0)


def check(members: Members) -> None:
    """Every swarm lists exactly its reachable members, the complete ones apart; so does every zone."""
    everyone = members._members.values()
    reachable = {member for member in everyone if member.reachable}
    swarms = {swarm for member in everyone for swarm in member.shares}
    assert set(members._swarms.values()) == swarms
    for swarm in swarms:
        inside = {member for member in everyone if swarm in member.shares}
        complete = {member for member in inside & reachable if 0 < member.shares[swarm][1] <= member.shares[swarm][0]}
        assert swarm.size == len(inside)
        assert len(swarm) == len(inside & reachable)
        assert set(swarm) == inside & reachable
        assert set(swarm.complete) == complete
        assert all(member in everyone for member in swarm.hungry)
    zones = {
        name: {member for member in reachable if member.zone == name} for name in {m.zone for m in reachable} - {""}
    }
    assert {name: set(roster) for name, roster in members._zones.items()} == zones


def test_roster_draws_everyone_evenly() -> None:
    roster, random = Roster(), Random(1)
    people = [Member(node(number), "", "", "", False, False, 0.0) for number in range(20)]
    for member in people:
        assert roster.add(member)
        assert not roster.add(member)
    for member in people[:10]:
        roster.discard(member)
        roster.discard(member)
    draws = [roster.draw(random) for _ in range(2000)]
    assert set(draws) == set(roster) == set(people[10:])
    assert max(draws.count(member) for member in people[10:]) < 300


@pytest.mark.parametrize("size", [1, 5, 24, 25, 200])
def test_nobody_is_told_of_itself_or_twice(size: int) -> None:
    world = World()
    crowd(world, range(size), 7, 8, 9)
    for number in range(size):
        peers = world.join(number, 7, 8, 9)
        assert node(number) not in peers
        assert len(peers) == min(size - 1, PEERS_MAX)

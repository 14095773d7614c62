"""Meshes of several agents over real connections: who is connected, what each knows of the others, whom it cuts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from mesh_rig import Rig, name, node_id, pack, rig, until

from agent.swarm import connection
from imgdist.wire import mesh as wire
from imgdist.wire.mesh import Bye, Close, Have, Hello, Open, Peers, Sealed
from imgdist.wire.tracker import Peer


@pytest.fixture
async def world() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made


async def test_each_learns_what_the_other_has_and_what_it_gets(world: Rig) -> None:
    one, two = world.node(1), world.node(2)
    one.mesh.open(5, name(7), pack(7), 40, 0b1011)
    two.mesh.open(9, name(7), pack(7), 40, 0)
    two.mesh.learn([one.peer])
    await until(lambda: two.knows(one, 9) == 0b1011 and one.knows(two, 5) == 0)
    one.mesh.here(5, 2)
    one.mesh.here(5, 39)
    one.mesh.here(5, 39)
    await until(lambda: two.knows(one, 9) == 0b1111 | 1 << 39)
    two.mesh.here(9, 0)
    await until(lambda: one.knows(two, 5) == 1)
    assert set(two.exchange.calls) == {("got", 9, 1 << 2 | 1 << 39)}, "told together, and once"


async def test_swarms_that_come_later_are_told_at_once(world: Rig) -> None:
    one, two = world.node(1), world.node(2)
    one.mesh.learn([two.peer])
    await until(lambda: one.neighbours == {"n2"} and two.neighbours == {"n1"})
    one.mesh.open(5, name(7), pack(7), 8, 0b1)
    one.mesh.here(5, 3)
    await until(lambda: [share.have for share in one.mesh.shares()] == [2])
    two.mesh.open(9, name(7), pack(7), 8, 0b10)
    await until(lambda: two.knows(one, 9) == 0b1001 and one.knows(two, 5) == 0b10)
    one.mesh.close(5)
    await until(lambda: two.knows(one, 9) is None)
    assert one.knows(two, 5) is None
    one.mesh.open(6, name(7), pack(7), 8, 0xFF)
    await until(lambda: two.knows(one, 9) == 0xFF)
    assert one.knows(two, 6) is None, "what is complete here is of no interest"


async def test_a_layer_is_the_same_before_and_after_its_seal(world: Rig) -> None:
    one, two, twin = world.node(1), world.node(2), world.node(3)
    for other in (two, twin):
        other.mesh.learn([one.peer])
    one.mesh.open(5, name(7), "", 4, 0b1)
    two.mesh.open(9, name(7), "", 2, 0b10)
    twin.mesh.open(8, name(8), pack(7), 8, 0b100)
    await until(lambda: one.knows(two, 5) == 0b10 and two.knows(one, 9) == 0b1)
    assert one.knows(twin, 5) is None
    one.mesh.sealed(5, 55, pack(7), 8, 0b11)
    await until(lambda: twin.knows(one, 8) is not None)
    assert (one.knows(two, 5), one.knows(two, 55)) == (None, 0b10)
    two.mesh.sealed(9, 9, pack(7), 8, 0)
    two.mesh.here(9, 7)
    await until(lambda: one.knows(two, 55) == 0b10000010)


async def test_a_layer_with_all_chunks_is_complete_for_others_too(world: Rig) -> None:
    one, two = world.node(1), world.node(2)
    one.mesh.open(5, name(7), pack(7), 3, 0b110)
    two.mesh.open(5, name(7), pack(7), 3, 0b001)
    one.mesh.learn([two.peer])
    await until(lambda: one.knows(two, 5) == 1 and two.knows(one, 5) == 6)
    one.mesh.here(5, 0)
    await until(lambda: two.knows(one, 5) == 7)
    assert one.knows(two, 5) is None and not one.mesh.lacks and two.mesh.lacks


async def test_who_has_a_layer_too_is_known_by_its_id(world: Rig) -> None:
    one, two, other = world.node(1), world.node(2), world.node(3)
    for node, layer in ((one, 7), (two, 7), (other, 8)):
        node.mesh.open(5, name(layer), pack(layer), 8, 0xFF)
    for neighbour in (two, other):
        one.mesh.learn([neighbour.peer])
    await until(lambda: one.neighbours == {"n2", "n3"} and one.mesh.sharing(5) == [node_id(2)])
    two.mesh.close(5)
    await until(lambda: one.mesh.sharing(5) == [])
    assert one.mesh.sharing(6) == []


async def test_of_two_connections_one_stays_on_both_sides(world: Rig) -> None:
    one, two = world.node(1), world.node(2)
    for node in (one, two):
        node.mesh.open(5, name(7), pack(7), 3, 0)
    one.mesh.learn([two.peer])
    two.mesh.learn([one.peer])
    await until(lambda: one.neighbours == {"n2"} and two.neighbours == {"n1"})
    await until(lambda: [row["opened"] for row in two.mesh.rows()] == ["there"])
    await until(lambda: [row["opened"] for row in one.mesh.rows()] == ["here"])
    await until(lambda: one.knows(two, 5) == 0 and two.knows(one, 5) == 0)


async def test_neighbours_tell_of_others(world: Rig) -> None:
    hub, others = world.node(1), [world.node(number) for number in range(2, 6)]
    for other in others:
        other.mesh.open(5, name(7), pack(7), 3, 0)
        other.mesh.learn([hub.peer])
    await until(lambda: all(len(other.neighbours) == 4 for other in others))
    assert len(hub.neighbours) == 4


async def test_an_agent_that_nobody_reaches_takes_part_but_is_no_source(world: Rig) -> None:
    hidden, open_ = world.node(1), world.node(2)
    hidden.mesh.advertise("")
    hidden.mesh.open(5, name(7), pack(7), 8, 0b1)
    open_.mesh.open(6, name(7), pack(7), 8, 0b10)
    hidden.mesh.learn([open_.peer])
    await until(lambda: hidden.knows(open_, 5) == 0b10)
    open_.mesh.here(6, 2)
    await until(lambda: hidden.knows(open_, 5) == 0b110)
    assert open_.exchange.peers == {} and [row["address"] for row in open_.mesh.rows()] == [None]

    hidden.mesh.here(5, 4)
    hidden.mesh.advertise(hidden.address)  # it has found out
    await until(lambda: open_.knows(hidden, 6) == 0b10001)


async def test_agents_of_the_same_zone_are_near(world: Rig) -> None:
    one, near, far = world.node(1, zone="rack-1"), world.node(2, zone="rack-1"), world.node(3)
    one.mesh.learn([near.peer, far.peer])
    await until(lambda: len(one.neighbours) == 2)
    assert one.exchange.near == {near.address: True, far.address: False}


async def test_one_that_dies_is_left_and_reported(world: Rig) -> None:
    one, two = world.node(1), world.node(2)
    one.mesh.learn([two.peer])
    await until(lambda: one.neighbours == {"n2"})
    for partner in two.mesh._company:
        partner.connection.abort()  # as the kernel does for a killed process
    two.listener.close()
    await until(lambda: one.tracker.gone == [two.me.node])
    assert one.exchange.peers == {}


async def test_a_connection_that_breaks_is_made_anew(world: Rig) -> None:
    one, two = world.node(1), world.node(2)
    one.mesh.open(5, name(7), pack(7), 8, 0b1)
    two.mesh.open(5, name(7), pack(7), 8, 0b10)
    one.mesh.learn([two.peer])
    await until(lambda: two.knows(one, 5) == 1)
    first = next(iter(one.mesh._company)).connection
    first.abort()
    await until(lambda: two.knows(one, 5) is None)
    await until(lambda: two.knows(one, 5) == 1 and one.knows(two, 5) == 0b10)
    assert one.tracker.gone == two.tracker.gone == []


async def test_one_that_stops_is_left_alone_and_not_reported(world: Rig) -> None:
    one, two = world.node(1), world.node(2)
    one.mesh.learn([two.peer])
    await until(lambda: one.neighbours == {"n2"})
    await two.stop()
    await until(lambda: one.neighbours == set())
    await asyncio.sleep(0)
    assert one.tracker.gone == [] and not one.mesh._doors.dialing


async def test_silence_is_death_and_a_sign_of_life_is_enough(world: Rig) -> None:
    now = [0.0]
    one = world.node(1, clock=lambda: now[0])
    lively, silent = await world.stranger(one, number=2), await world.stranger(one, number=3)
    await until(lambda: one.neighbours == {"s2", "s3"})
    now[0] = 20.0
    lively.say(Peers())
    await lively.hear(Peers)
    await until(lambda: max(partner.connection.heard_at for partner in one.mesh._company) == 20.0)
    now[0] = 31.0
    assert await silent.ended()
    assert one.neighbours == {"s2"}


async def test_it_shows_that_it_lives(world: Rig) -> None:
    now = [0.0]
    one = world.node(1, clock=lambda: now[0])
    stranger = await world.stranger(one, number=2)
    await stranger.hear(Peers)
    now[0] = 9.5
    assert await stranger.hear(Peers) == Peers()


async def test_no_more_than_twice_the_limit_come_in_and_they_hear_of_others(world: Rig) -> None:
    one = world.node(1, limit=1)
    for number in (2, 3):
        await world.stranger(one, number=number, address=f"127.0.0.1:{number}")
    await until(lambda: len(one.mesh) == 2)
    third = await world.stranger(one, number=4)
    told = await third.hear(Peers)
    assert {peer.node for peer in told.members} == {node_id(2), node_id(3)}
    assert await third.hear(Bye) == Bye() and await third.ended()
    assert one.neighbours == {"s2", "s3"}


OPEN = Open(1, name(7), pack(7), 8, b"\x01")


@pytest.mark.parametrize(
    "lies",
    [
        [Have(1, b"\0\0\0\0")],
        [OPEN, wire.have(1, [8])],
        [OPEN, Sealed(1, pack(7), 8)],
        [Open(1, name(7), pack(7), 9)],
        [Open(1, name(7), "", 9, b"\xff\x01")],
        [Open(number, name(number), pack(number), 1) for number in range(1025)],
        [Open(number, name(number), pack(number), wire.CHUNKS_MAX) for number in range(9)],
        [Hello(1, 1, node_id(3), "", "", "")],
        [Hello(2, 9, node_id(2), "", "", "")],
        [Hello(1, 1, node_id(2), "example.org:1", "", "")],
        [b"\xff\xff\xff\xff"],
        [b"\x01\0\0\0\x90"],
        [Peers()] * 9000,
    ],
    ids=lambda lies: f"{len(lies)} {type(lies[-1]).__name__}",
)
async def test_one_that_breaks_the_rules_is_cut_and_kept_out(world: Rig, lies: list[wire.Message | bytes]) -> None:
    one = world.node(1)
    one.mesh.open(5, name(7), pack(7), 8, 0)
    stranger = await world.stranger(one, number=2, address="127.0.0.1:9")
    await until(lambda: one.neighbours == {"s2"})
    stranger.say(*lies)
    assert await stranger.ended()
    await until(lambda: one.neighbours == set() and one.exchange.peers == {})
    again = await world.stranger(one, number=2)
    assert await again.hear(Bye) == Bye() and await again.ended()


@pytest.mark.parametrize("lie", [Open(1, name(7), pack(7), 9), Open(1, name(7), "", 9, b"\xff\x01")])
async def test_one_that_was_wrong_about_a_layer_opened_later_is_no_trouble_of_whoever_opens_it(
    world: Rig, lie: wire.Message
) -> None:
    one = world.node(1)
    liar = await world.stranger(one, number=2, address="127.0.0.1:9")
    honest = world.node(3)
    honest.mesh.open(9, name(7), pack(7), 8, 0b10)
    one.mesh.learn([honest.peer])
    await until(lambda: one.neighbours == {"s2", "n3"})
    liar.say(lie)
    heard = {partner.hello.name: partner.heard for partner in one.mesh._company}
    await until(lambda: list(heard["s2"]) and list(heard["n3"]))
    one.mesh.open(5, name(7), pack(7), 8, 0)
    assert await liar.ended()
    await until(lambda: one.neighbours == {"n3"} and one.knows(honest, 5) == 0b10)


async def test_a_first_word_other_than_hello_is_the_end(world: Rig) -> None:
    one = world.node(1)
    stranger = await world.stranger(one)
    stranger.say(Close(1))
    assert await stranger.ended()


async def test_it_does_not_talk_to_itself(world: Rig) -> None:
    one = world.node(1)
    one.mesh.learn([Peer(node_id(2), one.address, "")])
    assert len(one.mesh._members) == 1
    await until(lambda: len(one.mesh._members) == 0 and not one.mesh._doors._pending)
    assert one.neighbours == set() and one.tracker.gone == []


async def test_many_hellos_without_a_word_do_not_fill_it(world: Rig) -> None:
    now = [0.0]
    one = world.node(1, clock=lambda: now[0])
    silent = [await world.stranger(one) for _ in range(3)]
    await until(lambda: len(one.mesh._doors._pending) == 3)
    now[0] = 6.0
    one.mesh._wake.set()
    assert all([await stranger.ended() for stranger in silent])


async def test_when_more_members_are_wanted_the_tracker_is_asked(world: Rig) -> None:
    now = [0.0]
    one = world.node(1, clock=lambda: now[0])
    one.mesh.open(5, name(7), pack(7), 8, 0)
    await until(lambda: one.tracker.changes == 1)
    now[0] = 15.0
    one.mesh._wake.set()
    await until(lambda: one.tracker.seeks == 1)


async def test_one_that_has_all_hears_when_another_has_all_too(world: Rig) -> None:
    one, two = world.node(1), world.node(2)
    one.mesh.open(5, name(7), pack(7), 2, 0b11)
    two.mesh.open(9, name(7), pack(7), 2, 0)
    two.mesh.learn([one.peer])
    await until(lambda: [row["takes"] for row in one.mesh.rows()] == [True])
    two.mesh.here(9, 0)
    two.mesh.here(9, 1)
    await until(lambda: [(row["gives"], row["takes"]) for row in one.mesh.rows()] == [(False, False)])


async def test_what_arrives_while_the_present_is_looked_at_counts(world: Rig) -> None:
    one, two = world.node(1), world.node(2)
    two.mesh.open(9, name(7), pack(7), 8, 0)
    two.mesh.learn([one.peer])
    one.mesh.opening(5)
    one.mesh.here(5, 3)
    one.mesh.open(5, name(7), pack(7), 8, 0b1)
    one.mesh.here(5, 4)
    await until(lambda: two.knows(one, 9) == 0b11001)


async def test_an_address_belongs_to_the_one_that_told_it_last(world: Rig) -> None:
    one = world.node(1)
    await world.stranger(one, number=2, address="127.0.0.1:9")
    await world.stranger(one, number=3, address="127.0.0.1:9")
    await until(lambda: {row["name"]: row["address"] for row in one.mesh.rows()} == {"s2": None, "s3": "127.0.0.1:9"})
    assert list(one.exchange.peers) == ["127.0.0.1:9"]


async def test_one_that_sends_wrong_bytes_is_left(world: Rig) -> None:
    now = [0.0]
    one, liar, other = world.node(1, clock=lambda: now[0]), world.node(2), world.node(3)
    one.mesh.learn([liar.peer, other.peer])
    await until(lambda: one.neighbours == {"n2", "n3"})
    one.exchange.rows = [
        SimpleNamespace(source=liar.address, state="quarantined", lies=3),
        SimpleNamespace(source=other.address, state="quarantined", lies=1),
    ]
    now[0] = 6.0
    one.mesh._wake.set()
    await until(lambda: one.neighbours == {"n3"})
    one.mesh.learn([liar.peer])
    liar.mesh.learn([one.peer])
    await until(lambda: len(liar.mesh._members) and not liar.mesh._doors.dialing)
    assert one.neighbours == {"n3"}


async def test_who_does_not_read_is_told_later_or_left(world: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    one = world.node(1)
    one.mesh.open(5, name(7), pack(7), 99, 0)
    stranger = await world.stranger(one, number=2)
    stranger.say(Open(1, name(7), pack(7), 99, b""))
    await until(lambda: [row["swarms"] for row in one.mesh.rows()] == [1])
    (partner,) = one.mesh._company
    partner.connection.pause_writing()
    for chunk in range(50):
        one.mesh.here(5, chunk)
        await asyncio.sleep(0)
    await until(lambda: one.mesh.shares()[0].have == 50)
    partner.connection.resume_writing()
    assert list((await stranger.hear(Have)).chunks) == list(range(50)), "in one message"

    monkeypatch.setattr(connection, "_UNREAD_MAX", -1)
    partner.connection.pause_writing()
    partner.send(Peers())
    assert await stranger.ended()

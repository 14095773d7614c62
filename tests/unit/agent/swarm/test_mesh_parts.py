"""What the mesh decides without connections: whom it knows, whom it leaves, which swarms are the same."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.swarm.identity import check_advertised, identity, node_id
from agent.swarm.members import BAN_S, KNOWN_MAX, PARTED_S, SHARING_S, Members
from agent.swarm.pruning import Use, leaving
from agent.swarm.swarms import Heard, OwnSwarms
from imgdist.errors import ConfigError, ProtocolError
from imgdist.wire import mesh as wire
from imgdist.wire.mesh import Open, Sealed
from imgdist.wire.tracker import Peer, Share

ME = f"{0:032x}"


def peer(number: int, address: str = "") -> Peer:
    return Peer(f"{number:032x}", address or f"10.0.0.1:{number}", "")


def members() -> Members:
    return Members(ME, lambda: 0.5)


def test_those_who_have_what_is_missing_come_first() -> None:
    known = members()
    known.learn([peer(number) for number in range(5)], 0.0)
    known.learn([peer(3)], 0.0, sharing=True)
    assert known.candidates(1.0, (), 9)[0] == peer(3)
    assert len(known.candidates(1.0, (), 9)) == 4, "the node itself is none"
    assert len(known.candidates(1.0, {peer(2).node}, 2)) == 2
    assert known.sharing(1.0, ()) == 1
    assert known.sharing(1.0, {peer(3).node}) == known.sharing(SHARING_S + 1, ()) == 0


def test_one_that_does_not_answer_twice_is_dead_and_may_come_again() -> None:
    known = members()
    known.learn([peer(1)], 0.0)
    assert not known.failed(peer(1).node, 0.0)
    assert known.candidates(0.1, (), 9) == []
    assert known.candidates(2.0, (), 9) == [peer(1)]
    assert known.failed(peer(1).node, 2.0)
    assert known.candidates(99.0, (), 9) == []
    known.learn([peer(1)], 100.0)
    assert not known.failed(peer(1).node, 100.0)


def test_one_whose_connection_broke_is_dead_if_it_does_not_answer_once() -> None:
    known = members()
    known.learn([peer(1)], 0.0)
    known.met(peer(1).node)
    known.lost(peer(1), 10.0, 0.1)
    assert known.candidates(10.05, (), 9) == [] and known.candidates(10.1, (), 9) == [peer(1)]
    assert known.failed(peer(1).node, 10.2)


def test_failures_of_an_old_address_do_not_count_at_a_new_one() -> None:
    known = members()
    known.learn([peer(1)], 0.0)
    known.failed(peer(1).node, 0.0)
    known.learn([peer(1, "10.0.0.9:1")], 0.1)
    assert known.candidates(0.1, (), 9) == [peer(1, "10.0.0.9:1")]


def test_one_of_no_use_is_left_alone_for_a_while() -> None:
    known = members()
    known.learn([peer(1)], 0.0, sharing=True)
    known.parted(peer(1).node, 0.0)
    assert known.candidates(PARTED_S - 1, (), 9) == []
    assert known.candidates(PARTED_S, (), 9) == [peer(1)]


def test_bans_grow_and_are_forgiven() -> None:
    known = members()
    first, most = BAN_S
    known.ban(peer(1).node, 0.0)
    assert known.is_banned(peer(1).node, first - 1) and not known.is_banned(peer(1).node, first)
    known.ban(peer(1).node, first)
    assert known.is_banned(peer(1).node, 3 * first - 1) and not known.is_banned(peer(1).node, 3 * first)
    known.ban(peer(1).node, 9 * most)
    assert not known.is_banned(peer(1).node, 9 * most + first)


def test_the_book_is_bounded_and_keeps_those_that_share() -> None:
    known = members()
    known.learn([peer(1)], 0.0, sharing=True)
    for number in range(2, 2 * KNOWN_MAX):
        known.learn([peer(number)], 1.0)
        known.ban(f"{number:032x}", 1.0)
    assert len(known) == KNOWN_MAX and known.sharing(1.0, ()) == 1


GIVER, TAKER, BOTH, IDLE = Use(True, False), Use(False, True), Use(True, True), Use(False, False)


@pytest.mark.parametrize(
    ("uses", "limit", "better", "left"),
    [
        ([IDLE, GIVER], 4, 0, []),
        ([IDLE, GIVER], 4, 2, []),
        ([IDLE, GIVER], 2, 5, [0]),
        ([IDLE, GIVER, IDLE, TAKER], 2, 0, [0, 2]),
        ([TAKER, BOTH, TAKER, TAKER], 4, 1, [0]),
        ([TAKER, BOTH, TAKER, TAKER], 4, 9, [0]),
        ([TAKER, TAKER, TAKER, TAKER], 4, 9, [0, 1]),
        ([GIVER, GIVER, TAKER, IDLE], 4, 9, [3]),
        ([GIVER] * 6, 4, 9, []),
        ([], 0, 3, []),
    ],
)
def test_who_makes_room(uses: list[Use], limit: int, better: int, left: list[int]) -> None:
    assert leaving(uses, limit, better) == left


@given(st.lists(st.sampled_from([GIVER, TAKER, BOTH, IDLE]), max_size=50), st.integers(0, 30), st.integers(0, 30))
def test_who_gives_is_never_left(uses: list[Use], limit: int, better: int) -> None:
    left = leaving(uses, limit, better)
    assert len(set(left)) == len(left) and not any(uses[place].gives for place in left)


LAYER, PACK = f"sha256-{'a' * 64}-v0", "b" * 64


def test_shares_count_chunks_and_say_when_they_can_be_all() -> None:
    own = OwnSwarms()
    own.open(1, LAYER, "", 4, 0b101)
    assert own.shares() == [Share(LAYER, 2, 0)]
    own.seal(1, 2, PACK, 4, 0b10)
    assert own.arrived(2, 3) is not None and own.arrived(2, 3) is None and own.arrived(1, 3) is None
    assert own.shares() == [Share(LAYER, 4, 4)] and own.shares()[0].is_complete


def test_names_are_forgotten_with_the_swarm() -> None:
    own = OwnSwarms()
    own.open(1, LAYER, PACK, 4, 0)
    assert own.same(LAYER, "") is own.same("", PACK) is own.get(1)
    assert own.same(LAYER, "c" * 64) is None, "the same layer, converted otherwise"
    own.close(1)
    assert own.same(LAYER, PACK) is None and len(own) == 0


def test_of_two_swarms_that_are_ours_the_first_counts_until_it_is_closed() -> None:
    own, heard = OwnSwarms(), Heard()
    ours = own.open(1, LAYER, PACK, 4, 0)
    assert ours is not None
    first = heard.opened(Open(1, LAYER, PACK, 4, b"\1"), own)
    second = heard.opened(Open(2, LAYER, PACK, 4, b"\3"), own)
    assert heard.of(ours) is first and second.own is None
    assert heard.closed(1) is ours and heard.of(ours) is None
    assert heard.join(ours) is second
    assert heard.closed(3) is None


def test_an_open_again_replaces_what_was_said() -> None:
    own, heard = OwnSwarms(), Heard()
    ours = own.open(1, LAYER, PACK, 4, 0)
    assert ours is not None
    for _ in range(2000):
        heard.opened(Open(1, LAYER, PACK, 4, b"\1"), own)
    again = heard.opened(Open(1, LAYER, PACK, 4, b"\2"), own)
    assert heard.of(ours) is again and again.bits == 2 and len(list(heard)) == 1


def test_a_seal_tells_how_many_chunks_there_can_be() -> None:
    own, heard = OwnSwarms(), Heard()
    heard.opened(Open(1, LAYER, "", 1, b""), own)
    heard.has(wire.have(1, [70]))
    with pytest.raises(ProtocolError):
        heard.sealed(Sealed(1, PACK, 70), own)
    heard.sealed(Sealed(1, PACK, 71), own)
    with pytest.raises(ProtocolError):
        heard.has(wire.have(1, [71]))


def test_a_message_of_as_many_chunks_as_one_holds_keeps_nobody_waiting() -> None:
    heard = Heard()
    heard.opened(Open(1, LAYER, "", 1, b""), OwnSwarms())
    told = wire.have(1, range(0, wire.CHUNKS_MAX, 17))
    began = time.process_time()
    _, fresh = heard.has(told)
    assert time.process_time() - began < 1.0, "one chunk after the other takes half a minute"
    assert fresh.bit_count() == len(range(0, wire.CHUNKS_MAX, 17)) and heard.has(told)[1] == 0


def test_a_node_keeps_its_id_and_gets_another_if_it_is_damaged(tmp_path: Path) -> None:
    made = node_id(tmp_path)
    assert len(made) == 32 and node_id(tmp_path) == made
    for damage in (b"", b"x" * 32, b"\xff" * 32, made[:31].encode()):
        (tmp_path / "node-id").write_bytes(damage)
        again = node_id(tmp_path)
        assert again != made and node_id(tmp_path) == again
    assert os.listdir(tmp_path) == ["node-id"]


@pytest.mark.parametrize(
    ("host", "advertise", "address"),
    [("127.0.0.1", "", "127.0.0.1:{}"), ("0.0.0.0", "", ""), ("0.0.0.0", "10.0.0.1:7651", "10.0.0.1:7651")],
)
def test_what_it_tells_of_its_address(tmp_path: Path, host: str, advertise: str, address: str) -> None:
    with socket.create_server((host, 0)) as listener:
        port = listener.getsockname()[1]
        me = identity(tmp_path, "z", advertise, listener)
    assert (me.address, me.port, me.zone) == (address.format(port), port, "z")


@pytest.mark.parametrize("address", ["node-1:7651", "10.0.0.1", "0.0.0.0:7651", "unix:///x"])
def test_an_address_that_others_cannot_use_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="--peer-advertise"):
        check_advertised(address)
    check_advertised("")
    check_advertised("[2001:db8::1]:7651")

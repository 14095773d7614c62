"""The messages between agents: round trips, every way to cut them, and what a stranger may send."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import msgpack

from imgdist.errors import ProtocolError
from imgdist.wire import mesh
from imgdist.wire.mesh import Bye, Close, FrameDecoder, Have, Hello, Message, Open, Peers, Sealed
from imgdist.wire.tracker import Peer

NODE = "0123456789abcdef" * 2
LAYER = f"sha256-{'a' * 64}-v0"
PACK = "b" * 64

HELLO = Hello(1, 1, NODE, "10.0.0.1:7651", "rack-1", "node-1")
EVERY: list[Message] = [
    HELLO,
    Open(7, LAYER, PACK, 9, b"\x03\x01"),
    Open(7, LAYER, PACK, 9, b"", True),
    Open((1 << 32) - 1, LAYER, "", 0),
    Sealed(7, PACK, mesh.CHUNKS_MAX),
    mesh.have(7, [0, 8, mesh.CHUNKS_MAX - 1]),
    Close(0),
    Peers((Peer(NODE, "[::1]:7651", ""),)),
    Peers(),
    Bye(),
]


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_what_was_said_is_what_is_heard(message: Message) -> None:
    assert FrameDecoder().feed(mesh.encode(message)) == [message]


def test_the_bytes_of_a_message_stay_what_they_are() -> None:
    """Other releases read them."""
    assert mesh.encode(mesh.have(7, [1, 258])) == b"\x0d\0\0\0" + b"\x93\x04\x07\xc4\x08\x01\0\0\0\x02\x01\0\0"
    assert mesh.encode(Bye()) == b"\x02\0\0\0\x91\x07"


def test_messages_come_whole_however_they_are_cut() -> None:
    data = b"".join(map(mesh.encode, EVERY))
    decoder = FrameDecoder()
    assert [message for byte in data for message in decoder.feed(bytes([byte]))] == EVERY
    for at in range(len(data)):
        decoder = FrameDecoder()
        assert decoder.feed(data[:at]) + decoder.feed(data[at:]) == EVERY


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=3))
def test_garbage_is_a_protocol_error_or_nothing(data: bytes, cuts: list[int]) -> None:
    decoder = FrameDecoder()
    try:
        for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
            decoder.feed(data[start:end])
    except ProtocolError:
        pass


@given(st.recursive(st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | st.binary(max_size=9) | st.text(max_size=70),
                    lambda inner: st.lists(inner, max_size=7), max_leaves=12))  # fmt: skip
def test_a_message_of_strange_values_is_a_protocol_error(value: Any) -> None:
    try:
        message = mesh.decode(msgpack.encode(value))
    except ProtocolError:
        return
    assert mesh.decode(mesh.encode(message)[4:]) == message


@pytest.mark.parametrize(
    "value",
    [
        [0], [8], [], 7, ["Bye"],
        [1, 1, 1, NODE.upper(), "", "", ""], [1, 1, 1, NODE + "\n", "", "", ""], [1, 2, 1, NODE, "", "", ""],
        [1, 1, 1, NODE, "", "a\nb", ""], [1, 1, 1, NODE, "", "", "\x1b[2J"],
        [1, 1, 1, NODE, "x" * 264, "", ""], [1, 1, 1, NODE, "", "z" * 256, ""], [1, 1, 1, NODE, "", ""],
        [2, -1, LAYER, PACK, 9], [2, 1 << 32, LAYER, PACK, 9], [2, 7, "", "", 9], [2, 7, "../x", PACK, 9],
        [2, 7, LAYER, PACK, mesh.CHUNKS_MAX + 1], [2, 7, LAYER, PACK, 8, b"\1\1"], [2, 7, LAYER, PACK, 7, b"\x80"],
        [2, 7, LAYER, PACK, 9, b"\1", True], [2, 7, LAYER, "", 9, b"", True],
        [3, 7, "", 9], [4, 7, b""], [4, 7, b"\0\0\0"], [4, 7, struct.pack("<I", mesh.CHUNKS_MAX)],
        [6, [[NODE, "a:1", ""]] * 25], [6, [["x", "a:1", ""]]],
    ],
)  # fmt: skip
def test_what_breaks_the_rules_is_refused(value: Any) -> None:
    with pytest.raises(ProtocolError):
        mesh.decode(msgpack.encode(value))


@pytest.mark.parametrize("length", [0, mesh.FRAME_MAX + 1, (1 << 32) - 1])
def test_a_length_that_cannot_be_is_refused_before_its_bytes_are_kept(length: int) -> None:
    with pytest.raises(ProtocolError, match="mesh frame"):
        FrameDecoder().feed(struct.pack("<I", length))


def test_fields_of_later_releases_are_passed_over() -> None:
    assert mesh.decode(msgpack.encode([1, 1, 3, NODE, "a:1", "", "n", {"new": 1}])) == Hello(1, 3, NODE, "a:1", "", "n")


@given(st.integers(0, 70), st.data())
def test_a_bitmap_comes_back(count: int, data: st.DataObject) -> None:
    bits = data.draw(st.integers(0, (1 << count) - 1))
    heard = mesh.decode(mesh.encode(mesh.open_bits(1, LAYER, PACK, count, bits))[4:])
    assert isinstance(heard, Open) and heard.bits == bits and heard.complete is (bits == (1 << count) - 1)


@given(st.lists(st.integers(0, mesh.CHUNKS_MAX - 1), min_size=1, max_size=40))
def test_chunk_numbers_come_back_in_order(numbers: list[int]) -> None:
    heard = mesh.decode(mesh.encode(mesh.have(1, numbers))[4:])
    assert isinstance(heard, Have) and list(heard.chunks) == numbers


def test_a_layer_that_is_not_sealed_is_never_complete() -> None:
    assert mesh.open_bits(1, LAYER, "", 2, 3) == Open(1, LAYER, "", 2, b"\x03")


def test_the_upgrade_is_an_ordinary_request_and_its_answer_may_come_in_pieces() -> None:
    assert mesh.upgrade_request("n:1").startswith(b"GET /v1/mesh HTTP/1.1\r\nHost: n:1\r\n")
    assert mesh.upgrade_request("n:1").endswith(b"\r\n\r\n")
    answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: imgdist-mesh\r\n\r\n"
    assert all(mesh.decode_upgrade(answer[:at]) is None for at in range(len(answer)))
    assert mesh.decode_upgrade(answer + b"frames") == len(answer)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 404 Not Found\r\n", b"SSH-2.0", b"HTTP/1.1 101 x\r\n" + b"a" * 4096])
def test_another_answer_than_the_upgrade_is_refused(answer: bytes) -> None:
    with pytest.raises(ProtocolError, match="expected an upgrade"):
        mesh.decode_upgrade(answer)


def test_the_newest_common_version_counts() -> None:
    def speaks(least: int, most: int) -> Hello:
        return Hello(least, most, NODE, "", "", "")

    assert mesh.agreed_version(speaks(1, 3), speaks(2, 5)) == 3
    with pytest.raises(ProtocolError, match="1 to 3 here, 4 to 5 there"):
        mesh.agreed_version(speaks(1, 3), speaks(4, 5))

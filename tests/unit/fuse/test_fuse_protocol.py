"""The FUSE codec: real requests, cut and random bytes, and replies as the kernel's structures have them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse import protocol
from fuse.protocol import Request
from imgdist.errors import ProtocolError

RESEND = 1 << 63


def request(opcode: int, body: bytes = b"", unique: int = 8, node: int = 5) -> bytes:
    """fuse_in_header (linux/fuse.h) and body."""
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, node, 0, 0, 77, 0, 0) + body


def read_body(offset: int, size: int) -> bytes:
    return struct.pack("=QQIIQII", 5, offset, size, 0, 0, 0, 0)


def test_parses_what_the_view_needs() -> None:
    assert protocol.parse_request(request(15, read_body(4096, 131072))) == Request(15, 8, 5, 4096, 131072)
    assert protocol.parse_request(request(1, b"a3\0", node=1)) == Request(1, 8, 1, name=b"a3")
    assert protocol.parse_request(request(36, struct.pack("=Q", 42))) == Request(36, 8, 5, target=42)
    assert protocol.parse_request(request(3, bytes(16))) == Request(3, 8, 5)


def test_resent_request_has_the_key_of_its_first_copy() -> None:
    first = protocol.parse_request(request(15, read_body(0, 4096)))
    again = protocol.parse_request(request(15, read_body(0, 4096), unique=8 | RESEND))
    assert again.unique == 8 | RESEND and again.key == first.key == 8
    assert struct.unpack("=IiQ", protocol.error_reply(again.unique, 5)) == (16, -5, 8 | RESEND)


@pytest.mark.parametrize("whole", [request(15, read_body(1, 2)), request(1, b"a\0"), request(36, bytes(8))])
def test_every_cut_is_a_protocol_error(whole: bytes) -> None:
    for length in range(len(whole)):
        with pytest.raises(ProtocolError):
            protocol.parse_request(whole[:length])
        lying = struct.pack("=I", length) + whole[4:length]
        if len(lying) == length and length >= 40:
            with pytest.raises(ProtocolError):
                protocol.parse_request(lying)


@given(st.binary(max_size=200), st.integers(0, 60))
def test_any_bytes_give_a_request_or_a_protocol_error(data: bytes, opcode: int) -> None:
    for candidate in (data, request(opcode, data)):
        try:
            parsed = protocol.parse_request(candidate)
            if parsed.opcode == protocol.INIT:
                protocol.parse_init(candidate)
        except ProtocolError:
            pass


@given(st.binary(min_size=64, max_size=256))
def test_slot_with_any_bytes_is_free_or_bounded(data: bytes) -> None:
    slot = memoryview(bytearray(data))
    try:
        held = protocol.slot_request(slot)
    except ProtocolError:
        held = b""
    assert held is None or len(held) <= len(slot)
    protocol.free_slot(slot)
    assert protocol.slot_request(slot) is None


def test_init_asks_for_parallel_direct_reads_and_no_writes() -> None:
    init = protocol.parse_init(request(26, struct.pack("=IIII", 7, 45, 131072, 0xFFFFFFFF) + bytes(48)))
    reply = protocol.init_reply(9, init)
    assert len(reply) == 16 + 64
    major, minor, ahead, flags, background, _, max_write = struct.unpack_from("=IIIIHHI", reply, 16)
    assert (major, minor, ahead, background, max_write) == (7, 38, 131072, 1024, 4096)
    assert flags == 1 << 0 | 1 << 15 | 1 << 18 | 1 << 22
    assert struct.unpack_from("=H", reply, 16 + 28) == (256,)
    modest = protocol.init_reply(9, protocol.Init(7, 31, 0, 1))
    assert struct.unpack_from("=IIII", modest, 16) == (7, 31, 0, 1)


@pytest.mark.parametrize("version", [(6, 45), (7, 30), (8, 0)])
def test_init_of_a_foreign_protocol_is_refused(version: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError, match=r"expected 7\.31"):
        protocol.parse_init(request(26, struct.pack("=IIII", *version, 0, 0)))


def test_entry_and_attributes() -> None:
    entry = protocol.entry_reply(3, 7, 8192)
    assert struct.unpack_from("=IiQ", entry) == (len(entry), 0, 3)
    assert len(entry) == 16 + 128
    assert struct.unpack_from("=Q", entry, 16) == (7,)
    ino, size, blocks = struct.unpack_from("=QQQ", entry, 16 + 40)
    assert (ino, size, blocks) == (7, 8192, 16)
    assert len(protocol.attr_reply(3, 1, 0)) == 16 + 104
    assert len(protocol.statfs_reply(3, 1, 1)) == 16 + 80
    assert len(protocol.open_reply(3, 7)) == 16 + 16


@given(st.lists(st.binary(min_size=1, max_size=13), max_size=40, unique=True), st.integers(64, 500))
def test_directory_read_in_pieces_is_the_whole_directory(names: list[bytes], size: int) -> None:
    entries = [(node, name) for node, name in enumerate(names, start=2)]
    seen, offset = [], 0
    while body := protocol.readdir_reply(1, entries, offset, size)[16:]:
        assert len(body) <= size
        while body:
            node, offset, length, _ = struct.unpack_from("=QQII", body)
            seen.append((node, body[24 : 24 + length]))
            body = body[24 + length + (-length) % 8 :]
    assert seen == [(1, b"."), (1, b".."), *entries]

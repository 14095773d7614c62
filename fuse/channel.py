"""Messages between the view and the agent, one per SOCK_SEQPACKET datagram. Pure: values <-> bytes.

Little-endian, first byte the type. `node` is a layer, `start`/`end`/`length` are bytes of its image. Decoding any
bytes raises ProtocolError only. Both sides speak the lower version of their two hellos.

Agent -> view: Hello (with the descriptor of the agent's ring), Add (with those of image and present map), Remove,
Synced (all layers are added), Ready (verified bytes stand in a ring buffer), Written (they stand in the image and are
marked present), Held (they stand in a ring buffer and will not be in the image: the disk is full), Fail. View -> agent:
Hello, Added, Removed, Miss, Ack (the ring buffer is free again), Touched, Failed, Lapsed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

from imgdist.errors import ProtocolError

VERSION = 2
OLDEST = 1
"""Knows neither Held nor Lapsed; its view hangs up on an agent whose hello says more."""
MESSAGE_MAX = 65536
"""Bytes of the longest message (a Touched of 3276 entries)."""
TOUCHED_MAX = 200
"""Entries of a Touched message: a trace reaches the agent while the start still runs, 200 reads at a time at most."""
NAME_MAX = 13
"""Bytes of a file name: a 64-bit node number in base 36."""

FAILURES = ("deadline", "source", "removed", "unknown_layer", "image", "table_full", "internal")
"""Why a read got an I/O error: no bytes until the deadline, the agent said that no source has them, its layer was
removed, it has none, the image could not be read, too many waited already, a fault in the view."""

RING_BUFFERS = 32
RING_BUFFER_SIZE = 256 * 1024
"""One chunk each (CHUNK_MAX)."""
RING_SIZE = RING_BUFFERS * RING_BUFFER_SIZE

_MAGIC = b"IVW"
_ERRNO_END = 512  # the kernel refuses a FUSE answer with a greater one
_HELLO = Struct("<B3sH")
_ADD = Struct("<BQQ")
_NODE = Struct("<BQ")
_ADDED = Struct("<BQI")
_READY = Struct("<BQQQI")
_RANGE = Struct("<BQQQ")
_FAIL = Struct("<BQQQI")
_MISS = Struct("<BQQI")
_ACK = Struct("<BI")
_TOUCH = Struct("<QQI")
_FAILED = Struct("<BBI")
_LAPSED = Struct("<BQQII")


class Hello(NamedTuple):
    """First message of both sides: the agent's newest version, then the one that the view will speak with it."""

    version: int = VERSION

    def encode(self) -> bytes:
        return _HELLO.pack(1, _MAGIC, self.version)


class Add(NamedTuple):
    """Show layer `node` of `size` bytes as file `name`; two descriptors come along: image, present map."""

    node: int
    size: int
    name: bytes

    def encode(self) -> bytes:
        return _ADD.pack(2, self.node, self.size) + self.name


class Remove(NamedTuple):
    """Forget layer `node`: its waiting reads fail with EIO, its descriptors are closed."""

    node: int

    def encode(self) -> bytes:
        return _NODE.pack(3, self.node)


class Synced(NamedTuple):
    """Every layer of this agent has been added: what is still unknown does not exist."""

    def encode(self) -> bytes:
        return b"\x04"


class Ready(NamedTuple):
    """Verified bytes [start, end) stand at the beginning of ring buffer `slot`; they may not be in the image yet."""

    node: int
    start: int
    end: int
    slot: int

    def encode(self) -> bytes:
        return _READY.pack(5, self.node, self.start, self.end, self.slot)


class Held(NamedTuple):
    """As Ready, of bytes that the disk did not take: a read that needs others besides keeps these until it has all.
    From version 2 on."""

    node: int
    start: int
    end: int
    slot: int

    def encode(self) -> bytes:
        return _READY.pack(15, self.node, self.start, self.end, self.slot)


class Written(NamedTuple):
    """Bytes [start, end) stand in the image and are marked present."""

    node: int
    start: int
    end: int

    def encode(self) -> bytes:
        return _RANGE.pack(6, self.node, self.start, self.end)


class Fail(NamedTuple):
    """Bytes [start, end) cannot be had now: reads that wait for them end with `errno`."""

    node: int
    start: int
    end: int
    errno: int

    def encode(self) -> bytes:
        return _FAIL.pack(7, self.node, self.start, self.end, self.errno)


class Added(NamedTuple):
    """Layer `node` can be opened (`errno` 0), or was refused."""

    node: int
    errno: int = 0

    def encode(self) -> bytes:
        return _ADDED.pack(8, self.node, self.errno)


class Removed(NamedTuple):
    """Layer `node` is gone."""

    node: int

    def encode(self) -> bytes:
        return _NODE.pack(9, self.node)


class Miss(NamedTuple):
    """A read of `length` bytes at `start` waits for bytes that are not all present."""

    node: int
    start: int
    length: int

    def encode(self) -> bytes:
        return _MISS.pack(10, self.node, self.start, self.length)


class Ack(NamedTuple):
    """The view is done with ring buffer `slot`."""

    slot: int

    def encode(self) -> bytes:
        return _ACK.pack(11, self.slot)


class Touched(NamedTuple):
    """Blocks read for the first time, in that order: (node, first block, blocks)."""

    entries: tuple[tuple[int, int, int], ...]

    def encode(self) -> bytes:
        return b"\x0c" + b"".join(_TOUCH.pack(*entry) for entry in self.entries)


class Failed(NamedTuple):
    """`reads` more were failed for `reason`, one of FAILURES; the view's log names them."""

    reason: str
    reads: int

    def encode(self) -> bytes:
        return _FAILED.pack(13, FAILURES.index(self.reason), self.reads)


class Lapsed(NamedTuple):
    """A read of `length` bytes at `start` failed at its deadline, after `waited_ms`: the agent logs it, as it knows
    what was tried. Also counted in Failed. From version 2 on."""

    node: int
    start: int
    length: int
    waited_ms: int

    def encode(self) -> bytes:
        return _LAPSED.pack(14, self.node, self.start, self.length, self.waited_ms)


Message = (
    Hello | Add | Remove | Synced | Ready | Held | Written | Fail | Added | Removed | Miss | Ack | Touched | Failed
    | Lapsed
)  # fmt: skip


def decode(data: bytes) -> Message:
    """The message that one datagram holds. Raises ProtocolError."""
    decoder = _DECODERS.get(data[0]) if data else None
    if decoder is None:
        raise ProtocolError(f"view channel: unknown message type {data[0] if data else 'of an empty datagram'}")
    try:
        return decoder(data)
    except struct.error as error:
        raise ProtocolError(f"view channel: message type {data[0]} of {len(data)} bytes: {error}") from None


def _hello(data: bytes) -> Hello:
    _, magic, version = _HELLO.unpack(data)
    if magic != _MAGIC:
        raise ProtocolError(f"view channel: expected a hello, the magic is {magic!r}")
    return Hello(version)


def _add(data: bytes) -> Add:
    _, node, size = _ADD.unpack_from(data)
    name = data[_ADD.size :]
    if node < 2 or size == 0 or size % 4096 or not 0 < len(name) <= NAME_MAX or {0, 47, 46} & set(name):
        raise ProtocolError(f"view channel: no layer can be node {node}, {size} bytes, {name!r}")
    return Add(node, size, name)


def _synced(data: bytes) -> Synced:
    if len(data) != 1:
        raise ProtocolError(f"view channel: expected a message of 1 byte, got {len(data)}")
    return Synced()


def _in_ring(data: bytes) -> tuple[int, int, int, int]:
    _, node, start, end, slot = _READY.unpack(data)
    if not 0 < end - start <= RING_BUFFER_SIZE or start % 4096 or end % 4096 or slot >= RING_BUFFERS:
        raise ProtocolError(f"view channel: no ring buffer {slot} holds bytes {start} to {end}")
    return node, start, end, slot


def _fail(data: bytes) -> Fail:
    _, node, start, end, number = _FAIL.unpack(data)
    if not 0 < number < _ERRNO_END:
        raise ProtocolError(f"view channel: a read cannot fail with errno {number}")
    return Fail(node, start, end, number)


def _touched(data: bytes) -> Touched:
    try:
        return Touched(tuple(_TOUCH.iter_unpack(data[1:])))
    except struct.error as error:
        raise ProtocolError(f"view channel: touched blocks: {error}") from None


def _failed(data: bytes) -> Failed:
    _, reason, reads = _FAILED.unpack(data)
    if reason >= len(FAILURES):
        raise ProtocolError(f"view channel: no read fails for reason {reason}")
    return Failed(FAILURES[reason], reads)


_DECODERS: dict[int, Callable[[bytes], Message]] = {
    1: _hello,
    2: _add,
    3: lambda data: Remove(_NODE.unpack(data)[1]),
    4: _synced,
    5: lambda data: Ready(*_in_ring(data)),
    6: lambda data: Written(*_RANGE.unpack(data)[1:]),
    7: _fail,
    8: lambda data: Added(*_ADDED.unpack(data)[1:]),
    9: lambda data: Removed(_NODE.unpack(data)[1]),
    10: lambda data: Miss(*_MISS.unpack(data)[1:]),
    11: lambda data: Ack(_ACK.unpack(data)[1]),
    12: _touched,
    13: _failed,
    14: lambda data: Lapsed(*_LAPSED.unpack(data)[1:]),
    15: lambda data: Held(*_in_ring(data)),
}

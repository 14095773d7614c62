"""What neighbouring agents tell each other: which swarms they are in, which chunks they have, who else is there.

One connection a pair, on the port that serves chunks: the opener sends `upgrade_request`, the other side answers 101
(RFC 9110, 7.8), then both send frames: u32 little-endian length, at most `FRAME_MAX`, and a message in msgpack, a list
that begins with the message's number. `Hello` comes first in both directions and may come again (the address was
learned meanwhile). A swarm is named by the sender's own number for the layer, given by `Open`. A reader ignores what a
message has beyond the fields it knows.

Nothing here does I/O. Decoders raise ProtocolError and nothing else; what they return is bounded and consistent.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, msgpack

from imgdist.errors import ProtocolError
from imgdist.wire.tracker import Peer

VERSION = 1
"""Version of the messages; `Hello` tells the span that its sender speaks."""
FRAME_MAX = 1 << 20
"""Bytes of a message."""
CHUNKS_MAX = 1 << 22
"""Chunks of a layer: 1 TiB in chunks of 256 KiB, or the bits of half a frame."""
PEERS_MAX = 24
NAME_MAX = 255

_HEAD_MAX = 4096
_LENGTH = struct.Struct("<I")
_TOKEN = re.compile(rb"\r\nimgdist-token: ([!-~]{1,100})\r\n", re.IGNORECASE)
_SWITCHING = b"HTTP/1.1 101 "

Node = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
"""A node's id: 16 random bytes in hex."""
ShownAddress = Annotated[str, Meta(max_length=NAME_MAX + 8)]
"""`host:port` as others reach it, or empty: nobody does."""
Short = Annotated[str, Meta(max_length=NAME_MAX, pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z")]
"""For people, in logs and terminals: without control characters."""
Swarm = Annotated[int, Meta(ge=0, lt=1 << 32)]
Count = Annotated[int, Meta(ge=0, le=CHUNKS_MAX)]
Layer = Annotated[str, Meta(pattern=r"\A(sha256-[0-9a-f]{64}-v[0-9]{1,5})?\Z")]
Pack = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]


class Hello(Struct, frozen=True, array_like=True, tag=1):
    """Who is there: versions spoken, node id, address of its chunks and mesh, zone, host name for people."""

    min: Annotated[int, Meta(ge=0)]
    max: Annotated[int, Meta(ge=0)]
    node: Node
    address: ShownAddress
    zone: Short
    name: Short


class Open(Struct, frozen=True, array_like=True, tag=2):
    """The sender is in this swarm; replaces what it said of it before.

    `layer` is the name before the seal, `pack` the pack id, empty before it; one of them is there. `count` is the
    number of chunks (known so far, before the seal). `have` is a bitmap, bit i of byte i // 8 from the lowest is chunk
    i, trailing zero bytes left out; empty if `complete`, which a sealed layer can be.
    """

    swarm: Swarm
    layer: Layer
    pack: Pack
    count: Count
    have: Annotated[bytes, Meta(max_length=CHUNKS_MAX // 8)] = b""
    complete: bool = False

    @property
    def bits(self) -> int:
        """The chunks it has, bit i for chunk i."""
        return (1 << self.count) - 1 if self.complete else int.from_bytes(self.have, "little")


class Sealed(Struct, frozen=True, array_like=True, tag=3):
    """The conversion of a swarm's layer has ended: its pack id and its chunks."""

    swarm: Swarm
    pack: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    count: Count


class Have(Struct, frozen=True, array_like=True, tag=4):
    """Chunks that the sender got since it last said: `numbers` is u32 little-endian each. See `have`."""

    swarm: Swarm
    numbers: bytes

    @property
    def chunks(self) -> array[int]:
        """The numbers, each below CHUNKS_MAX; at least one."""
        return _host_order(array("I", self.numbers))


class Close(Struct, frozen=True, array_like=True, tag=5):
    """The sender has left this swarm: it neither serves nor wants its chunks any more."""

    swarm: Swarm


class Peers(Struct, frozen=True, array_like=True, tag=6):
    """Others the sender is connected with, as the tracker tells of them; none to show that it lives."""

    members: Annotated[tuple[Peer, ...], Meta(max_length=PEERS_MAX)] = ()


class Bye(Struct, frozen=True, array_like=True, tag=7):
    """The sender closes in order: it has enough neighbours, or stops. No sign of trouble."""


Message = Hello | Open | Sealed | Have | Close | Peers | Bye

_decoder = msgpack.Decoder(Message)
_encoder = msgpack.Encoder()


def open_bits(swarm: int, layer: str, pack: str, count: int, bits: int) -> Open:
    """An `Open` from a bitmap as an integer."""
    if pack and bits == (1 << count) - 1:
        return Open(swarm, layer, pack, count, b"", True)
    return Open(swarm, layer, pack, count, bits.to_bytes((bits.bit_length() + 7) // 8, "little"))


def have(swarm: int, chunks: Iterable[int]) -> Have:
    """A `Have` from chunk numbers."""
    return Have(swarm, _host_order(array("I", chunks)).tobytes())


def _host_order(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def encode(message: Message) -> bytes:
    """A message with its length before it."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes | bytearray | memoryview) -> Message:
    """A message without its length."""
    try:
        message: Message = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"mesh message: {error}") from None
    if isinstance(message, Have):
        _check_have(message)
    elif isinstance(message, Open):
        _check_open(message)
    elif isinstance(message, Hello) and message.min > message.max:
        raise ProtocolError(f"mesh hello: expected versions from the lesser on, got {message.min} to {message.max}")
    return message


def _check_have(message: Have) -> None:
    if not message.numbers or len(message.numbers) % 4:
        raise ProtocolError(f"mesh have: expected numbers of 4 bytes, got {len(message.numbers)} bytes")
    if (last := max(message.chunks)) >= CHUNKS_MAX:
        raise ProtocolError(f"mesh have: expected chunks below {CHUNKS_MAX}, got {last}")


def _check_open(message: Open) -> None:
    if not message.layer and not message.pack:
        raise ProtocolError("mesh open: expected the name of a layer or a pack")
    if message.complete and (message.have or not message.pack):
        raise ProtocolError("mesh open: only a sealed layer is complete, and without a bitmap")
    if len(message.have) > (message.count + 7) // 8 or message.bits >> message.count:
        raise ProtocolError(f"mesh open: expected a bitmap of {message.count} chunks, got {len(message.have)} bytes")


class FrameDecoder:
    """Cuts a connection's bytes into messages, however they are split."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Take bytes, return the messages they complete. After a ProtocolError the connection cannot go on."""
        view = memoryview(self._rest + bytes(data) if self._rest else data)
        messages: list[Message] = []
        start = 0
        while (end := _end(view, start)) is not None:
            messages.append(decode(view[start + _LENGTH.size : end]))
            start = end
        self._rest = bytes(view[start:])
        return messages


def _end(view: memoryview, start: int) -> int | None:
    """Where the message that begins at `start` ends, None while it is not whole."""
    if len(view) - start < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(view, start)
    if not 0 < length <= FRAME_MAX:
        raise ProtocolError(f"mesh frame: expected 1 to {FRAME_MAX} bytes, got {length}")
    end = start + _LENGTH.size + int(length)
    return end if end <= len(view) else None


def upgrade_request(host: str, token: str = "") -> bytes:
    """What the opener of a connection sends to `host` ("name:port") first; `token` proves that it is a node."""
    lines = ["GET /v1/mesh HTTP/1.1", f"Host: {host}", "Connection: Upgrade", "Upgrade: imgdist-mesh"]
    if token:
        lines.append(f"Imgdist-Token: {token}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def decode_upgrade(data: bytes | bytearray) -> int | None:
    """The size in bytes of the answer's head, frames follow; None while it is incomplete. ProtocolError: refused."""
    end = data.find(b"\r\n\r\n")
    if not _SWITCHING.startswith(data[: len(_SWITCHING)]) or (end < 0 and len(data) > _HEAD_MAX):
        raise ProtocolError(f"mesh: expected an upgrade of the connection, got {bytes(data[:80])!r}")
    return end + 4 if end >= 0 else None


def answered_token(head: bytes | bytearray) -> str:
    """By what the other side's answer proves that it is a node, "" for nothing."""
    match = _TOKEN.search(head)
    return match[1].decode("ascii") if match else ""


def agreed_version(mine: Hello, other: Hello) -> int:
    """The newest version that both speak. ProtocolError if there is none."""
    version = min(mine.max, other.max)
    if version < max(mine.min, other.min):
        spans = f"{mine.min} to {mine.max} here, {other.min} to {other.max} there"
        raise ProtocolError(f"mesh: no version in common, {spans}: bring both to releases one apart at most")
    return version

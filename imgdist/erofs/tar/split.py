"""The tar-split stream: what a layer's tar holds beside the bytes that the layer image keeps, so that both restore it.

Format (little endian): magic `IMGDSPLT`, u32 version 0, then records until the stream ends:
    1, u32 n, n bytes                      these bytes (headers, padding, small files, what follows the archive's end)
    2, u64 offset, u64 n                   n bytes of the layer image from `offset` on (a file's data)
Literal bytes are cut every 64 KiB, so the stream depends on the tar alone, not on how it was fed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Protocol

from imgdist.errors import CorruptError, ProtocolError

MAGIC = b"IMGDSPLT"
VERSION = 0
_HEAD = Struct("<8sI")
_LITERAL = Struct("<BI")
_IMAGE = Struct("<BQQ")
_LENGTH, _PLACE = Struct("<I"), Struct("<QQ")  # of the two, what follows the type
_LITERAL_MAX = 64 * 1024
_READ_MAX = 1 << 20


class SplitWriter:
    """Encodes the stream and hands it to `emit` in pieces; `emit` None: counts nothing, keeps nothing."""

    def __init__(self, emit: Callable[[bytes], None] | None) -> None:
        self._emit = emit
        self._literal = bytearray()
        self._out = bytearray(_HEAD.pack(MAGIC, VERSION))

    def literal(self, piece: bytes | memoryview) -> None:
        """Append bytes of the tar that the image does not hold."""
        if self._emit is None:
            return
        self._literal += piece
        if len(self._literal) >= _LITERAL_MAX:
            self._cut(_LITERAL_MAX)

    def image(self, offset: int, length: int) -> None:
        """Append `length` bytes of the tar that stand in the image at byte `offset`."""
        if self._emit is None or not length:
            return
        self._cut(1)
        self._out += _IMAGE.pack(2, offset, length)

    def finish(self) -> None:
        """Hand out what is left."""
        self._cut(1)
        self._flush(1)

    def _cut(self, least: int) -> None:
        literal, out = self._literal, self._out
        while len(literal) >= least:
            if len(literal) <= _LITERAL_MAX:  # nearly always: without a copy
                out += _LITERAL.pack(1, len(literal))
                out += literal
                literal.clear()
            else:
                out += _LITERAL.pack(1, _LITERAL_MAX)
                out += memoryview(literal)[:_LITERAL_MAX]
                del literal[:_LITERAL_MAX]
        if len(out) >= _LITERAL_MAX:
            self._flush(_LITERAL_MAX)

    def _flush(self, least: int) -> None:
        if self._emit is not None and len(self._out) >= least:
            self._emit(bytes(self._out))
            self._out.clear()


class SplitStream(Protocol):
    """Where a stream is read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; fewer before the end, too; none at the end."""


def reassemble(stream: SplitStream, read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """Yield the exact tar from its split stream, in pieces of at most 1 MiB; `read(offset, n)` returns n bytes of the
    layer image. Holds one record at a time.

    Raises:
        ProtocolError: the stream is none, of another version, or cut short.
        CorruptError: `read` returned fewer bytes than asked for.
    """
    head = _whole(stream, _HEAD.size)
    if len(head) < _HEAD.size or _HEAD.unpack(head) != (MAGIC, VERSION):
        raise ProtocolError(f"tar-split stream: expected {MAGIC!r} version {VERSION}, saw {head!r}")
    while kind := stream.read(1):
        if kind == b"\1":
            yield _literal(stream)
        elif kind == b"\2":
            yield from _of_image(stream, read)
        else:
            raise ProtocolError(f"tar-split stream: unknown record {kind[0]}")


def _literal(stream: SplitStream) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if length > _LITERAL_MAX:
        raise ProtocolError(f"tar-split stream: a literal of {length} bytes, at most {_LITERAL_MAX} are allowed")
    return _exactly(stream, length)


def _of_image(stream: SplitStream, read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    offset, length = _PLACE.unpack(_exactly(stream, _PLACE.size))
    for start in range(offset, offset + length, _READ_MAX):
        want = min(_READ_MAX, offset + length - start)
        piece = read(start, want)
        if len(piece) != want:
            raise CorruptError(f"layer image: expected {want} bytes at {start}, got {len(piece)}")
        yield piece


def _exactly(stream: SplitStream, size: int) -> bytes:
    data = _whole(stream, size)
    if len(data) != size:
        raise ProtocolError("tar-split stream: cut short in a record")
    return data


def _whole(stream: SplitStream, size: int) -> bytes:
    """`size` bytes, or what is left."""
    data = stream.read(size)
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data

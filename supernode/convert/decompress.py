"""A compressed layer, told by its content, as pieces of the tar in it. Bounded in memory and in output.

What counts is what containerd accepts: gzip of several members with zero padding behind them, zstd of several and of
skippable frames, plain tar. Garbage behind the last member or frame and an early end are errors.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol, cast

import zstandard
from isal import igzip, isal_zlib

from imgdist.errors import CorruptError, DeclinedError
from imgdist.limits import Limits

PIECE = 512 * 1024
"""Most bytes of a piece. Measured: 128 KiB to 1 MiB decompress at the same speed; 512 KiB hand-overs to the hashing
thread switch contexts a third less often than 256 KiB, and 1 MiB gains little more."""
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_WINDOW_MAX = 1 << 27
"""Largest zstd window: 128 MiB, libzstd's own limit and what `zstd --ultra -22` makes."""
_GZIP_ERRORS = (EOFError, OverflowError, gzip.BadGzipFile, cast("type[Exception]", isal_zlib.IsalError))
"""OverflowError: a member's name, comment or extra field that is longer than isal's buffer of 512 KiB."""
_HEADER_MAX = 8
"""Most bytes of a zstd header that say how long what follows is: a skippable frame's."""


class Readable(Protocol):
    """Where a compressed layer comes from."""

    def read(self, size: int, /) -> bytes | None:
        """At most so many of the next bytes; none at the end."""


class LayerSource(io.RawIOBase):
    """The compressed bytes as they come: counts them, and follows zstd's frames, whose early end libzstd hides."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._head = b""
        self.received = 0
        self.frames: _ZstdFrames | None = None

    def peek(self, size: int) -> bytes:
        """The first `size` bytes (fewer at the end), which the next read returns again."""
        while len(self._head) < size and (data := self._source.read(size - len(self._head))):
            self._head += data
        return self._head

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._head[: len(view)] or self._source.read(len(view)) or b""
        self._head = self._head[len(data) :]
        view[: len(data)] = data
        self.received += len(data)
        if self.frames is not None:
            self.frames.feed(data)
        return len(data)


def pieces(source: LayerSource, limits: Limits) -> Iterator[bytes]:
    """The tar in `source`, in pieces of at most `PIECE` bytes.

    Raises `CorruptError` for bytes that do not decompress or end early, `DeclinedError` beyond `limits`.
    """
    head = source.peek(4)
    if head[:2] == _GZIP:
        stream = _gunzip(source)
    elif head == _ZSTD or (head[1:] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        stream = _unzstd(source, limits.records)
    else:
        stream = iter(lambda: source.read(PIECE) or b"", b"")
    produced = 0
    for piece in stream:
        produced += len(piece)
        if produced > limits.tar_bytes:
            raise DeclinedError(f"layer expands to more than {limits.tar_bytes} bytes, the limit for conversion")
        if produced > limits.free_bytes + limits.expansion * source.received:
            raise DeclinedError(
                f"layer expands to {produced} bytes from {source.received}, "
                f"more than {limits.expansion}-fold: it looks like a decompression bomb"
            )
        yield piece


def _gunzip(source: LayerSource) -> Iterator[bytes]:
    stream: BinaryIO = igzip.open(source)  # type: ignore[no-untyped-call]
    try:
        while piece := stream.read(PIECE):
            yield piece
    except _GZIP_ERRORS as error:
        raise CorruptError(f"layer is not whole gzip data: {error}") from error


def _unzstd(source: LayerSource, headers_max: int) -> Iterator[bytes]:
    source.frames = frames = _ZstdFrames(headers_max)
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
    stream = decompressor.stream_reader(
        cast("BinaryIO", source), read_size=PIECE, read_across_frames=True, closefd=False
    )
    try:
        while piece := stream.read(PIECE):
            yield piece
    except zstandard.ZstdError as error:
        if "Allocation error" in str(error):  # libzstd's words for it: a window of up to 128 MiB
            raise MemoryError from error
        raise CorruptError(f"layer is not zstd data: {error}") from error
    if not frames.at_boundary:
        raise CorruptError("layer is cut short inside a zstd frame")


class _ZstdFrames:
    """Follows frame and block headers (RFC 8878, section 3.1), to know whether the data ends where a frame does.

    It checks nothing else: what makes no sense here does not decompress either.
    """

    def __init__(self, headers_max: int) -> None:
        self._pending = b""  # of a header that is not whole yet
        self._skip = 0
        self._in_blocks = False
        self._checksum = 0
        self._headers_left = headers_max

    @property
    def at_boundary(self) -> bool:
        """Whether everything fed so far is whole frames."""
        return not (self._pending or self._skip or self._in_blocks)

    def feed(self, data: bytes) -> None:
        """Follow the next bytes (DeclinedError: more frames and blocks than is allowed)."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            held = len(self._pending)
            head = self._pending + data[at : at + _HEADER_MAX - held]
            used = self._block_header(head) if self._in_blocks else self._frame_header(head)
            if not used:
                self._pending = head
                return
            self._pending = b""
            at += used - held
            self._headers_left -= 1
            if self._headers_left < 0:
                raise DeclinedError("layer: more zstd frames and blocks than is allowed for conversion")

    def _frame_header(self, head: bytes) -> int:
        """Take a frame's header; its bytes, 0 if it is not whole."""
        if len(head) < 5:
            return 0
        if head[0] & 0xF0 == 0x50:
            if len(head) < _HEADER_MAX:
                return 0
            self._skip = int.from_bytes(head[4:], "little")
            return _HEADER_MAX
        descriptor = head[4]
        single, size_flag = descriptor >> 5 & 1, descriptor >> 6
        size_field = (single, 2, 4, 8)[size_flag]
        self._checksum = 4 * (descriptor >> 2 & 1)
        self._skip = (not single) + (0, 1, 2, 4)[descriptor & 3] + size_field
        self._in_blocks = True
        return 5

    def _block_header(self, head: bytes) -> int:
        """Take a block's header; its bytes, 0 if it is not whole."""
        if len(head) < 3:
            return 0
        header = int.from_bytes(head[:3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        self._skip = 1 if kind == 1 else size
        if last:
            self._skip += self._checksum
            self._in_blocks = False
        return 3

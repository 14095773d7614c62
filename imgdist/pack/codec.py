"""How a holder stores a chunk: a zstd frame, the raw bytes, or nothing for zeros. Private to holders, never identity.

The one module that knows the zstd library. Chunk bodies come from peers, so decoding is bounded before it starts:
one frame, content size stated and equal to what the index says, window no larger than that, no dictionary.
"""

from __future__ import annotations

import threading

import zstandard

from imgdist.errors import CorruptError, ProtocolError

RAW, ZSTD, ZERO = 0, 1, 2
LEVEL_FAST = 1
"""While a node waits. Measured: 330-400 MB/s a thread, 6 % larger than gzip -6."""
LEVEL_IDLE = 3
"""When re-packing idle. Measured: 230-290 MB/s, 3 % smaller than gzip -6."""
_SAVES_AT_LEAST = 0.03
_WINDOW_MIN = 1024
"""The smallest window that a zstd frame header can state (RFC 8878, 3.1.1.1.2)."""

_BLOCK_HEADER_BYTES, _RLE, _CHECKSUM_BYTES = 3, 1, 4

Body = bytes | bytearray | memoryview


class _PerThread(threading.local):
    """zstd contexts may not be shared by threads, and are costly to make."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        if level not in self.compressors:
            self.compressors[level] = zstandard.ZstdCompressor(level=level, write_dict_id=False)
        return self.compressors[level]


_contexts = _PerThread()
_decompressors: list[zstandard.ZstdDecompressor] = []
"""Those not in use, 160 KiB each. Not one a thread: an agent has sixteen threads that decode, hardly four at once."""


def is_zero(raw: Body) -> bool:
    """Whether every byte is zero."""
    return not raw[0] and bytearray(len(raw)) == raw if len(raw) else True


def encode(raw: Body, level: int = LEVEL_FAST) -> tuple[int, Body]:
    """(encoding, body) of a chunk. A RAW body is `raw` itself, not a copy; ZERO has an empty body."""
    if is_zero(raw):
        return ZERO, b""
    frame = _contexts.compressor(level).compress(raw)
    return (ZSTD, frame) if len(frame) <= len(raw) * (1 - _SAVES_AT_LEAST) else (RAW, raw)


def decode_into(encoding: int, body: Body, out: memoryview) -> None:
    """Write the chunk's raw bytes to `out`, a writable view of exactly the size that the index states.

    Raises `ProtocolError` for a body that no holder may send for such a chunk, `CorruptError` for one that does not
    decode. What `out` then holds is undefined. The digest is the caller's to check.
    """
    if encoding == RAW:
        if len(body) != len(out):
            raise ProtocolError(f"raw chunk body has {len(body)} bytes, expected {len(out)}")
        out[:] = body
    elif encoding == ZSTD:
        _check_frame(body, len(out))
        count = _decompress(body, out)
        if count != len(out):
            raise CorruptError(f"zstd chunk body decodes to {count} bytes, its header says {len(out)}")
    elif encoding == ZERO:
        if len(body):
            raise ProtocolError(f"all-zero chunk has a body of {len(body)} bytes, expected none")
        out[:] = bytes(len(out))
    else:
        raise ProtocolError(f"unknown chunk encoding {encoding}: expected 0 raw, 1 zstd or 2 zero")


def _decompress(frame: Body, out: memoryview) -> int:
    """Decode straight into `out`; returns how many bytes. The library does that in one step, without memory of its own,
    where all of the frame is there and room for all that it holds."""
    try:
        decompressor = _decompressors.pop()
    except IndexError:
        decompressor = zstandard.ZstdDecompressor()
    try:
        return decompressor.stream_reader(frame).readinto(out)
    except zstandard.ZstdError as error:
        raise CorruptError(f"zstd chunk body does not decode: {error}") from error
    finally:
        _decompressors.append(decompressor)


def _check_frame(body: Body, size: int) -> None:
    try:
        frame = zstandard.get_frame_parameters(body)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"chunk body has no zstd frame header: {error}") from error
    if frame.content_size != size:
        raise ProtocolError(f"zstd frame states {frame.content_size} bytes, the chunk has {size}")
    if frame.window_size > max(size, _WINDOW_MIN):
        raise ProtocolError(f"zstd frame wants a window of {frame.window_size} bytes for a chunk of {size}")
    if frame.dict_id:
        raise ProtocolError(f"zstd frame wants dictionary {frame.dict_id}, chunks have none")
    end = _frame_end(body) + _CHECKSUM_BYTES * frame.has_checksum
    if end != len(body):
        raise CorruptError(f"zstd chunk body has {len(body)} bytes, its frame ends at {end}")


def _frame_end(body: Body) -> int:
    """Where the last block of the frame at the start of `body` ends (RFC 8878, 3.1.1.2); of one that is cut, beyond."""
    at, is_last = zstandard.frame_header_size(body), 0
    while not is_last:
        header = int.from_bytes(body[at : at + _BLOCK_HEADER_BYTES], "little")
        is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
        at += _BLOCK_HEADER_BYTES + (1 if kind == _RLE else size)
        if at > len(body):
            break
    return at

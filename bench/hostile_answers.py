"""Answers that a hostile peer gives to requests for chunks: each lie as bytes to send and seconds to wait. Pure."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

from imgdist.pack import codec
from imgdist.pack.index import Index
from imgdist.wire.messages import BODY_MAX, FRAME_SIZE, Frame, encode_frame
from imgdist.wire.responses import encode_head

Script = Iterator[bytes | float]
"""What to send, and how many seconds to wait in between."""
Body = Callable[[int], tuple[int, bytes]]
"""(encoding, body) of a chunk as an honest holder has it."""
Lie = Callable[[Sequence[int], Index, Body], Script]

_SILENT_S = 3600.0
_TRICKLE_S = 1.0
_RLE_BLOCK = 128 << 10


def honest(numbers: Sequence[int], index: Index, body: Body) -> Script:
    """The truth."""
    return _framed(numbers, body)


def flipped(numbers: Sequence[int], index: Index, body: Body) -> Script:
    """Every chunk with one bit wrong, encoded as it should be."""

    def lie(number: int) -> tuple[int, bytes]:
        raw = bytearray(index.size(number))
        codec.decode_into(*body(number), memoryview(raw))
        raw[len(raw) // 2] ^= 1
        encoding, encoded = codec.encode(raw)
        return encoding, bytes(encoded)

    return _framed(numbers, lie)


def longer(numbers: Sequence[int], index: Index, body: Body) -> Script:
    """Bodies that are seven bytes too long, and say so."""

    def lie(number: int) -> tuple[int, bytes]:
        encoding, encoded = body(number)
        return encoding, encoded[: BODY_MAX - 7] + b"surplus"

    return _framed(numbers, lie)


def stale(numbers: Sequence[int], index: Index, body: Body) -> Script:
    """The next chunk's body under each number, as from a pack that was cut differently."""
    return _framed(numbers, lambda number: body((number + 1) % index.chunk_count))


def bomb(numbers: Sequence[int], index: Index, body: Body) -> Script:
    """zstd frames whose header states the right size, and that go on for gigabytes."""
    return _framed(numbers, lambda number: (codec.ZSTD, bomb_frame(index.size(number))))


def bomb_frame(size: int) -> bytes:
    """A single-segment frame (RFC 8878, 3.1.1) that claims `size` bytes: as many blocks of repeated bytes as fit."""
    head = struct.pack("<IBI", 0xFD2FB528, 0b1010_0000, size)
    block_size = min(size, _RLE_BLOCK)
    block = (block_size << 3 | 0b010).to_bytes(3, "little") + b"\0"
    blocks = (BODY_MAX - len(head)) // len(block)
    last = (block_size << 3 | 0b011).to_bytes(3, "little") + b"\0"
    return head + block * (blocks - 1) + last


def misframed(numbers: Sequence[int], index: Index, body: Body) -> Script:
    """An answer that promises what it must not: a body larger than any chunk's."""
    yield encode_head(200, FRAME_SIZE + (1 << 30))
    yield struct.pack("<IBxxxII", numbers[0], codec.RAW, 1 << 30, 1 << 30)
    yield bytes(1 << 16)


def cut(numbers: Sequence[int], index: Index, body: Body) -> Script:
    """Half of the first body, then the end of the connection."""
    encoding, encoded = body(numbers[0])
    yield encode_head(200, FRAME_SIZE + len(encoded))
    yield encode_frame(Frame(numbers[0], encoding, len(encoded), 0)) + encoded[: len(encoded) // 2]


def absent(numbers: Sequence[int], index: Index, body: Body) -> Script:
    """It said that it has them, and has none."""
    yield encode_head(404, 0)


def silent(numbers: Sequence[int], index: Index, body: Body) -> Script:
    """No answer, while the connection stays open."""
    yield _SILENT_S


def trickle(numbers: Sequence[int], index: Index, body: Body) -> Script:
    """The truth, a byte a second."""
    for piece in honest(numbers, index, body):
        assert isinstance(piece, bytes)
        for byte in piece:
            yield bytes([byte])
            yield _TRICKLE_S


LIES: dict[str, Lie] = {
    lie.__name__: lie for lie in (flipped, silent, stale, bomb, trickle, longer, absent, misframed, cut)
}
"""By name. Who gets which is the peer's choice."""


def _framed(numbers: Sequence[int], lie: Body) -> Script:
    bodies = [(number, *lie(number)) for number in numbers]
    yield encode_head(200, sum(FRAME_SIZE + len(encoded) for _, _, encoded in bodies))
    for number, encoding, encoded in bodies:
        yield encode_frame(Frame(number, encoding, len(encoded), 0)) + encoded

from __future__ import annotations

import gzip
import io
import random
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import CorruptError, DeclinedError
from imgdist.limits import Limits
from supernode.convert.decompress import PIECE, LayerSource, pieces

TAR = random.Random(1).randbytes(300_000) + bytes(500_000) + b"abc" * 100_000
GZIP = gzip.compress(TAR)
ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress(TAR)
_stream = zstandard.ZstdCompressor().compressobj()
ZSTD_UNKNOWN_SIZE = _stream.compress(TAR) + _stream.flush()
SKIPPABLE = b"\x51\x2a\x4d\x18\x05\0\0\0hello"


class Dribble(io.RawIOBase):
    """A pipe that gives what it has, a few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data, self._step = io.BytesIO(data), step

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, self._step))


def unpack(data: bytes, limits: Limits | None = None, step: int = 100_000) -> bytes:
    got = list(pieces(LayerSource(Dribble(data, step)), limits or Limits()))  # type: ignore[arg-type]
    assert all(0 < len(piece) <= PIECE for piece in got)
    return b"".join(got)


@pytest.mark.parametrize("step", [1 << 20, 1000, 7])
@pytest.mark.parametrize(
    ("data", "times"),
    [
        (TAR, 1),
        (GZIP, 1),
        (GZIP + GZIP, 2),
        (GZIP + bytes(1000), 1),
        (GZIP + bytes(10) + GZIP, 2),
        (ZSTD, 1),
        (ZSTD_UNKNOWN_SIZE, 1),
        (ZSTD + ZSTD_UNKNOWN_SIZE, 2),
        (SKIPPABLE + ZSTD + SKIPPABLE + SKIPPABLE + ZSTD + SKIPPABLE, 2),
        (b"", 0),
    ],
)
def test_layers_unpack_by_their_content(data: bytes, times: int, step: int) -> None:
    assert unpack(data, step=step) == TAR * times


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


@pytest.mark.parametrize(
    "data",
    [
        GZIP[:-1],
        GZIP[:-8],
        GZIP[:12],
        GZIP[: len(GZIP) // 2],
        GZIP + GZIP[:100],
        GZIP + b"garbage",
        flipped(GZIP, len(GZIP) - 6),
        flipped(GZIP, len(GZIP) - 2),
        ZSTD[:-1],
        ZSTD[:-4],
        ZSTD[:5],
        ZSTD[: len(ZSTD) // 2],
        ZSTD_UNKNOWN_SIZE[:-1],
        ZSTD_UNKNOWN_SIZE[:-3],
        ZSTD + ZSTD_UNKNOWN_SIZE[:9],
        ZSTD + SKIPPABLE[:-1],
        ZSTD + SKIPPABLE[:6],
        ZSTD + b"garb",
        ZSTD + b"garbage!",
        flipped(ZSTD, len(ZSTD) - 2),
    ],
)
def test_cut_or_altered_layers_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        unpack(data)


@given(st.integers(4, len(GZIP) - 1), st.sampled_from(["gzip", "zstd"]))
def test_no_cut_goes_unnoticed(end: int, kind: str) -> None:
    # Less than 4 bytes pass for a plain tar, which the tar reader then refuses.
    data = GZIP[:end] if kind == "gzip" else ZSTD[: min(end, len(ZSTD) - 1)]
    with pytest.raises(CorruptError):
        unpack(data)


def test_a_bomb_is_declined_by_its_ratio_and_in_bounded_memory() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(200 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(DeclinedError, match="200-fold"):
            for _ in pieces(LayerSource(io.BytesIO(bomb)), Limits(free_bytes=8 << 20)):
                pass
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_layer_beyond_the_size_limit_is_declined() -> None:
    assert unpack(GZIP, Limits(tar_bytes=len(TAR))) == TAR
    with pytest.raises(DeclinedError, match="more than"):
        unpack(GZIP, Limits(tar_bytes=len(TAR) - 1))


def test_a_window_beyond_libzstd_s_own_limit_is_corrupt() -> None:
    # No single segment, window descriptor 2**30, content size of 4 bytes, one empty last block.
    wide = b"\x28\xb5\x2f\xfd" + bytes((0b10_0_0_0_0_00, 20 << 3)) + (100).to_bytes(4, "little") + b"\x01\0\0"
    with pytest.raises(CorruptError, match="too much memory"):
        unpack(wide)


def test_more_zstd_frames_and_blocks_than_allowed_are_declined() -> None:
    block = b"\0\0\0"
    frames = SKIPPABLE * 40 + b"\x28\xb5\x2f\xfd\x00\x58" + block * 58 + b"\x01\0\0"
    assert unpack(frames, Limits(records=100)) == b""
    for step in (1000, 7):
        with pytest.raises(DeclinedError, match="zstd frames"):
            unpack(frames, Limits(records=99), step)


def test_a_gzip_name_that_never_ends_is_corrupt() -> None:
    with pytest.raises(CorruptError, match="gzip"):
        unpack(b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"n" * (1 << 20))

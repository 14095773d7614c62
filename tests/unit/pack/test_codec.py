from __future__ import annotations

import contextlib
import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import CorruptError, ProtocolError
from imgdist.pack import BLOCK, CHUNK_MAX, codec

TEXT = (b"all work and no play " * 400)[: 2 * BLOCK]
NOISE = random.Random(1).randbytes(BLOCK)


def decode(encoding: int, body: codec.Body, size: int) -> bytes:
    out = bytearray(b"\xaa" * size)
    codec.decode_into(encoding, body, memoryview(out))
    return bytes(out)


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [(TEXT, codec.ZSTD), (NOISE, codec.RAW), (bytes(CHUNK_MAX), codec.ZERO), (bytes(BLOCK - 1) + b"x", codec.ZSTD)],
)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("level", [codec.LEVEL_FAST, codec.LEVEL_IDLE])
def test_chunks_come_back(raw: bytes, encoding: int, kind: type, level: int) -> None:
    got, body = codec.encode(kind(raw), level)
    assert got == encoding
    assert decode(got, body, len(raw)) == raw


def test_raw_where_zstd_saves_less_than_three_percent() -> None:
    compressible = b"a" * 110
    assert codec.encode(compressible + NOISE[: BLOCK - 110])[0] == codec.RAW
    assert codec.encode(b"a" * 300 + NOISE[: BLOCK - 300])[0] == codec.ZSTD


def test_a_frame_states_its_size_and_a_window_within_the_chunk() -> None:
    for size in (BLOCK, 5 * BLOCK, CHUNK_MAX):
        _, body = codec.encode(b"ab" * (size // 2))
        frame = zstandard.get_frame_parameters(body)
        assert (frame.content_size, frame.dict_id) == (size, 0)
        assert frame.window_size <= size


def frame_of(raw: bytes, **options: int) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(raw)  # type: ignore[arg-type]


GOOD = frame_of(TEXT)
DICTIONARY = zstandard.ZstdCompressionDict(random.Random(2).randbytes(4096), dict_type=zstandard.DICT_TYPE_RAWCONTENT)


@pytest.mark.parametrize(
    ("encoding", "body", "error"),
    [
        (codec.RAW, TEXT[:-1], ProtocolError),
        (codec.RAW, TEXT + b"x", ProtocolError),
        (codec.ZERO, b"x", ProtocolError),
        (3, TEXT, ProtocolError),
        (codec.ZSTD, b"", ProtocolError),
        (codec.ZSTD, b"not zstd", ProtocolError),
        (codec.ZSTD, frame_of(TEXT + b"x"), ProtocolError),
        (codec.ZSTD, frame_of(bytes(1 << 30)), ProtocolError),
        (codec.ZSTD, zstandard.ZstdCompressor(write_content_size=False).compress(TEXT), ProtocolError),
        (codec.ZSTD, GOOD + b"x", CorruptError),
        (codec.ZSTD, GOOD + GOOD, CorruptError),
        (codec.ZSTD, GOOD[:-1], CorruptError),
        (codec.ZSTD, b"\x50\x2a\x4d\x18" + len(TEXT).to_bytes(4, "little") + TEXT, CorruptError),
    ],
)
def test_refused(encoding: int, body: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        decode(encoding, body, len(TEXT))


def test_a_window_larger_than_the_chunk_is_refused() -> None:
    # A frame header of our own: no single segment, window descriptor 2**23, content size of 4 bytes.
    wide = b"\x28\xb5\x2f\xfd" + bytes((0b10_0_0_0_0_00, 13 << 3)) + len(TEXT).to_bytes(4, "little")
    assert zstandard.get_frame_parameters(wide).window_size == 1 << 23
    with pytest.raises(ProtocolError, match="window of 8388608"):
        decode(codec.ZSTD, wide, len(TEXT))


def test_a_frame_with_a_dictionary_is_refused() -> None:
    header = b"\x28\xb5\x2f\xfd" + bytes((0b00_1_0_0_0_01, 7)) + b"\x20"
    with pytest.raises(ProtocolError, match="dictionary 7"):
        decode(codec.ZSTD, header.replace(b"\x20", b"\x40") + bytes(20), 0x40)


@given(encoding=st.integers(0, 4), body=st.binary(max_size=200), size=st.integers(0, 3).map(lambda n: n * BLOCK))
def test_nothing_but_our_errors_comes_out(encoding: int, body: bytes, size: int) -> None:
    with contextlib.suppress(ProtocolError, CorruptError):
        decode(encoding, body, size)


@given(at=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7), cut=st.integers(0, len(GOOD)))
def test_nothing_but_our_errors_comes_out_of_damaged_frames(at: int, bit: int, cut: int) -> None:
    damaged = bytearray(GOOD)
    damaged[at] ^= 1 << bit
    for body in (damaged, damaged[:cut]):
        with contextlib.suppress(ProtocolError, CorruptError):
            decode(codec.ZSTD, body, len(TEXT))


@given(st.binary(min_size=1, max_size=64), st.integers(1, 4))
def test_any_chunk_comes_back(pattern: bytes, blocks: int) -> None:
    raw = (pattern * (blocks * BLOCK))[: blocks * BLOCK]
    assert decode(*codec.encode(raw), len(raw)) == raw

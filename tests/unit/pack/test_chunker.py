"""Chunks: whole blocks, cut at file starts, the same whatever pieces the data comes in."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from imgdist.pack import BLOCK, CHUNK_MAX
from imgdist.pack.chunker import Chunker

_SIZES = st.lists(st.one_of(st.integers(1, 9000), st.integers(1, 700_000), st.just(CHUNK_MAX)), max_size=12)


def _chunks(sizes: list[int], piece: int, metadata: int = 0) -> tuple[list[int], list[tuple[bytes, bool]], int]:
    """Return (first block of each file, chunks, blocks of the image) of files filled with their own number."""
    found: list[tuple[bytes, bool]] = []
    chunker = Chunker(lambda raw, meta: found.append((bytes(raw), meta)))
    starts = []
    for number, size in enumerate(sizes):
        starts.append(chunker.begin_file(size))
        data = bytes([number % 255 + 1]) * size
        for at in range(0, size, piece):
            chunker.write(data[at : at + piece])
        chunker.end_file()
    chunker.begin_metadata()
    chunker.write(b"m" * metadata)
    return starts, found, chunker.finish()


@settings(max_examples=60, deadline=None)
@given(_SIZES, st.sampled_from([4096, 100_000, 1 << 20]), st.integers(0, 600_000))
def test_every_file_is_where_it_was_promised(sizes: list[int], piece: int, metadata: int) -> None:
    starts, chunks, blocks = _chunks(sizes, piece, metadata)
    image = bytes(BLOCK) + b"".join(raw for raw, _ in chunks)
    assert len(image) == blocks * BLOCK
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        padded = size + -size % BLOCK
        assert image[start * BLOCK : start * BLOCK + padded] == (bytes([number % 255 + 1]) * size).ljust(padded, b"\0")
    assert all(0 < len(raw) <= CHUNK_MAX and len(raw) % BLOCK == 0 for raw, _ in chunks)
    flags = [flag for _, flag in chunks]
    assert flags == sorted(flags), "metadata comes last"
    assert sum(len(raw) for raw, flag in chunks if flag) == metadata + -metadata % BLOCK


@settings(max_examples=40, deadline=None)
@given(_SIZES)
def test_cuts_fall_at_file_starts(sizes: list[int]) -> None:
    starts, chunks, _ = _chunks(sizes, 1 << 20)
    cuts = {1}
    for raw, _ in chunks:
        cuts.add(max(cuts) + len(raw) // BLOCK)
    files = dict(zip(starts, sizes, strict=True))
    for start, size in files.items():
        end = start + -(-size // BLOCK)
        if size >= CHUNK_MAX:
            expected = set(range(start, end, CHUNK_MAX // BLOCK)) | {end}
            assert cuts & set(range(start, end + 1)) == expected, "a large file has chunks of its own"
        else:
            assert not cuts & set(range(start + 1, end)), "a small file is in one chunk"
    groups = [raw for raw, _ in chunks]
    small = [len(raw) for raw in groups]
    if all(size < CHUNK_MAX for size in sizes):
        first = {sum(small[:number]) // BLOCK + 1: number for number in range(len(small))}
        for _, after in pairwise(sorted(first)):
            assert small[first[after] - 1] + files[after] + -files[after] % BLOCK > CHUNK_MAX, "groups are full"


def test_pieces_do_not_matter() -> None:
    sizes = [5, 70_000, 200_000, 600_000, 4096, CHUNK_MAX]
    assert _chunks(sizes, 777) == _chunks(sizes, 1 << 20)


def test_read_only_pieces_are_not_copied_and_others_are() -> None:
    found: list[memoryview] = []
    chunker = Chunker(lambda raw, _: found.append(raw))
    data = b"x" * (2 * CHUNK_MAX)
    chunker.begin_file(2 * len(data))
    chunker.write(data)
    assert found[1].obj is data
    buffer = bytearray(data)
    chunker.write(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert bytes(found[3]) == data[:CHUNK_MAX]


def test_holes() -> None:
    found: list[bytes] = []
    chunker = Chunker(lambda raw, _: found.append(bytes(raw)))
    chunker.begin_file(CHUNK_MAX * 3)
    chunker.write(b"a" * 100)
    chunker.zeros(CHUNK_MAX * 3 - 200)
    chunker.write(b"b" * 100)
    chunker.end_file()
    assert b"".join(found) == (b"a" * 100).ljust(CHUNK_MAX * 3 - 100, b"\0") + b"b" * 100
    assert [len(raw) for raw in found] == [CHUNK_MAX] * 3

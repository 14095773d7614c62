"""What every transport of the view owes its readers: the same suite over /dev/fuse itself and over libfuse."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from viewrig import ImageFile, Misses, Mounted, Readers, libfuse_view, raw_view, read_direct

from fuse.link import ViewLink
from imgdist.pack import BLOCK

SIZE = 2 << 20
CHUNK = 256 * 1024


class Bench:
    """One transport, one agent, two layers: one without any byte, one complete."""

    def __init__(self, directory: Path, mounted: Mounted) -> None:
        self.mounted, self.misses = mounted, Misses()
        self.link: ViewLink = mounted.link(self.misses)
        self.empty = ImageFile(directory, 2, random.Random(2).randbytes(SIZE))
        self.full = ImageFile(directory, 3, random.Random(3).randbytes(SIZE))
        self.full.fill_all()
        for image in (self.empty, self.full):
            image.show(self.link)

    def path(self, image: ImageFile) -> Path:
        return self.mounted.directory / image.name


@pytest.fixture(params=[raw_view, libfuse_view], ids=["raw", "libfuse"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with request.param(tmp_path, deadline_s=3.0) as mounted:
        bench = Bench(tmp_path, mounted)
        try:
            yield bench
        finally:
            bench.link.close()


def test_lists_and_describes_layers(bench: Bench) -> None:
    assert sorted(os.listdir(bench.mounted.directory)) == ["layer2", "layer3"]
    stat = os.stat(bench.path(bench.full))
    assert (stat.st_size, stat.st_mode & 0o777, stat.st_nlink) == (SIZE, 0o400, 1)
    assert os.statvfs(bench.mounted.directory).f_blocks == 2 * SIZE // BLOCK
    with pytest.raises(FileNotFoundError):
        os.stat(bench.mounted.directory / "layer4")
    with pytest.raises(OSError) as caught:
        os.open(bench.path(bench.full), os.O_RDWR)
    assert caught.value.errno == errno.EROFS


def test_hits_of_all_sizes_and_offsets(bench: Bench) -> None:
    sizes = [512, BLOCK, BLOCK + 512, 64 * 1024, 255 * BLOCK, 1 << 20, SIZE]
    offsets = [0, 512, BLOCK, CHUNK - BLOCK, SIZE - BLOCK, SIZE - 512, SIZE, SIZE + BLOCK]
    for size in sizes:
        for offset in offsets:
            expected = bench.full.content[offset : offset + size]
            assert read_direct(bench.path(bench.full), offset, size) == expected, (offset, size)
    assert bench.path(bench.full).read_bytes() == bench.full.content
    assert not bench.misses.all


def test_miss_is_answered_when_its_bytes_are_written(bench: Bench) -> None:
    readers = Readers(bench.path(bench.empty), [(CHUNK, BLOCK)])
    bench.misses.wait_for(lambda: bool(bench.misses.all))
    assert bench.misses.all == [(2, CHUNK, BLOCK)]
    assert bench.empty.present.parked == 1
    bench.empty.fill(CHUNK, 2 * CHUNK)
    bench.link.written(2, CHUNK, 2 * CHUNK)
    assert readers.join() == {(CHUNK, BLOCK): bench.empty.content[CHUNK : CHUNK + BLOCK]}
    assert bench.empty.present.parked == 0


def test_miss_is_answered_from_the_ring_before_anything_is_written(bench: Bench) -> None:
    """Reads that begin before, end behind and lie inside the chunk; what is outside comes from the image."""
    content = bench.empty.content
    bench.empty.fill(0, CHUNK)
    bench.empty.fill(2 * CHUNK, 3 * CHUNK)
    ranges = [(CHUNK - BLOCK, 3 * BLOCK), (CHUNK + BLOCK, BLOCK), (2 * CHUNK - BLOCK, 2 * BLOCK), (CHUNK, CHUNK)]
    readers = Readers(bench.path(bench.empty), ranges)
    bench.misses.wait_for(lambda: bench.empty.present.parked >= len(ranges))
    slot = bench.link.acquire_ring()
    assert slot is not None
    bench.link.ring(slot)[:CHUNK] = content[CHUNK : 2 * CHUNK]
    bench.link.ready(2, CHUNK, 2 * CHUNK, slot)
    assert readers.join() == {(at, size): content[at : at + size] for at, size in ranges}


def test_read_over_two_chunks_waits_for_both(bench: Bench) -> None:
    readers = Readers(bench.path(bench.empty), [(CHUNK - BLOCK, 2 * BLOCK)])
    bench.misses.wait_for(lambda: bool(bench.misses.all))
    for start in (0, CHUNK):
        slot = bench.link.acquire_ring()
        assert slot is not None
        bench.link.ring(slot)[:] = bench.empty.content[start : start + CHUNK]
        bench.link.ready(2, start, start + CHUNK, slot)
    assert not readers.results
    for start in (0, CHUNK):
        bench.empty.fill(start, start + CHUNK)
        bench.link.written(2, start, start + CHUNK)
    assert readers.join() == {
        (CHUNK - BLOCK, 2 * BLOCK): bench.empty.content[CHUNK - BLOCK : CHUNK + BLOCK],
    }


def test_failure_is_told_and_not_remembered(bench: Bench) -> None:
    readers = Readers(bench.path(bench.empty), [(0, BLOCK)])
    bench.misses.wait_for(lambda: bool(bench.misses.all))
    bench.link.fail(2, 0, CHUNK, errno.EIO)
    error = readers.join()[(0, BLOCK)]
    assert isinstance(error, OSError) and error.errno == errno.EIO
    bench.empty.fill(0, CHUNK)
    assert read_direct(bench.path(bench.empty), 0, BLOCK) == bench.empty.content[:BLOCK]


def test_read_without_a_source_ends_at_the_deadline(bench: Bench) -> None:
    started = time.monotonic()
    readers = Readers(bench.path(bench.empty), [(BLOCK, BLOCK)])
    error = readers.join()[(BLOCK, BLOCK)]
    assert isinstance(error, OSError) and error.errno == errno.EIO
    assert 2.9 <= time.monotonic() - started < 10
    bench.misses.wait_for(lambda: bool(bench.misses.failed))
    assert bench.misses.failed == [("deadline", 1)]


def test_removed_layer_ends_its_reads(bench: Bench) -> None:
    readers = Readers(bench.path(bench.empty), [(0, BLOCK)])
    bench.misses.wait_for(lambda: bool(bench.misses.all))
    bench.link.remove(2)
    error = readers.join()[(0, BLOCK)]
    assert isinstance(error, OSError) and error.errno == errno.EIO
    assert os.listdir(bench.mounted.directory) == ["layer3"]
    assert read_direct(bench.path(bench.full), 0, BLOCK) == bench.full.content[:BLOCK]


def test_first_touches_are_told_in_order_and_once(bench: Bench) -> None:
    for offset in (CHUNK, 0, CHUNK, 2 * CHUNK):
        read_direct(bench.path(bench.full), offset, 2 * BLOCK)
    bench.misses.wait_for(lambda: len(bench.misses.touched) >= 3)
    assert bench.misses.touched == [(3, 64, 2), (3, 0, 2), (3, 128, 2)]
    assert abs(bench.full.present.last_read_ns - time.monotonic_ns()) < 10e9


def test_random_fills_under_concurrent_reads(bench: Bench) -> None:
    """An agent that answers by ring or by file, at random: every read gets its own bytes."""
    rng = random.Random(7)

    def answer(node: int, start: int, length: int) -> None:
        first, last = start // CHUNK, (start + length - 1) // CHUNK
        for chunk in range(first, last + 1):
            low = chunk * CHUNK
            slot = bench.link.acquire_ring() if rng.random() < 0.5 else None
            if slot is not None:
                bench.link.ring(slot)[:] = bench.empty.content[low : low + CHUNK]
                bench.link.ready(2, low, low + CHUNK, slot)
            bench.empty.fill(low, low + CHUNK)
            bench.link.written(2, low, low + CHUNK)

    bench.misses.answer = answer
    ranges = [(rng.randrange(SIZE // BLOCK) * BLOCK, rng.randrange(1, 129) * BLOCK) for _ in range(60)]
    ranges = sorted(set(ranges), key=lambda _: rng.random())
    for result in [Readers(bench.path(bench.empty), ranges[at : at + 12]).join() for at in range(0, len(ranges), 12)]:
        for (offset, size), data in result.items():
            assert data == bench.empty.content[offset : offset + size], (offset, size)

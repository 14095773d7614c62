"""Prove one pack of a node: `python -m agent.proving.worker idle|soon DIRECTORY DESCRIPTOR` (imgdist.proving.worker).

What is read is the disk, not the page cache. DESCRIPTOR is an open file with the pack's tar-split stream, compressed,
read only if every chunk is here.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import zstandard

from agent.layerstore import from_disk
from fuse.present import PresentMap
from imgdist.errors import CorruptError, ImgdistError
from imgdist.pack import BLOCK, CHUNK_MAX
from imgdist.pack.index import Index
from imgdist.pack.kinds import Kind
from imgdist.proving.proof import PartialError, RottenError, SplitError, VerifiedImage, prove, prove_blob
from imgdist.proving.worker import Progress, report


def main(when: str, directory: Path, split_fd: int) -> int:
    """Look at the pack in `directory`. Returns the exit code."""

    def work(progress: Progress) -> None:
        index = Index.load((directory / "index").read_bytes())
        here = _here(directory, index)
        progress.expect = 2 * index.image_size if len(here) == index.chunk_count else sum(map(index.size, here))
        with from_disk(directory / "image") as descriptor:
            disk = _Disk(descriptor, index)
            disk.check_first_block()
            image = VerifiedImage(index, disk.chunk)
            image.check(progress.looked, here)
            if len(here) < index.chunk_count:
                raise PartialError(f"{len(here)} of {index.chunk_count} chunks are here, and are right")
            if index.kind is Kind.RAW:
                prove_blob(image, progress.looked)
            else:
                _prove(image, split_fd, progress)

    return report(when, work)


def _here(directory: Path, index: Index) -> list[int]:
    """Chunks that are present."""
    present = PresentMap.open(directory / "present")
    try:
        return [
            chunk
            for chunk in range(index.chunk_count)
            if not present.missing(index.start(chunk) // BLOCK, index.size(chunk) // BLOCK)
        ]
    finally:
        present.close()


def _prove(image: VerifiedImage, split_fd: int, progress: Progress) -> None:
    try:
        with os.fdopen(split_fd, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as split:
            prove(image, split, progress.looked)
    except (SplitError, zstandard.ZstdError) as error:  # the supernode's, which is to look for itself
        raise ImgdistError(f"tar-split stream of its supernode: {error}") from error


class _Disk:
    """A layer image, read past the page cache as far as the file system lets us: into memory aligned for that."""

    def __init__(self, descriptor: int, index: Index) -> None:
        self._descriptor = descriptor
        self._index = index
        self._buffer = memoryview(mmap.mmap(-1, CHUNK_MAX))

    def chunk(self, number: int) -> bytes:
        """The bytes of a chunk."""
        return self._read(self._index.start(number), self._index.size(number))

    def check_first_block(self) -> None:
        """RottenError unless block 0, which no chunk has, is what the index says."""
        if self._read(0, BLOCK) != self._index.block0():
            raise RottenError(f"block 0 of pack {self._index.pack_id.hex()} is not what its index says")

    def _read(self, offset: int, size: int) -> bytes:
        raw = self._buffer[:size]
        count = os.preadv(self._descriptor, [raw], offset)
        if count != size:
            raise CorruptError(f"{count} bytes at {offset}, expected {size}")
        return bytes(raw)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))

"""Chunks of a layer that is still being converted: taken while its index grows, kept when the seal comes.

The digests of an index that is not sealed yet are a claim; a chunk that matches its own is safe to keep and to give to
a peer, and the seal later says that it belongs to this layer. Nothing of it is mounted before.
"""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path

from blake3 import blake3

from agent.frames import Frames
from agent.imagefile import ImageFile
from agent.layerstore import LayerStore
from imgdist.errors import CorruptError
from imgdist.pack.index import Index, IndexFollower

GROWTH_BYTES = 64 << 20
"""The most disk space that is taken ahead of what is known, otherwise as much again: 16 extents a GiB (a guess)."""


class GrowingIndex:
    """The chunk table of an index, as far as the store has made room for it: what transfers ask of an index."""

    def __init__(self, follower: IndexFollower) -> None:
        self.follower = follower
        self.chunk_count = 0

    def size(self, chunk: int) -> int:
        """Raw bytes of a chunk."""
        return self.follower.chunk(chunk)[1]

    def start(self, chunk: int) -> int:
        """Offset of a chunk in the image."""
        return self.follower.chunk(chunk)[0]

    def digest(self, chunk: int) -> bytes:
        """BLAKE3-256 of a chunk's raw bytes."""
        return self.follower.chunk(chunk)[2]

    def is_zero(self, chunk: int) -> bool:
        """Whether the chunk is all zeros."""
        return self.follower.chunk(chunk)[3]

    def is_metadata(self, chunk: int) -> bool:
        """Whether the chunk holds file-system metadata."""
        return self.follower.is_metadata(chunk)

    def chunks_between(self, start: int, end: int) -> range:
        """None: nobody reads an image that has no seal."""
        return range(0)


class EarlyStore:
    """Verified chunks of one layer before its seal, where they will be in its image. Several threads write, each chunk
    by one at a time; one at a time calls `grow`.

    `name` is the layer's on the wire, `node` a number that no layer of the view has.
    """

    is_proven = True
    """Written in this process's life: the page cache vouches for it."""

    def __init__(self, directory: Path, name: str, node: int, follower: IndexFollower) -> None:
        """Make the directory. OSError if that fails."""
        self.directory = directory
        self.name = name
        self.node = node
        self.index = GrowingIndex(follower)
        self.received: Counter[str] = Counter()
        self.frames: Frames | None = None
        """As LayerStore's."""
        self._here: set[int] = set()
        self._reserved = 0
        directory.mkdir()
        self.image = ImageFile(directory / "image", new=True)

    @property
    def image_fd(self) -> int:
        """Descriptor of the image, within `use`."""
        return self.image.fd

    def use(self) -> AbstractContextManager[bool]:
        """Keep the descriptors open within the block; False if they are closed already (then touch nothing)."""
        return self.image.use()

    def grow(self) -> list[int]:
        """Make room for what the index has by now; returns the new chunks whose bytes are wanted. OSError if the disk
        has no room."""
        first, count = self.index.chunk_count, self.index.follower.chunk_count
        if count == first:
            return []
        end = self.index.start(count - 1) + self.index.size(count - 1)
        with self.use() as usable:
            if usable and end > self._reserved:
                self._reserved = end + min(end, GROWTH_BYTES)
                self.image.reserve(self._reserved)
        zeros = {chunk for chunk in range(first, count) if self.index.is_zero(chunk)}
        self._here |= zeros
        self.index.chunk_count = count
        return [chunk for chunk in range(first, count) if chunk not in zeros]

    def has(self, chunk: int) -> bool:
        """Whether the chunk's verified bytes are in the image."""
        return chunk in self._here

    def verify(self, chunk: int, raw: memoryview) -> None:
        """Raise CorruptError unless `raw` is this chunk's bytes."""
        if blake3(raw).digest() != self.index.digest(chunk):
            raise CorruptError(f"chunk {chunk} of layer {self.name}: its bytes do not match its digest")

    def write(self, chunk: int, raw: memoryview, *, direct: bool = False) -> None:
        """As LayerStore's, but that nothing is marked on the disk."""
        self.image.write(raw, self.index.start(chunk), direct=direct)
        left = len(raw)
        while left > 0:
            self._here.add(chunk)
            left -= self.index.size(chunk)
            chunk += 1

    def share(self, chunk: int, other: LayerStore, other_chunk: int) -> bool:
        """As LayerStore's."""
        source, start, size = other.index.start(other_chunk), self.index.start(chunk), self.index.size(chunk)
        if not self.image.share(other.image_fd, source, size, start):
            return False
        self._here.add(chunk)
        return True

    @property
    def count(self) -> int:
        """Chunks that are here, those of zeros included."""
        return len(self._here)

    @property
    def size_bytes(self) -> int:
        """What they are together."""
        return sum(self.index.size(chunk) for chunk in tuple(self._here))

    def landed_of(self, index: Index) -> list[int]:
        """Those that a sealed index has at the same place."""
        mine, count = self.index, index.chunk_count
        return [
            chunk
            for chunk in sorted(self._here)
            if chunk < count and (mine.start(chunk), mine.digest(chunk)) == (index.start(chunk), index.digest(chunk))
        ]

    def close(self) -> None:
        """Wait for users, give the descriptors back, remove what nobody has taken over."""
        self.image.close()
        shutil.rmtree(self.directory, ignore_errors=True)

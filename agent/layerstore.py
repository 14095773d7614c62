"""One layer's image on an agent's disk: `index`, `image`, `present`, `node` in a directory named by the pack id."""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from blake3 import blake3

from agent.database import node_name
from agent.frames import Frames
from agent.imagefile import ImageFile
from fuse.present import PresentMap
from imgdist.errors import CorruptError, ImgdistError, TemporaryError
from imgdist.pack import BLOCK, CHUNK_MAX
from imgdist.pack.index import Index

_log = logging.getLogger("imgdist.agent")

_NOBODY = "0" * 36  # no boot's id


class LayerStore:
    """One layer's image on disk, growing chunk by chunk. Several threads write, each chunk by one at a time.

    Bytes are written before they are marked, so after kill -9 the map is true (same boot). `complete` and `close` sync
    image, then map, then set the clean flag, so that any boot may trust them.

    The map's boot id says whose page cache vouches for bytes that were never synced. It is nobody's once a sync has
    failed: Linux reports that once, marks the pages clean and may drop them, so that the next sync succeeds over bytes
    that never reached the disk. `prove` alone, which reads the disk itself, makes such an image trusted again.
    """

    def __init__(
        self, directory: Path, index: Index, node: int, present: PresentMap, image: ImageFile, boot_id: str
    ) -> None:
        self.directory = directory
        self.index = index
        self.node = node
        self.present = present
        self._boot_id = boot_id
        self.received: Counter[str] = Counter()
        """Bytes that came in since this process began, by kind of source (for people: not exact under races)."""
        self.frames: Frames | None = None
        """Where chunks are kept as they came, for other agents; None: nowhere."""
        self._image = image
        self._syncing = threading.Lock()
        self._settled = False

    @classmethod
    def lay_out(
        cls,
        directory: Path,
        index: Index,
        index_data: bytes,
        boot_id: str,
        image: ImageFile,
        landed: Iterable[int] = (),
    ) -> PresentMap:
        """Make the files of a new pack in `directory`, which has its `image` and nothing of the rest. Block 0, zero
        chunks and those that have `landed` in the image, verified, are present."""
        write_new(directory / "index", index_data)
        image.reserve(index.image_size)  # before the layer is mounted
        os.ftruncate(image.fd, index.image_size)
        image.write(memoryview(index.block0()), 0)
        present = PresentMap.create(directory / "present", index.image_size // BLOCK, boot_id)
        present.mark(0, 1)
        zeros = (chunk for chunk in range(index.chunk_count) if index.is_zero(chunk))
        for chunk in (*zeros, *landed):
            present.mark(index.start(chunk) // BLOCK, index.size(chunk) // BLOCK)
        return present

    @property
    def name(self) -> str:
        """The layer's file in the view, and its mount point's name."""
        return node_name(self.node)

    @property
    def pack_id(self) -> bytes:
        """The pack's identity; in hex the name of its directory and its name on the wire."""
        return self.index.pack_id

    @property
    def image_fd(self) -> int:
        """Descriptor of the image, within `use`."""
        return self._image.fd

    def use(self) -> AbstractContextManager[bool]:
        """Keep the descriptors open within the block; False if they are closed already (then touch nothing)."""
        return self._image.use()

    def has(self, chunk: int) -> bool:
        """Whether the chunk's verified bytes are in the image."""
        return not self.present.missing(self.index.start(chunk) // BLOCK, self.index.size(chunk) // BLOCK)

    def missing_chunks(self) -> list[int]:
        """Numbers of the chunks that are not present."""
        if self.present.all_present():
            return []
        return [chunk for chunk in range(self.index.chunk_count) if not self.has(chunk)]

    def verify(self, chunk: int, raw: memoryview) -> None:
        """Raise CorruptError unless `raw` is this chunk's bytes."""
        if blake3(raw).digest() != self.index.digest(chunk):
            raise CorruptError(f"chunk {chunk} of pack {self.pack_id.hex()}: its bytes do not match its digest")

    def write(self, chunk: int, raw: memoryview, *, direct: bool = False) -> None:
        """Put the verified bytes of a chunk, or of several from this one on, into the image and mark them present.
        `direct`, as ImageFile.write has it, is for bytes that nobody is about to read."""
        start = self.index.start(chunk)
        self._image.write(raw, start, direct=direct)
        self.present.mark(start // BLOCK, len(raw) // BLOCK)

    def share(self, chunk: int, other: LayerStore, other_chunk: int) -> bool:
        """As `write`, of bytes that were just verified in another pack's image, which is in use: both have the same
        blocks on the disk then. False where that cannot be, and nothing was done."""
        source, start, size = other.index.start(other_chunk), self.index.start(chunk), self.index.size(chunk)
        if not self._image.share(other.image_fd, source, size, start):
            return False
        self.present.mark(start // BLOCK, size // BLOCK)
        return True

    def read_into(self, chunk: int, out: memoryview) -> None:
        """Read a present chunk's bytes into `out`, which has exactly its size. Unverified: the disk may rot."""
        self._read(self.image_fd, chunk, out)

    def _read(self, image: int, chunk: int, out: memoryview) -> None:
        count = os.preadv(image, [out], self.index.start(chunk))
        if count != len(out):
            raise CorruptError(
                f"image of pack {self.pack_id.hex()}: {count} bytes of chunk {chunk}, expected {len(out)}"
            )

    @property
    def is_complete(self) -> bool:
        """Whether every chunk is present."""
        return self.present.all_present()

    @property
    def is_settled(self) -> bool:
        """Whether the pack is durable, as `settle` makes it."""
        return self._settled or self.present.clean

    @staticmethod
    def settle(stores: Iterable[LayerStore]) -> None:
        """Make packs of one directory durable without their images' bytes: from now on they are here after a power cut,
        and what is lost of them is found by their indexes. To be done before anybody is promised the layers. OSError if
        the disk refuses."""
        # Without the lock, which `complete` has while all of an image goes to the disk: nothing but names is synced.
        unsettled = [store for store in dict.fromkeys(stores) if not store.is_settled]
        for store in unsettled:
            store._sync_own_names()
        if unsettled:
            _sync_path(unsettled[0].directory.parent, os.fsync)
        for store in unsettled:
            store._settled = True

    def complete(self) -> None:
        """Make a full image durable, once: from now on any boot trusts it unseen.

        OSError if the disk refuses; ImgdistError if the image is not complete, or is not any more: bytes that an
        earlier failure took from it are found and cleared now.
        """
        with self._syncing:
            if not self.is_complete:
                raise ImgdistError(f"pack {self.pack_id.hex()} is not complete")
            if self.present.clean:
                return
            self._prove()
            if not self.is_complete:
                raise ImgdistError(f"pack {self.pack_id.hex()} lost bytes to a failing disk: fetch them again")
            self._sync()

    def close(self) -> None:
        """Wait for users, sync what is there, so that a reboot need not hash it, and give the descriptors back. What is
        not proven stays so: a stop does not wait for hashing."""
        self._image.retire()
        try:
            if self.is_proven and not self.present.clean:
                self._sync()
        finally:
            self._release(clean=True)

    def abandon(self) -> None:
        """As `close`, without syncing: the directory is being removed."""
        self._image.retire()
        self._release(clean=False)

    @property
    def is_proven(self) -> bool:
        """Whether somebody vouches for what is marked present: the disk, or this boot's page cache."""
        return self.present.clean or self.present.boot_id == self._boot_id

    def begin(self) -> None:
        """At open: begin this boot's record over a clean one that is not complete. `prove` what is not proven."""
        if self.present.clean and not self.is_complete:
            self._begin_record()

    def prove(self) -> None:
        """Hash what is present unless it is proven, clearing what is wrong: after an unclean stop of the machine, or a
        failed sync. TemporaryError if the store is closed meanwhile, OSError if the disk refuses: nothing is proven
        then."""
        with self._syncing:
            self._prove()

    def _prove(self) -> None:
        if not self.is_proven:
            os.fdatasync(self.image_fd)  # what is dirty yet; what no sync will write any more is found now
            self._verify_present()
            self._begin_record()

    def _begin_record(self) -> None:
        # On disk before the first new mark can get there: a later power cut must not find `clean` over torn bytes.
        self.present.clean = False
        self.present.boot_id = self._boot_id
        self._sync_map()

    def _verify_present(self) -> None:
        buffer = memoryview(mmap.mmap(-1, CHUNK_MAX))
        kept = lost = 0
        with self.use() as usable, from_disk(self.directory / "image") as image:
            for chunk in range(self.index.chunk_count):
                if not usable or self._image.retired:
                    raise TemporaryError(f"pack {self.pack_id.hex()}: the agent is stopping, it is hashed later")
                first, count = self.index.start(chunk) // BLOCK, self.index.size(chunk) // BLOCK
                if self.present.missing(first, count):
                    self.present.clear(first, count)
                    continue
                raw = buffer[: self.index.size(chunk)]
                try:
                    self._read(image, chunk, raw)
                    self.verify(chunk, raw)
                    kept += 1
                except (CorruptError, OSError):
                    self.present.clear(first, count)
                    lost += 1
            self._image.write(memoryview(self.index.block0()), 0)
            self.present.mark(0, 1)
        _log.warning(
            "pack %s was left by an unclean stop of the machine, or a failed sync: %d chunks verified on disk,"
            " %d to be fetched again",
            self.pack_id.hex(), kept, lost,
        )  # fmt: skip

    def _release(self, *, clean: bool) -> None:
        if self.frames is not None:
            self.frames.close(clean)
        self.present.close()
        self._image.close()

    def _sync(self) -> None:
        """Make what is present, and proven, durable and say so."""
        try:
            os.fdatasync(self.image_fd)
            self._sync_names()
            self.present.clean = True
            self._sync_map()
        except OSError:
            self.present.clean = False
            self.present.boot_id = _NOBODY  # in the map, as an agent that is killed must not forget it either
            raise

    def _sync_names(self) -> None:
        """Once: from then on a power cut leaves the pack its name, index and map."""
        if not self._settled:
            self._sync_own_names()
            _sync_path(self.directory.parent, os.fsync)
            self._settled = True

    def _sync_own_names(self) -> None:
        self._sync_map()
        for path in (self.directory / "index", self.directory):
            _sync_path(path, os.fsync)

    def _sync_map(self) -> None:
        # Not msync(2): Python keeps its lock during that, and readers would wait for the disk.
        _sync_path(self.directory / "present", os.fdatasync)


@contextlib.contextmanager
def from_disk(path: Path) -> Iterator[int]:
    """A descriptor that reads the disk and not the page cache, as far as the file system lets it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes) -> None:
    """Make a small file, or write it anew; half the system calls of Path.write_bytes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def _sync_path(path: Path, sync: Callable[[int], None]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)

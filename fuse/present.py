"""The present map of a layer image: which 4 KiB blocks hold verified bytes. Shared by agent (writes) and view (reads).

File layout, little-endian: [0:8] magic, [8:12] u32 version, [12:16] u32 clean flag, [16:52] boot id (ASCII),
[64:72] u64 CLOCK_MONOTONIC ns of the last read (written by the view), [72:80] u64 reads parked now (written by the
view); from byte 4096 on one byte a block, 1 = present. A byte a block lets the view test a read with one `find`.
"""

from __future__ import annotations

import errno
import mmap
import os
from struct import Struct

from imgdist.errors import CorruptError, NewerFormatError

HEADER_SIZE = 4096

_MAGIC = b"IMGDPRES"
_VERSION = 1
_HEADER = Struct("<8sII36s")
_CLEAN = Struct("<I")
_CLEAN_OFFSET = 12
_LAST_READ_WORD, _PARKED_WORD = 64 // 8, 72 // 8
_BOOT_ID_SIZE = 36
_STAT_BLOCK = 512  # unit of st_blocks, stat(2)


def current_boot_id() -> str:
    """This boot's id, 36 characters: the page cache that vouches for unsynced bytes is this boot's."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


class PresentMap:
    """A mapped present map of `blocks` blocks. Marking is idempotent; each block turns present once and stays so."""

    def __init__(self, fd: int) -> None:
        """Map the open file `fd` (read-write; it may be closed afterwards). Raises CorruptError, NewerFormatError."""
        size = os.fstat(fd).st_size
        if size < HEADER_SIZE:
            raise CorruptError(f"present map: expected at least {HEADER_SIZE} bytes, the file has {size}")
        self._map = mmap.mmap(fd, size)
        magic, version, _, _ = _HEADER.unpack_from(self._map)
        if magic == _MAGIC and version > _VERSION:
            raise NewerFormatError(f"present map: version {version}, this release reads {_VERSION}")
        if (magic, version) != (_MAGIC, _VERSION):
            raise CorruptError(
                f"present map: expected {_MAGIC!r} version {_VERSION}, found {magic!r} version {version}"
            )
        self.blocks = size - HEADER_SIZE
        # One aligned 8-byte store each: the agent never reads half a time stamp.
        self._words = memoryview(self._map)[:HEADER_SIZE].cast("Q")

    @classmethod
    def create(cls, path: str | os.PathLike[str], blocks: int, boot_id: str) -> PresentMap:
        """Make the map of a new image, nothing present, not clean.

        Raises FileExistsError; OSError (ENOSPC) if the disk is full, and then leaves no file.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _allocate(fd, path, HEADER_SIZE + blocks)
            os.pwrite(fd, _HEADER.pack(_MAGIC, _VERSION, 0, boot_id.encode("ascii")), 0)
            return cls(fd)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PresentMap:
        """Open an existing map. Raises CorruptError, FileNotFoundError; OSError (ENOSPC) if it is sparse (a copy,
        say) and the disk too full to change that."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if status.st_blocks * _STAT_BLOCK < status.st_size:
                _allocate(fd, path, status.st_size)
            return cls(fd)
        finally:
            os.close(fd)

    def mark(self, first: int, count: int) -> None:
        """Blocks [first, first + count) hold verified bytes, already written to the image."""
        self._check(first, count)
        start = HEADER_SIZE + first
        self._map[start : start + count] = b"\1" * count

    def clear(self, first: int, count: int) -> None:
        """Blocks [first, first + count) are not to be trusted (found corrupt, or unproven after an unclean boot)."""
        self._check(first, count)
        start = HEADER_SIZE + first
        self._map[start : start + count] = bytes(count)

    def missing(self, first: int, count: int) -> bool:
        """Whether any block of [first, first + count) is absent; blocks beyond the end do not count."""
        start = HEADER_SIZE + first
        return self._map.find(b"\0", start, start + count) >= 0

    def all_present(self) -> bool:
        """Whether the image is complete."""
        return self._map.find(b"\0", HEADER_SIZE) < 0

    def count(self) -> int:
        """Blocks present."""
        return self._map[HEADER_SIZE:].count(1)

    @property
    def boot_id(self) -> str:
        """The boot under which blocks were last marked."""
        return bytes(self._map[16 : 16 + _BOOT_ID_SIZE]).rstrip(b"\0").decode("ascii", "replace")

    @boot_id.setter
    def boot_id(self, boot_id: str) -> None:
        self._map[16 : 16 + _BOOT_ID_SIZE] = boot_id.encode("ascii").ljust(_BOOT_ID_SIZE, b"\0")

    @property
    def clean(self) -> bool:
        """Whether image and map were synced together, so that any boot may trust them."""
        return bool(_CLEAN.unpack_from(self._map, _CLEAN_OFFSET)[0])

    @clean.setter
    def clean(self, clean: bool) -> None:
        _CLEAN.pack_into(self._map, _CLEAN_OFFSET, int(clean))

    @property
    def last_read_ns(self) -> int:
        """CLOCK_MONOTONIC of the last read through the view, 0 if there was none."""
        return self._words[_LAST_READ_WORD]

    @last_read_ns.setter
    def last_read_ns(self, now_ns: int) -> None:
        self._words[_LAST_READ_WORD] = now_ns

    @property
    def parked(self) -> int:
        """Reads that wait for bytes in the view now."""
        return self._words[_PARKED_WORD]

    @parked.setter
    def parked(self, count: int) -> None:
        self._words[_PARKED_WORD] = count

    def close(self) -> None:
        """Unmap. The map must not be used afterwards."""
        self._words.release()
        self._map.close()

    def _check(self, first: int, count: int) -> None:
        if first < 0 or count < 0 or first + count > self.blocks:
            raise ValueError(f"present map of {self.blocks} blocks: no blocks {first} to {first + count}")


def _allocate(fd: int, path: str | os.PathLike[str], size: int) -> None:
    """Give every byte its place on disk: a store into a mapped hole that the disk has no room for ends in SIGBUS."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = f"{os.strerror(error.errno)}: a present map takes {size} bytes; free some space"
        raise OSError(error.errno, reason, os.fspath(path)) from None

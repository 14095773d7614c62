"""A block file whose writes and flushes are recorded: `python -m faults.recorder MOUNTPOINT DISK LOG`.

MOUNTPOINT/disk shows the file DISK; a loop device over it (direct I/O) is a disk with a volatile write cache: its
flushes arrive as fsync. Text written to MOUNTPOINT/mark goes into the record, too, in the same order. One thread.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WRITE, FLUSH, MARK = range(3)
_HEADER = struct.Struct("<BQI")


@dataclass(frozen=True, slots=True)
class Entry:
    """A write of `data` at `offset`, a flush of all writes before it, or a mark (`data` is its text)."""

    kind: int
    offset: int
    data: bytes


def entries(log: Path) -> Iterator[Entry]:
    """What was recorded, in order."""
    with log.open("rb") as file:
        while header := file.read(_HEADER.size):
            kind, offset, size = _HEADER.unpack(header)
            yield Entry(kind, offset, file.read(size))


class Operations:
    """As mfusepy calls them."""

    def __init__(self, disk: str, log: str) -> None:
        self._disk = os.open(disk, os.O_RDWR)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._size = os.fstat(self._disk).st_size

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        if path not in ("/disk", "/mark"):
            raise OSError(errno.ENOENT, "")
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": self._size if path == "/disk" else 0}

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(self._disk, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if path == "/mark":
            self._record(MARK, 0, data)
            return len(data)
        self._record(WRITE, offset, data)
        return os.pwrite(self._disk, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return 0  # of `mark`, when it is opened for writing

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        if path == "/disk":
            self._record(FLUSH, 0, b"")
        return 0

    def _record(self, kind: int, offset: int, data: bytes) -> None:
        os.write(self._log, _HEADER.pack(kind, offset, len(data)) + data)


def main() -> None:
    """Serve until unmounted."""
    import mfusepy

    class Recorder(Operations, mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

    mountpoint, disk, log = sys.argv[1:]
    options = {"big_writes": True} if mfusepy.fuse_version_major == 2 else {}
    mfusepy.FUSE(Recorder(disk, log), mountpoint, foreground=True, nothreads=True, fsname="recorder", **options)


if __name__ == "__main__":
    main()

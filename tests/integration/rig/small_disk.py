"""A disk that a test can fill: ext4 on a file, mounted through a loop device."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parts import require

from imgdist.demo.processes import command

_PIECE = 1 << 20


class SmallDisk:
    """Mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Leave not a block."""
        with open(self._filler, "ab", buffering=0) as file:
            size = _PIECE
            while size >= 512:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    size //= 2
        assert self.free_bytes < 4096

    def relieve(self) -> None:
        """Take away what filled it."""
        self._filler.unlink()

    @property
    def free_bytes(self) -> int:
        """What a process may still write."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """Ext4 of `size_bytes` at `path`, which is made; its file lies beside it."""
    require(os.geteuid() == 0 and Path("/dev/loop-control").exists(), "root and loop devices")
    require(shutil.which("mkfs.ext4"), "mkfs.ext4 (Debian: e2fsprogs)")
    path.mkdir(parents=True)
    file = path.with_suffix(".ext4")
    with open(file, "wb") as disk:
        disk.truncate(size_bytes)
    command("mkfs.ext4", "-q", "-m", "0", "-N", "4096", str(file))
    command("mount", "-o", "loop", str(file), str(path))
    try:
        yield SmallDisk(path)
    finally:
        if os.path.ismount(path):
            command("umount", str(path))

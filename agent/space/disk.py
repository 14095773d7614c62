"""What the disk says: what a directory takes, what loop devices show, whether an error means that it is full."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from pathlib import Path

from imgdist.loopdevices import devices

_FULL = (errno.ENOSPC, errno.EDQUOT)
_BLOCK = 512  # unit of st_blocks, stat(2)


def is_full(error: BaseException) -> bool:
    """Whether the error says that there is no space left, also in SQLite's words."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in _FULL


def directory_bytes(directory: Path, *, without: str = "") -> int:
    """What a directory and the files in it take (as du(1) counts), except the file called `without`."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        total = os.lstat(directory).st_blocks * _BLOCK
        for entry in os.scandir(directory):
            if entry.name != without:
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat(follow_symlinks=False).st_blocks * _BLOCK
    return total


def shown_by_loops(packs: Path) -> set[str]:
    """Ids of the packs below `packs` whose image a loop device shows, in whatever mount namespace."""
    here = os.path.realpath(packs)
    found = set()
    for device in devices():
        directory, _, name = device.file.rpartition("/")
        above, _, pack_id = directory.rpartition("/")
        if name == "image" and above == here:
            found.add(pack_id)
    return found

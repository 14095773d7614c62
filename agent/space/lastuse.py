"""When a pack was last used: the modification time of its file `node`, which nothing else changes after it is made."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_FILE = "node"


def note(directory: Path) -> None:
    """The pack was in use until now. One that is gone, or a disk that refuses, is no error: it counts as older."""
    with contextlib.suppress(OSError):
        os.utime(directory / _FILE)


def last_use(directory: Path) -> float:
    """Seconds since 1970; 0 if nothing is known."""
    try:
        return os.stat(directory / _FILE).st_mtime
    except OSError:
        return 0.0

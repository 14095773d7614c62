"""Cold and warm page cache, so that both sides of a comparison start alike."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def drop() -> None:
    """Write dirty pages back and drop page cache, dentries and inodes of the whole machine. Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def warm(paths: Iterable[Path]) -> int:
    """Read files, and files below directories, into the page cache; the number of bytes."""
    total = 0
    for path in paths:
        files = (Path(top) / name for top, _, names in os.walk(path) for name in names) if path.is_dir() else (path,)
        for file in files:
            if file.is_file() and not file.is_symlink():
                total += _read(file)
    return total


def _read(file: Path) -> int:
    size = 0
    with file.open("rb", buffering=0) as stream:
        while piece := stream.read(1 << 20):
            size += len(piece)
    return size

"""The directories of snapshots: ROOT/snapshots/<number>/{fs,work}, as containerd's overlayfs snapshotter has them."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.snapshotter.model import Usage
from agent.snapshotter.mounts import Place

log = logging.getLogger("imgdist.snapshotter")

_STAGING = "new-"
_RUBBISH = "gone-"


class Directories:
    """Owns everything below `root`. A directory is made under a name of its own and renamed when its row is written,
    so that one without a row is always rubbish."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staged: set[str] = set()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def place(self, number: int) -> Place:
        """Paths of the snapshot's own files."""
        directory = self.root / str(number)
        return Place(upper=str(directory / "fs"), work=str(directory / "work"))

    @contextlib.contextmanager
    def staged(self, *, work: bool) -> Iterator[Path]:
        """A fresh directory with `fs` (0755) and, for overlayfs' own use, `work`; gone afterwards unless adopted."""
        directory = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.root))
        self._staged.add(directory.name)
        try:
            (directory / "fs").mkdir(mode=0o755)
            (directory / "fs").chmod(0o755)  # whatever the umask
            if work:
                (directory / "work").mkdir(mode=0o711)
            yield directory
        finally:
            self._staged.discard(directory.name)
            if directory.exists():
                shutil.rmtree(directory)

    def adopt(self, directory: Path, number: int) -> None:
        """Give a staged directory to the snapshot of that number. The last step before its row is committed: if that
        fails, the number is given again, and what stands there by then is rubbish."""
        target = self.root / str(number)
        if target.exists():
            self._set_aside(target)
        directory.rename(target)

    def make(self, number: int, *, work: bool) -> None:
        """Make an empty directory for a snapshot that has lost its own, or what is missing of it."""
        place = self.place(number)
        if not os.path.isdir(self.root / str(number)):
            with self.staged(work=work) as directory:
                self.adopt(directory, number)
        for path, mode, is_wanted in ((place.upper, 0o755, True), (place.work, 0o711, work)):
            if is_wanted and not os.path.isdir(path):
                os.mkdir(path)
                os.chmod(path, mode)

    def rubbish(self, wanted: Iterable[int]) -> list[Path]:
        """Directories that are neither wanted nor just being made, under names that no snapshot will ever have."""
        keep = {str(number) for number in wanted} | self._staged
        found = [Path(entry.path) for entry in os.scandir(self.root) if entry.name not in keep]
        return [self._set_aside(path) for path in found]

    def _set_aside(self, directory: Path) -> Path:
        if directory.name.startswith(_RUBBISH):
            return directory
        return directory.rename(self.root / f"{_RUBBISH}{directory.name}-{uuid.uuid4().hex[:8]}")

    def missing(self, wanted: Iterable[int]) -> list[int]:
        """Numbers of snapshots whose directory is not there."""
        return [number for number in wanted if not os.path.isdir(self.place(number).upper)]

    def has_work(self, number: int) -> bool:
        """Whether overlayfs has its own directory there."""
        return os.path.isdir(self.place(number).work)


def remove(directory: Path) -> bool:
    """Remove a tree; False (and a warning) if something in it resists, to be tried again."""
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        log.warning("cannot remove snapshot directory %s yet: %s", directory, error)
        return False
    return True


def usage(directory: str) -> Usage:
    """Allocated bytes and inodes of a tree, hard links counted once; what vanishes meanwhile counts nothing."""
    seen: set[tuple[int, int]] = set()
    size_bytes = 0
    pending = [directory]
    while pending:
        path = pending.pop()
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            size_bytes += status.st_blocks * 512
            if stat.S_ISDIR(status.st_mode):
                pending.extend(entry.path for entry in os.scandir(path))
    return Usage(size_bytes, len(seen))

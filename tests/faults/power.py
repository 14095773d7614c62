"""A disk that loses its power: what a node wrote is recorded, and any moment of it made again as a disk of its own.

A write that was flushed is there after the cut. Of those since the last flush each may be there, or not, or the first
sectors of it: whatever the disk's cache had passed on.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from faults import recorder
from faults.recorder import MARK, WRITE, Entry
from parts import require

from imgdist.demo import leftovers
from imgdist.demo.processes import Process, command, wait_until

_SIZE_BYTES = 160 << 20
_SECTOR = 512
_TOP = Path(__file__).parents[2]
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Recording:
    """An ext4 file system at `root` on a disk that is recorded; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.blank, self._log = directory / "blank", directory / "log"
        self._directory = directory
        self._parts = ExitStack()

    def __enter__(self) -> Recording:
        require(os.geteuid() == 0 and Path("/dev/loop-control").exists(), "root and loop devices")
        require(shutil.which("mkfs.ext4"), "mkfs.ext4")
        require(shutil.which("fusermount3") or shutil.which("fusermount"), "libfuse")
        shown, disk = self._directory / "shown", self._directory / "disk"
        for path in (shown, self.root):
            path.mkdir(parents=True)
        with disk.open("wb") as file:
            file.truncate(_SIZE_BYTES)
        command("mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", disk)
        command("cp", "--sparse=always", disk, self.blank)
        self._mark = shown / "mark"
        environment = {**os.environ, "PYTHONPATH": f"{_TOP}:{_TOP / 'tests'}"}
        argv = [sys.executable, "-m", "faults.recorder", shown, disk, self._log]
        try:
            serving = Process("recorder", argv, self._directory / "recorder.log", env=environment)
            self._parts.callback(serving.stop)
            serving.wait_until(lambda: os.path.ismount(shown))
            self._parts.callback(leftovers.unmount_below, shown)
            self._parts.enter_context(_mounted(shown / "disk", self.root, direct=True))
        except BaseException:
            self._parts.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    def mark(self, text: str) -> None:
        """From here on this holds, whatever is lost."""
        self._mark.write_text(text)

    def entries(self) -> list[Entry]:
        """All that was recorded."""
        return list(recorder.entries(self._log))


@dataclass(frozen=True)
class Cut:
    """The power fails after so many entries of the record; `fate` says what becomes of writes that were not flushed:
    "lost", "kept", or "torn" (each by chance)."""

    at: int
    fate: str

    def __str__(self) -> str:
        return f"{self.at}-{self.fate}"


def cuts(entries: Sequence[Entry], count: int, rng: random.Random) -> list[Cut]:
    """Moments to look at, in order: a third just after a flush or a mark (what it promised must hold), a third just
    before one (the most is at stake), the others wherever it hits; the last one at the end."""
    edges = [number for number, entry in enumerate(entries, 1) if entry.kind != WRITE]
    first = next(number for number, entry in enumerate(entries, 1) if entry.kind == MARK)
    chosen = {len(entries)}
    later = [edge for edge in edges if edge > first]
    while len(chosen) < min(count, len(entries) - first):
        after, before, anywhere = rng.choice(later), rng.choice(later) - 1, rng.randrange(first, len(entries))
        chosen.add(rng.choice((after, before, anywhere)))
    return [Cut(at, rng.choice(("lost", "kept", "torn", "torn"))) for at in sorted(chosen)]


def crashed(
    blank: Path, entries: Sequence[Entry], cuts: Sequence[Cut], place: Path, rng: random.Random
) -> Iterator[tuple[Cut, Path, list[str]]]:
    """For each cut a disk as it leaves one, to be used before the next, and the marks made before it. `cuts` ascend."""
    marks: list[str] = []
    done = 0
    command("cp", "--sparse=always", blank, place / "durable")
    with (place / "durable").open("r+b", buffering=0) as durable:
        pending: list[Entry] = []
        for cut in cuts:
            for entry in entries[done : cut.at]:
                if entry.kind == WRITE:
                    pending.append(entry)
                elif entry.kind == MARK:
                    marks.append(entry.data.decode())
                else:
                    _apply(durable.fileno(), pending)
                    pending.clear()
            done = cut.at
            disk = place / f"disk-{cut}"
            command("cp", "--sparse=always", place / "durable", disk)
            with disk.open("r+b", buffering=0) as file:
                _apply(file.fileno(), _survivors(pending, cut.fate, rng))
            yield cut, disk, list(marks)
            disk.unlink()


def _apply(disk: int, writes: Sequence[Entry]) -> None:
    for write in writes:
        os.pwrite(disk, write.data, write.offset)


def _survivors(writes: Sequence[Entry], fate: str, rng: random.Random) -> list[Entry]:
    if fate != "torn":
        return list(writes) if fate == "kept" else []
    left = []
    for write in writes:
        sectors = len(write.data) // _SECTOR
        kept = rng.choice((0, sectors, rng.randrange(sectors + 1)))
        left.append(Entry(WRITE, write.offset, write.data[: kept * _SECTOR]))
    return left  # in order: of two that overlap the later one wins, if it is there at all


@contextmanager
def mounted(disk: Path, root: Path) -> Iterator[None]:
    """The file system of a disk that was cut; its journal is replayed as at any mount."""
    with _mounted(disk, root, direct=False):
        yield


@contextmanager
def _mounted(disk: Path, root: Path, *, direct: bool) -> Iterator[None]:
    direct_io = f"--direct-io={'on' if direct else 'off'}"
    device = command("losetup", "--find", "--show", direct_io, disk).strip()
    try:
        command("mount", "-t", "ext4", "-o", "commit=1", device, root)
        try:
            yield
        finally:
            wait_until(lambda: _unmounts(root), f"{root} unmounted")
    finally:
        command("losetup", "--detach", device)
        wait_until(lambda: not leftovers.loops_below(disk.parent), f"no loop device of {disk} left")  # of no one else's


def _unmounts(root: Path) -> bool:
    return subprocess.run(["umount", root], capture_output=True, check=False).returncode == 0


@contextmanager
def boot(boot_id: str, directory: Path) -> Iterator[None]:
    """Processes of this mount namespace that look see another boot than the machine's."""
    file = directory / f"boot-{boot_id}"
    file.write_text(f"{boot_id}\n")
    command("mount", "--bind", file, _BOOT_ID)
    try:
        yield
    finally:
        command("umount", _BOOT_ID)
        file.unlink()

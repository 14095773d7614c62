"""What processes leave in the kernel when they are gone: mounts, loop devices, shims. Found by path, undone here."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from imgdist.demo.processes import command, wait_until
from imgdist.errors import ImgdistError

_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def mounts_below(directory: Path) -> list[Path]:
    """Mount points at or below `directory`, the newest first (the order in which they can be unmounted)."""
    top = os.path.realpath(directory)
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # proc(5): the fifth field, blanks and backslashes as \ooo.
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split(" ")[4])
        if point == top or point.startswith(top + "/"):
            found.append(Path(point))
    return found[::-1]


def unmount_below(directory: Path) -> list[Path]:
    """Unmount all of it; lazily, so that a hung server below cannot hang us. What was mounted."""
    points = mounts_below(directory)
    for point in points:
        _libc.umount2(os.fsencode(point), _MNT_DETACH)
    return points


def loops_below(directory: Path) -> list[str]:
    """Loop devices ("/dev/loop7") whose backing file lies below `directory`."""
    top = os.path.realpath(directory) + "/"
    found = []
    for file in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        try:
            backing = file.read_text().strip()
        except OSError:
            continue  # detached since the listing
        if backing.startswith(top):
            found.append(f"/dev/{file.parts[3]}")
    return found


def detach_loops_below(directory: Path) -> list[str]:
    """Detach them (a device still mounted somewhere goes when it is unmounted). The devices."""
    devices = loops_below(directory)
    for device in devices:
        try:
            command("losetup", "--detach", device)
        except ImgdistError:
            continue  # it went by itself: autoclear after the unmount
    return devices


def processes_with(*words: str) -> list[int]:
    """Pids whose command line holds all `words` as whole arguments."""
    return [pid for pid, arguments in _command_lines() if all(word in arguments for word in words)]


def processes_below(directory: Path) -> list[int]:
    """Pids with an argument that is, or holds, a path at or below `directory`."""
    top = str(directory)
    return [
        pid
        for pid, arguments in _command_lines()
        if any(f"{top}/" in argument or argument.endswith(top) for argument in arguments)
    ]


def kill_with_children(pid: int) -> None:
    """SIGKILL a process and everything below it, leaves first, and wait until they are gone."""
    family = descendants(pid)
    for member in family:
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_until(_all_gone(family), f"processes {family} gone after SIGKILL", 20)


def remove(directory: Path) -> None:
    """The processes that name it, then mounts, loop devices and files below `directory`, and itself."""
    for pid in processes_below(directory):
        kill_with_children(pid)
    unmount_below(directory)
    detach_loops_below(directory)
    shutil.rmtree(directory)


def _command_lines() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                yield int(entry.name), (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue  # gone since the listing


def descendants(pid: int) -> list[int]:
    """A process and everything below it, leaves first."""
    try:
        children = [
            int(word)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for word in (task / "children").read_text().split()
        ]
    except OSError:
        return [pid]
    return [member for child in children for member in descendants(child)] + [pid]


def _all_gone(pids: list[int]) -> Callable[[], bool]:
    def alive(pid: int) -> bool:
        try:
            # Field 3 of proc_pid_stat(5), behind the command's closing bracket; a zombie waits for its parent only.
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    return lambda: not any(alive(pid) for pid in pids)

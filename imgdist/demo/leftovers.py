"""What processes leave in the kernel when they are gone: mounts, loop devices, shims. Found by path, undone here."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from imgdist import kernel_state
from imgdist.demo.processes import command, wait_until
from imgdist.errors import ImgdistError


def mounts_below(directory: Path) -> list[Path]:
    """Mount points at or below `directory`, the newest first (the order in which they can be unmounted)."""
    return [Path(entry.path) for entry in kernel_state.mounts_below(os.path.realpath(directory))]


def unmount_below(directory: Path) -> list[Path]:
    """Unmount all of it; lazily, so that a hung server below cannot hang us. What was mounted."""
    points = mounts_below(directory)
    for point in points:
        with contextlib.suppress(ImgdistError):
            kernel_state.unmount(str(point), lazy=True)
    return points


def loops_below(directory: Path) -> list[str]:
    """Loop devices ("/dev/loop7") whose backing file lies below `directory`."""
    return [loop.path for loop in kernel_state.loops_below(os.path.realpath(directory))]


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
    clear(directory, processes_below(directory))
    shutil.rmtree(directory)


def clear(directory: Path, pids: Iterable[int]) -> None:
    """These processes and all that they started, then mounts and loop devices below `directory`."""
    for pid in pids:
        kill_with_children(pid)
    unmount_below(directory)
    detach_loops_below(directory)


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

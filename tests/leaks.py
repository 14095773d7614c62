"""What a test may leave behind: nothing. Mounts, loop devices, network namespaces and processes are counted here.

The session runs in a mount namespace of its own (as root), so that every new mount in it is ours; its temporary files
lie in one directory, so that a loop device is ours if its backing file does; its processes carry a variable in their
environment, so that a daemon that has left our process tree is found too.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MARK = "IMGDIST_TEST_SESSION"
_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | (1 << 18)
_GRACE_S = 5.0  # a process that was told to end, and the loop device of a lazily unmounted layer, take a moment
_IP_NETNS = "/run/netns"  # ip(8) mounts it over itself once, for good
_HARNESS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")  # live as long as the interpreter


@dataclass(frozen=True)
class Inventory:
    """What exists now: each set holds names that say what is left over and where."""

    mounts: frozenset[str]
    loops: frozenset[str]
    processes: frozenset[tuple[int, str]]
    entries: frozenset[str]
    """Names directly in the session's directory: what lies in one that an earlier fixture made belongs to it."""


def own_mount_namespace() -> bool:
    """Leave the machine's mount table alone for the rest of this process; False without the right to."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        return False
    if libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) != 0:
        raise OSError(ctypes.get_errno(), "making the session's mounts private")
    return True


def inventory(directory: Path, *, all_mounts: bool) -> Inventory:
    """Count what the session with temporary `directory` has; `all_mounts` if its mount namespace is its own."""
    root = str(directory)
    mounts = (line.split(" - ")[0].split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return Inventory(
        mounts=frozenset(m for m in mounts if m != _IP_NETNS and (all_mounts or m.startswith(root))),
        loops=frozenset(_loops(root)),
        processes=frozenset(_processes()),
        entries=frozenset(_entries(directory)),
    )


def left_over(before: Inventory, take: Callable[[], Inventory], shared: bool) -> list[str]:
    """What is there now and was not before, one line each, after a moment of grace.

    With `shared`, what lies in directories that were there before (those of wider fixtures) or descends from
    processes that were there before is not counted: a fixture still alive answers for it when it ends.
    """
    deadline = time.monotonic() + _GRACE_S
    while (found := _difference(before, take(), shared)) and time.monotonic() < deadline:
        _wait_for_change([pid for pid, _ in found if pid], deadline)
    return [text for _, text in found]


def _difference(before: Inventory, now: Inventory, shared: bool) -> list[tuple[int, str]]:
    def belongs(text: str) -> bool:
        return shared and any(entry in text for entry in before.entries)

    known = {pid for pid, _ in before.processes}
    found = [(0, f"mount {mount}") for mount in sorted(now.mounts - before.mounts) if not belongs(mount + "/")]
    found += [(0, f"loop device {loop}") for loop in sorted(now.loops - before.loops) if not belongs(loop)]
    for pid, command in sorted(now.processes - before.processes):
        if pid in known or belongs(command) or (shared and known & set(_ancestors(pid))):
            continue
        found.append((pid, f"process {pid}: {command}"))
    return found


def _wait_for_change(pids: list[int], deadline: float) -> None:
    """Until one of `pids` ends or the mount table changes (the loop devices follow it), at most 0.2 s."""
    poll = select.poll()
    fds = []
    try:
        for pid in pids:
            try:
                fds.append(os.pidfd_open(pid))
            except OSError:
                return  # it has just ended
            poll.register(fds[-1], select.POLLIN)
        fds.append(os.open("/proc/self/mounts", os.O_RDONLY))
        poll.register(fds[-1], select.POLLPRI)
        poll.poll(max(0.0, min(0.2, deadline - time.monotonic())) * 1000)
    finally:
        for fd in fds:
            os.close(fd)


def _entries(directory: Path) -> list[str]:
    """Paths of the session's directory down to what one fixture or test made, each with a slash at its end."""
    top = [entry for entry in directory.iterdir() if entry.is_dir()] if directory.is_dir() else []
    base = directory / "p"
    below = list(base.iterdir()) if base.is_dir() else []
    return [f"{entry}/" for entry in (*top, *below) if entry != base]


def _loops(root: str) -> list[str]:
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = file.read_text().strip()
        except OSError:
            continue  # detached meanwhile
        if backing.startswith(root):
            found.append(f"/dev/{file.parts[3]} on {backing}")
    return found


def _processes() -> list[tuple[int, str]]:
    """(pid, command line) of the children, grandchildren and strays of this session; zombies only if they are ours."""
    mark = f"{MARK}={os.environ.get(MARK, '')}\0".encode()
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or (pid := int(entry.name)) == os.getpid():
            continue
        try:
            ours = os.getpid() in _ancestors(pid) or mark in Path(entry.path, "environ").read_bytes() + b"\0"
            command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # ended meanwhile
        if ours and not any(name in command for name in _HARNESS):
            found.append((pid, command or "(zombie)"))
    return found


def _ancestors(pid: int) -> list[int]:
    found: list[int] = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.append(pid)
    return found

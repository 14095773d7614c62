"""What a node's parts hold of the kernel and of the disk: counted, so that a leak shows as a number that grew."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, fields
from pathlib import Path

import leaks

from imgdist.demo import leftovers

_SETTLE_S = 20.0


@dataclass(frozen=True)
class Census:
    """`descriptors` by the command line's distinguishing words, of the processes that live throughout."""

    mounts: int
    loops: int
    mount_namespaces: int
    processes: int
    snapshot_directories: int
    descriptors: dict[str, int]

    def grown(self, before: Census) -> list[str]:
        """One line for each number that is larger than it was."""
        found = [
            f"{field.name}: {getattr(before, field.name)} before, {getattr(self, field.name)} now"
            for field in fields(self)
            if field.name != "descriptors" and getattr(self, field.name) > getattr(before, field.name)
        ]
        return found + [
            f"descriptors of {who}: {before.descriptors.get(who)} before, {count} now"
            for who, count in self.descriptors.items()
            if count > before.descriptors.get(who, 0)
        ]


def take(directory: Path, root: Path) -> Census:
    """Of everything that lives in `directory`; `root` is the agent's."""
    ours = leaks.inventory(directory, all_mounts=False)
    namespaces = set()
    descriptors = {}
    for pid, command in ours.processes:
        try:
            namespaces.add(os.readlink(f"/proc/{pid}/ns/mnt"))
            descriptors[_who(pid, command)] = len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue  # ended meanwhile
    return Census(
        mounts=len(leftovers.mounts_below(directory)),
        loops=len(leftovers.loops_below(directory)),
        mount_namespaces=len(namespaces),
        processes=len(ours.processes),
        snapshot_directories=len(os.listdir(root / "snapshots")),
        descriptors=descriptors,
    )


def settled(directory: Path, root: Path) -> Census:
    """A census that stays what it is for a second."""
    deadline = time.monotonic() + _SETTLE_S
    found = take(directory, root)
    while time.monotonic() < deadline:
        time.sleep(1.0)
        if (again := take(directory, root)) == found:
            break
        found = again
    return found


def grown(before: Census, directory: Path, root: Path) -> list[str]:
    """What is more than before, after a moment of grace: garbage collectors take theirs."""
    deadline = time.monotonic() + _SETTLE_S
    while (found := take(directory, root).grown(before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _who(pid: int, command: str) -> str:
    words = command.split()
    return f"{os.path.basename(words[0]) if words else '?'} {' '.join(words[1:3])} ({pid})"

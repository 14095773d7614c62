"""What is mounted where: /proc/PID/mountinfo, read."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class MountEntry:
    """One line of /proc/self/mountinfo: what is mounted where. `device` is "major:minor", `options` those of the file
    system, escaped still (`unescaped`), as they may hold commas."""

    device: str
    root: str
    path: str
    type: str
    source: str
    options: str


def entries(pid: int | str = "self") -> list[MountEntry]:
    """Every mount of a process' namespace, in mount order (proc_pid_mountinfo(5))."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return [_entry(line) for line in file]


def find(path: str) -> MountEntry | None:
    """The mount on exactly this path, the topmost if several lie on each other."""
    wanted = os.path.abspath(path)
    return next((entry for entry in reversed(entries()) if entry.path == wanted), None)


def _entry(line: str) -> MountEntry:
    before, _, after = line.rstrip("\n").partition(" - ")
    _, _, device, root, path, *_ = before.split(" ")
    fstype, source, options = [*after.split(" ", 2), ""][:3]
    return MountEntry(device, unescaped(root), unescaped(path), fstype, unescaped(source), options)


def unescaped(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits."""
    parts = text.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])

"""Who keeps a mount busy, for messages to people. Looks at /proc only: nothing here touches the mount itself,
which may be hanging."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from imgdist import mountinfo


@dataclass(frozen=True)
class Holder:
    """A process and what it holds: an open file, its working directory, a mount."""

    pid: int
    command: str
    what: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}): {self.what}"


def of_mount(path: str, limit: int = 5) -> list[Holder]:
    """At most `limit` holders of what is mounted on `path`. Processes that end meanwhile are left out."""
    found: list[Holder] = []
    entry = mountinfo.find(path)
    namespaces: set[str] = set()
    for pid in _pids():
        with contextlib.suppress(OSError):
            for what in _held(pid, path, entry.device if entry else None, namespaces):
                found.append(Holder(pid, _command(pid), what))
                if len(found) == limit:
                    return found
    return found


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _held(pid: int, path: str, device: str | None, namespaces: set[str]) -> Iterator[str]:
    below = path.rstrip("/") + "/"
    for link in ("cwd", "root", "exe"):
        with contextlib.suppress(OSError):
            if (os.readlink(f"/proc/{pid}/{link}") + "/").startswith(below):
                yield link
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
            if (target + "/").startswith(below):
                yield f"open file {target}"
    namespace = os.readlink(f"/proc/{pid}/ns/mnt")
    if namespace not in namespaces:
        namespaces.add(namespace)
        yield from _mounts(pid, path, device)


def _mounts(pid: int, path: str, device: str | None) -> Iterator[str]:
    """Mounts of the same file system elsewhere (bind mounts, copies in other namespaces) and overlays over it."""
    for entry in mountinfo.entries(pid):
        if entry.type == "overlay" and path in entry.options.partition("lowerdir=")[2].split(",")[0].split(":"):
            yield f"overlay mounted on {entry.path}"
        elif entry.device == device and entry.path != path:
            yield f"mounted on {entry.path} too"
        elif entry.path.startswith(path.rstrip("/") + "/"):
            yield f"{entry.type} mounted on {entry.path}"


def _command(pid: int) -> str:
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().strip()

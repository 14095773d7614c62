"""Deleting an agent's ROOT once nothing uses it: what is in use stays, and is named."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imgdist import kernel_state, mountinfo
from imgdist.errors import ImgdistError

_LOCK = ".lock"
_DATABASES = {f"{name}{part}" for name in ("snapshots.db", "agent.db", "agent.db.bad") for part in ("", "-wal", "-shm")}
_DIRECTORIES = {"packs", "l", "snapshots", "mounts", "images", "revoked", "supernode"}
_OWN = _DIRECTORIES | _DATABASES | {"ballast", "format", "format.new", "node-id", _LOCK}
"""Everything that an agent makes in its ROOT (docs/design.md, "Agent's disk"); nothing else is touched."""
_ORPHANS = re.compile(r"snapshots\.\d+\.bad")

_DIVIDED = ("packs", "l", "snapshots", "mounts/snapshots")
"""Directories whose entries are in use one by one."""


@dataclass(frozen=True)
class Left:
    """A path that stays, and why."""

    path: str
    reason: str


@contextlib.contextmanager
def unused(root: str) -> Iterator[None]:
    """Keep agents off `root` meanwhile. ImgdistError if one uses it: another one's, or one that was not found."""
    try:
        lock = os.open(os.path.join(root, _LOCK), os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):  # none ever did
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ImgdistError(
                f"{root}: an agent uses it that was not found by the socket in its `run`; stop it, then run "
                "imgdist uninstall again"
            ) from None
        yield


def delete(root: str, *, dry_run: bool = False) -> list[Left]:
    """Delete what an agent made in `root`, and `root` itself if nothing is left; returns what stays."""
    top = os.path.realpath(root)
    used = dict(_uses(top, os.path.abspath(root)))
    left = [Left(path, reason) for path, reason in sorted(used.items())]
    if not os.path.isdir(top):
        return []
    for entry in sorted(os.listdir(top), key=lambda entry: (entry == _LOCK, entry)):  # until then no agent begins
        path = os.path.join(top, entry)
        if _ORPHANS.fullmatch(entry):
            left.append(Left(path, "what containers wrote before snapshots.db was lost"))
        elif entry not in _OWN:
            left.append(Left(path, "imgdist did not make it"))
        elif not dry_run:
            _remove(path, used)
    if not dry_run and not os.listdir(top) and not os.path.ismount(top):
        os.rmdir(top)
    return left


def _remove(path: str, used: Iterable[str]) -> None:
    """A tree but for what is used in it."""
    if not any(f"{keep}/".startswith(f"{path}/") for keep in used):
        _delete(path)
    elif path not in used:
        for entry in os.listdir(path):
            _remove(os.path.join(path, entry), used)


def _delete(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _uses(top: str, called: str) -> Iterator[tuple[str, str]]:
    """(path below `top`, who uses it): loop devices and mounts of any process, those of containers among them.

    The kernel names directories that an overlay is made of as whoever mounted it did: below `called`, which symlinks
    may lead to `top`.
    """
    for loop in kernel_state.loops_below(top):
        yield _unit(top, loop.file), f"{loop.path} shows it to what is mounted from it"
    bound = _as_bound(top)
    for entry in kernel_state.all_mounts():
        is_below = f"{entry.path}/".startswith(f"{top}/")
        if is_below:
            yield _unit(top, entry.path), f"{entry.type} is mounted there"
        if entry.type == "overlay":
            for directory in kernel_state.directories(entry):
                if f"{directory}/".startswith(f"{called}/"):
                    directory = top + directory.removeprefix(called)
                if f"{directory}/".startswith(f"{top}/"):
                    yield _unit(top, directory), f"the overlay on {entry.path} is made of it"
                elif not directory.startswith("/") or directory.startswith("/proc/"):
                    # containerd names them relative to a directory of its choice where they are many.
                    for snapshots in ("snapshots", "mounts"):
                        yield os.path.join(top, snapshots), f"the overlay on {entry.path} may be made of it"
        elif bound and not is_below and entry.device == bound[0] and f"{entry.root}/".startswith(f"{bound[1]}/"):
            yield _unit(top, top + entry.root.removeprefix(bound[1])), f"it is bound to {entry.path}"


def _unit(top: str, path: str) -> str:
    """What is kept for the sake of `path`: a whole pack, a whole snapshot."""
    relative = Path(path).relative_to(top)
    for divided in _DIVIDED:
        if relative.is_relative_to(divided) and relative != Path(divided):
            depth = len(Path(divided).parts) + 1
            return os.path.join(top, *relative.parts[:depth])
    return os.path.join(top, *relative.parts[:1])


def _as_bound(top: str) -> tuple[str, str] | None:
    """(device, path within its file system) of `top`, as mountinfo shows a part of it that is bound elsewhere."""
    around = [entry for entry in mountinfo.entries() if f"{top}/".startswith(f"{entry.path.rstrip('/')}/")]
    if not around:
        return None
    nearest = max(around, key=lambda entry: len(entry.path))
    below = top.removeprefix(nearest.path.rstrip("/"))
    return nearest.device, nearest.root.rstrip("/") + below

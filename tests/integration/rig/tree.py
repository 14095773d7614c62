"""A file tree as values, and how two of them differ: the oracle for "equal to containerd's own unpacking"."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One path: everything a container can see of it, times in nanoseconds."""

    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size_bytes: int
    device: int
    content: str
    """sha256 of a file, target of a symlink, else empty."""
    xattrs: tuple[tuple[str, bytes], ...]
    twins: tuple[str, ...]
    """All paths that are hard links of this file; empty for a file with one name."""

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


PHANTOM = Entry(0, (0, 0), 0, 0, 0, "", (), ())
"""A name that is listed and cannot be looked up: overlayfs shows a whiteout so where one layer has its directory."""


def read(root: Path) -> dict[str, Entry]:
    """Every path below `root` ("" is the root itself) to what it is."""
    paths = sorted(_walk(str(root)))
    links: dict[tuple[int, int], list[str]] = {}
    states = {path: _state(root / path) for path in paths}
    for path, state in states.items():
        if state and not stat.S_ISDIR(state.st_mode) and state.st_nlink > 1:
            links.setdefault((state.st_dev, state.st_ino), []).append(path)
    return {path: _entry(root / path, state, links) if state else PHANTOM for path, state in states.items()}


def differences(ours: dict[str, Entry], theirs: dict[str, Entry], times_exempt: Iterable[str] = ()) -> list[str]:
    """One line for each path and aspect in which the trees differ; times of `times_exempt` are not compared, and names
    that only the others list and do not have."""
    exempt = {"", *times_exempt}
    found = [f"{path!r}: only with us" for path in sorted(ours.keys() - theirs.keys())]
    missing = sorted(theirs.keys() - ours.keys())
    found += [f"{path!r}: missing with us" for path in missing if theirs[path] is not PHANTOM]
    for path in sorted(ours.keys() & theirs.keys()):
        for aspect in Entry.__dataclass_fields__:
            mine, other = getattr(ours[path], aspect), getattr(theirs[path], aspect)
            if mine != other and not (aspect == "mtime_ns" and path in exempt):
                found.append(f"{path!r}: {aspect}: {mine!r}, expected {other!r}")
    return found


def implied_directories(layers: Iterable[bytes]) -> set[str]:
    """Directories that some layer (an uncompressed tar) needs and does not list: the unpacker chooses their time."""
    implied: set[str] = set()
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            members = archive.getmembers()
        listed = {_clean(member.name) for member in members if member.isdir()}
        for member in members:
            parent = os.path.dirname(_clean(member.name))
            while parent and parent not in listed:
                implied.add(parent)
                parent = os.path.dirname(parent)
    return implied


def _clean(name: str) -> str:
    return os.path.normpath(name).lstrip("/")


def _walk(root: str) -> Iterable[str]:
    yield ""
    for top, directories, files in os.walk(root, onerror=_refuse):
        yield from (os.path.relpath(os.path.join(top, name), root) for name in (*directories, *files))


def _state(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _refuse(error: OSError) -> None:
    raise error


def _entry(path: Path, state: os.stat_result, links: dict[tuple[int, int], list[str]]) -> Entry:
    directory = stat.S_ISDIR(state.st_mode)
    if stat.S_ISREG(state.st_mode):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    else:
        content = os.readlink(path) if stat.S_ISLNK(state.st_mode) else ""
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return Entry(
        mode=state.st_mode,
        owner=(state.st_uid, state.st_gid),
        mtime_ns=state.st_mtime_ns,
        size_bytes=0 if directory else state.st_size,
        device=state.st_rdev,
        content=content,
        xattrs=tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names),
        twins=tuple(links.get((state.st_dev, state.st_ino), ())) if not directory else (),
    )

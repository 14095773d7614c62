"""Paths of tar members: made absolute and clean, and resolved through symlinks without leaving the root."""

from __future__ import annotations

from collections.abc import Callable

from imgdist.erofs.layout import NAME_MAX
from imgdist.errors import DeclinedError

PATH_MAX = 4095
"""Most bytes of a path (the kernel's PATH_MAX counts a NUL as well)."""
_LINKS_MAX = 255
_KERNEL_LINKS_MAX = 40  # MAXSYMLINKS of linux/namei.h

LookUp = Callable[[bytes], bytes | bool | None]
"""What is at a clean relative path with only directories on its way: a symlink's target, True for a directory, False
for anything else, None for nothing."""


def clean(name: bytes) -> bytes:
    """Return `name` without leading slash, empty parts, `.` and `..` (which stops at the root); b"" is the root.

    Raises:
        DeclinedError: the path is longer than the kernel takes.
    """
    path = name[2:] if name.startswith(b"./") else name
    if path.endswith(b"/"):
        path = path[:-1]
    if b"//" in path or b"/." in path or path.startswith((b"/", b".")) or path.endswith(b"/"):  # few names are
        path = _clean(b"/" + name)[1:]
    if len(path) > PATH_MAX:
        raise DeclinedError(f"layer: a path has {len(path)} bytes, the kernel takes {PATH_MAX}")
    return path


def check_name(name: bytes) -> None:
    """Refuse a file name that is too long (DeclinedError)."""
    if len(name) > NAME_MAX:
        raise DeclinedError(f"layer: a file name has {len(name)} bytes, file systems take {NAME_MAX}")


def resolve(path: bytes, look_up: LookUp, spend: Callable[[int], None] = lambda steps: None) -> bytes:
    """Return `path` with every symlink in it followed inside the root, step by step as containerd's fs.RootPath does.

    `..` is taken from the text of a relative target before that target's own symlinks are followed (`link/..` is
    where the link stands), from where it leads in an absolute one. What does not exist is taken literally.
    `spend(steps)` accounts for the work. The result is clean and relative to the root.

    Raises:
        DeclinedError: more than 255 symlinks, or a path that goes through a file.
    """
    links = 0
    while True:
        walked, followed = _walk(path, look_up, spend, links)
        links += followed
        if not followed:
            cleaned = _clean(walked)
            if cleaned == path:
                return cleaned[1:]
            walked = cleaned
        path = walked


def _walk(path: bytes, look_up: LookUp, spend: Callable[[int], None], links: int) -> tuple[bytes, int]:
    """One pass of fs.RootPath: each part's own symlink is replaced by its target; returns how many were."""
    here, followed = b"", 0
    first = not path.startswith(b"/")  # a relative path's first target replaces the path as it stands
    found: bytes | bool | None = True
    for part in path.split(b"/"):
        if not part:
            continue
        below, here = here, _clean(here + b"/" + part)
        spend(1 + len(here) // 64)
        if here == b"/":
            found, first = True, False
            continue
        if links + followed > _LINKS_MAX or len(here) > PATH_MAX:
            raise DeclinedError(f"layer: path {path[:200]!r} goes through too many symlinks")
        if found is False and part not in (b".", b".."):
            raise DeclinedError(f"layer: path {path[:200]!r} goes through {below[1:200]!r}, which is no directory")
        check_name(here.rpartition(b"/")[2])
        found = _stat(here[1:], look_up, spend) if followed else look_up(here[1:])
        if isinstance(found, bytes):
            followed += 1
            here = found if first or found.startswith(b"/") else _clean(below + b"/" + found)
        first = False
    return here, followed


def _stat(path: bytes, look_up: LookUp, spend: Callable[[int], None]) -> bytes | bool | None:
    """What lstat(2) finds at a path that may have symlinks on its way; nothing where they lead out of the root."""
    pending, done, links = _parts(path), b"", 0
    while pending:
        spend(1)
        part = pending.pop()
        if part == b"..":
            if not done:
                return None
            done = done.rpartition(b"/")[0]
            continue
        here = done + b"/" + part if done else part
        found = look_up(here)
        if not pending:
            return found
        if isinstance(found, bytes):
            links += 1
            if links > _KERNEL_LINKS_MAX or len(here) > PATH_MAX:
                raise DeclinedError(f"layer: path {path[:200]!r} goes through too many symlinks")
            if found.startswith(b"/"):
                return None
            pending.extend(_parts(found))
        elif found is None:
            return None
        elif found is False:
            raise DeclinedError(f"layer: path {path[:200]!r} goes through {here[:200]!r}, which is no directory")
        else:
            done = here
    return True


def _clean(path: bytes) -> bytes:
    """Return an absolute path without `.`, `..` and empty parts."""
    if b"/." not in path and b"//" not in path and path.startswith(b"/") and (path == b"/" or not path.endswith(b"/")):
        return path
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/" + b"/".join(parts)


def _parts(path: bytes) -> list[bytes]:
    """Return the parts of a path that mean something, the first one last."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]

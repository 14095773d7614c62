"""Paths of tar members: made absolute and clean, and resolved through symlinks without leaving the root."""

from __future__ import annotations

from collections.abc import Callable

from imgdist.erofs.layout import NAME_MAX
from imgdist.errors import DeclinedError

PATH_MAX = 4095
"""Most bytes of a path (the kernel's PATH_MAX counts a NUL as well)."""
_LINKS_MAX = 255


def clean(name: bytes) -> bytes:
    """Return `name` without leading slash, empty parts, `.` and `..` (which stops at the root); b"" is the root.

    Raises:
        DeclinedError: the path is longer than the kernel takes.
    """
    path = name[2:] if name.startswith(b"./") else name
    if path.endswith(b"/"):
        path = path[:-1]
    if b"//" in path or b"/." in path or path.startswith((b"/", b".")) or path.endswith(b"/"):  # few names are
        parts: list[bytes] = []
        for part in name.split(b"/"):
            if part == b"..":
                del parts[-1:]
            elif part not in (b"", b"."):
                parts.append(part)
        path = b"/".join(parts)
    if len(path) > PATH_MAX:
        raise DeclinedError(f"layer: a path has {len(path)} bytes, the kernel takes {PATH_MAX}")
    return path


def check_name(name: bytes) -> None:
    """Refuse a file name that is too long (DeclinedError)."""
    if len(name) > NAME_MAX:
        raise DeclinedError(f"layer: a file name has {len(name)} bytes, file systems take {NAME_MAX}")


def resolve(path: bytes, look_up: Callable[[bytes], bytes | bool | None], spend: Callable[[int], None]) -> bytes:
    """Return `path` with every symlink in it followed inside the root, as containerd's fs.RootPath does.

    `look_up(clean path)` returns a symlink's target, True for a directory, False for anything else, None for nothing;
    what does not exist is taken literally. `spend(steps)` accounts for the work.

    Raises:
        DeclinedError: more than 255 symlinks, or a path that goes through a file.
    """
    pending = _parts(path)
    done: list[bytes] = []
    links = 0
    while pending:
        part = pending.pop()
        if part == b"..":
            del done[-1:]
            continue
        check_name(part)
        here = b"/".join([*done, part])
        spend(len(done) + 1)
        found = look_up(here)
        if isinstance(found, bytes):
            links += 1
            if links > _LINKS_MAX or len(here) > PATH_MAX:
                raise DeclinedError(f"layer: path {path[:200]!r} goes through too many symlinks")
            if found.startswith(b"/"):
                done.clear()
            pending.extend(_parts(found))
            continue
        if found is False and pending and pending[-1] != b"..":
            raise DeclinedError(f"layer: path {path[:200]!r} goes through {here[:200]!r}, which is no directory")
        done.append(part)
    return b"/".join(done)


def _parts(path: bytes) -> list[bytes]:
    """Return the parts of a path that mean something, the first one last."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]

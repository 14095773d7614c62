"""Fix-up lowers: attributes of directories that a layer implies but does not list.

containerd gives such a directory the mode, owner and xattrs of the same directory in the layers below (0755 0:0 if
there is none; pkg/archive `mkparent`). A layer image cannot know them, so an image of `etc/` alone would show /etc
with the wrong mode wherever a lower layer says otherwise. Where they differ, a small plain directory tree is put
above the layer that holds just these directories. Times are exempt: containerd takes the time of unpacking.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

OPAQUE = "trusted.overlay.opaque"


@dataclass(frozen=True)
class Attributes:
    """Of a directory: permission bits, owner and all xattrs but overlayfs' own (`trusted.*`)."""

    mode: int
    uid: int
    gid: int
    xattrs: tuple[tuple[str, bytes], ...]

    def apply(self, path: bytes) -> None:
        """Give them to a directory. The owner first: chown would clear set-id bits."""
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        os.chmod(path, self.mode)
        for name, value in self.xattrs:
            os.setxattr(path, name, value, follow_symlinks=False)


def plan(implied: Iterable[bytes], layer: str, below: Sequence[str]) -> dict[bytes, Attributes]:
    """What the fix-up lower of a layer must hold: path -> attributes, parents first; {} where nothing differs.

    `implied` are paths without a leading slash, `layer` is where the layer is mounted, `below` the lower directories
    under it, top first, their fix-up lowers included. OSError if a directory cannot be read.
    """
    inherited = {path: found for path in sorted(implied) if (found := _visible(path, below)) is not None}
    wanted: dict[bytes, Attributes] = {}
    for path, attributes in inherited.items():
        if attributes == _read(_join(layer, path)):
            continue
        # overlayfs takes a merged directory's attributes from the topmost lower that has it: so the way down to this
        # one must look as it would without us.
        parts = path.split(b"/")
        for ancestor in (b"/".join(parts[:depth]) for depth in range(1, len(parts))):
            if ancestor not in wanted:
                wanted[ancestor] = inherited.get(ancestor) or _read(_join(layer, ancestor))
        wanted[path] = attributes
    return dict(sorted(wanted.items()))


def create(directory: str, wanted: Mapping[bytes, Attributes]) -> None:
    """Write a planned fix-up lower into an empty directory."""
    for path, attributes in wanted.items():
        target = _join(directory, path)
        os.mkdir(target)
        attributes.apply(target)


def _visible(path: bytes, below: Sequence[str]) -> Attributes | None:
    """The attributes that the merged view of `below` shows for a directory; None if it shows no directory there."""
    parts = path.split(b"/")
    candidates: Sequence[str] = below
    for depth in range(1, len(parts) + 1):
        candidates = _merged(b"/".join(parts[:depth]), candidates)
        if not candidates:
            return None
    return _read(_join(candidates[0], path))


def _merged(path: bytes, lowers: Sequence[str]) -> list[str]:
    """Those lowers, top first, whose directory at `path` takes part in the merged one (overlayfs rules: a whiteout or
    anything that is no directory ends the search, an opaque directory ends it after itself)."""
    merged: list[str] = []
    for lower in lowers:
        target = _join(lower, path)
        try:
            status = os.lstat(target)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISDIR(status.st_mode):
            break
        merged.append(lower)
        if _xattr(target, OPAQUE) == b"y":
            break
    return merged


def _read(target: bytes) -> Attributes:
    status = os.lstat(target)
    names = sorted(name for name in _xattr_names(target) if not name.startswith("trusted."))
    xattrs = tuple((name, os.getxattr(target, name, follow_symlinks=False)) for name in names)
    return Attributes(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, xattrs)


def _xattr_names(target: bytes) -> list[str]:
    return os.listxattr(target, follow_symlinks=False)


def _xattr(target: bytes, name: str) -> bytes | None:
    return os.getxattr(target, name, follow_symlinks=False) if name in _xattr_names(target) else None


def _join(directory: str, path: bytes) -> bytes:
    return os.path.join(os.fsencode(directory), path)

"""Fix-up lowers: attributes of directories that a layer implies but does not list.

containerd gives such a directory the mode, owner and xattrs of the same directory in the layers below (0755 0:0 if
there is none; pkg/archive `mkparent`). A layer image cannot know them, so an image of `etc/` alone would show /etc
with the wrong mode wherever a lower layer says otherwise. Where they differ, a small plain directory tree is put
above the layer that holds just these directories. Times are exempt: containerd takes the time of unpacking.

containerd looks into one layer after another, not into what overlayfs makes of them: opaque directories hide nothing
from it, and symlinks are followed within each layer.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from imgdist.erofs import acl, paths
from imgdist.errors import DeclinedError

STEPS_MAX = 2_000_000
"""Path components that are looked up for one layer, all layers below. An image made for it could have billions."""
_ACCESS, _DEFAULT = acl.ACCESS.decode(), acl.DEFAULT.decode()

Below = Sequence[str]
"""The directories of one layer below, top first: its fix-up lower, if it has one, and the layer."""


@dataclass(frozen=True)
class Attributes:
    """Of a directory: permission bits, owner, all xattrs but overlayfs' own (`trusted.*`), and its time, which does
    not count when two are compared."""

    mode: int
    uid: int
    gid: int
    xattrs: tuple[tuple[str, bytes], ...]
    mtime_ns: int = field(default=0, compare=False)

    def apply(self, path: bytes) -> None:
        """Give them to a directory, but for the time. The owner first: chown would clear set-id bits."""
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        os.chmod(path, self.mode)
        for name, value in self.xattrs:
            os.setxattr(path, name, value, follow_symlinks=False)


def plan(implied: Iterable[bytes], layer: str, below: Sequence[Below]) -> dict[bytes, Attributes]:
    """What the fix-up lower of a layer must hold: path -> attributes, parents first; {} where nothing differs.

    `implied` are paths without a leading slash; with a trailing one, the layer describes the directory behind something
    in it. `layer` is where the layer is mounted, `below` the layers under it, top first.

    Raises:
        DeclinedError: containerd refuses the layer over these, more than the directories would differ, or looking all
            of them up takes more than `STEPS_MAX`.
        OSError: a directory cannot be read.
    """
    wanted: dict[bytes, Attributes] = {}
    inherited: dict[bytes, Attributes] = {}
    undescribed: dict[bytes, Attributes] = {}
    spend = _spender()
    for entry in sorted(implied):
        path = entry.removesuffix(b"/")
        found = _found(path, below, spend)
        own = _read(_join(layer, path))
        if path != entry:
            attributes = _described(own, found, path)
        elif found is not None:
            attributes = undescribed[path] = _implied(own, found, path)
        else:
            attributes = undescribed[path] = _made(own, undescribed.get(os.path.dirname(path)))
        inherited[path] = attributes
        if attributes == own:
            continue
        # overlayfs takes a merged directory's attributes from the topmost lower that has it: so the way down to this
        # one must look as it would without us.
        wanted[path] = attributes
        while (path := os.path.dirname(path)) and path not in wanted:
            wanted[path] = inherited.get(path) or _read(_join(layer, path))
    return dict(sorted(wanted.items()))


def create(directory: str, wanted: Mapping[bytes, Attributes]) -> None:
    """Write a planned fix-up lower into an empty directory."""
    for path, attributes in wanted.items():
        target = _join(directory, path)
        os.mkdir(target)
        attributes.apply(target)
    for path, attributes in reversed(list(wanted.items())):  # making a directory changes the time of the one around it
        os.utime(_join(directory, path), ns=(attributes.mtime_ns, attributes.mtime_ns))


def _made(own: Attributes, around: Attributes | None) -> Attributes:
    """The attributes of an implied directory that the layers below do not have, in an implied one of `around`."""
    return replace(own, gid=around.gid) if around is not None and around.mode & stat.S_ISGID else own


def _described(own: Attributes, found: Attributes | None, path: bytes) -> Attributes:
    """The attributes of a directory that was implied before it was described: xattrs of the layers below stay."""
    if found is None:
        return own
    if {_ACCESS, _DEFAULT} & dict(found.xattrs).keys() or found.mode & stat.S_ISGID:
        raise DeclinedError(
            f"layer: {path[:200]!r} is described behind something in it, and has an ACL or is set-group-id below"
        )
    return replace(own, xattrs=tuple(sorted((dict(found.xattrs) | dict(own.xattrs)).items())))


def _implied(own: Attributes, found: Attributes, path: bytes) -> Attributes:
    """The attributes of an implied directory of which the layers below have `found`. `own` are those in the layer:
    plain but for the ACLs that it inherits from a directory of the same layer."""
    xattrs = dict(own.xattrs) | dict(found.xattrs)
    if _DEFAULT in dict(found.xattrs):
        raise DeclinedError(
            f"layer: {path[:200]!r} is not described by it and has a default ACL in the layers below, which what the"
            " layer puts there inherits when containerd unpacks it"
        )
    if _ACCESS in xattrs and _ACCESS not in dict(found.xattrs):
        access = acl.with_mode(xattrs.pop(_ACCESS), found.mode)
        if access is not None:
            xattrs[_ACCESS] = access
    return replace(found, xattrs=tuple(sorted(xattrs.items())), mtime_ns=own.mtime_ns)


def _spender() -> Callable[[int], None]:
    left = STEPS_MAX

    def spend(steps: int) -> None:
        nonlocal left
        left -= steps
        if left < 0:
            raise DeclinedError(
                f"layer: looking up the directories that it does not describe in the layers below takes more than"
                f" {STEPS_MAX} steps"
            )

    return spend


def _found(path: bytes, below: Sequence[Below], spend: Callable[[int], None]) -> Attributes | None:
    """The attributes that containerd copies to a directory: those of the first layer that has something there, if
    that is a directory."""
    for directories in below:
        place = paths.resolve(b"/" + path, partial(_look_up, directories), spend)
        for directory in directories:
            target = _join(directory, place)
            status = _status(target)
            if status is not None:
                return _read(target) if stat.S_ISDIR(status.st_mode) else None
    return None


def _look_up(directories: Below, path: bytes) -> bytes | bool | None:
    """What `paths.resolve` asks of a layer."""
    for directory in directories:
        target = _join(directory, path)
        status = _status(target)
        if status is not None:
            return os.readlink(target) if stat.S_ISLNK(status.st_mode) else stat.S_ISDIR(status.st_mode)
    return None


def _status(target: bytes) -> os.stat_result | None:
    try:
        return os.lstat(target)
    except FileNotFoundError:
        return None


def _read(target: bytes) -> Attributes:
    status = os.lstat(target)
    names = sorted(name for name in os.listxattr(target, follow_symlinks=False) if not name.startswith("trusted."))
    xattrs = tuple((name, os.getxattr(target, name, follow_symlinks=False)) for name in names)
    return Attributes(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, xattrs, status.st_mtime_ns)


def _join(directory: str, path: bytes) -> bytes:
    return os.path.join(os.fsencode(directory), path)

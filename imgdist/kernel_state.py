"""What the kernel holds of a node: mounts, loop devices, FUSE connections; and who still uses what lies below ROOT.

Looks at /proc and /sys only. Nothing here touches a mount that may be hanging before its connection is aborted.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imgdist import loopdevices, mountinfo
from imgdist.errors import ImgdistError
from imgdist.loopdevices import Loop
from imgdist.mountinfo import MountEntry

_CONNECTIONS = Path("/sys/fs/fuse/connections")
_OVERLAY_DIRECTORIES = ("lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir")
"""Those with a + are shown of overlays that were put together one by one (fsconfig(2), Linux 6.8)."""
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8  # <sys/mount.h>
NOT_MOUNTED = (errno.EINVAL, errno.ENOENT)
"""What umount2(2) says where nothing is mounted."""
_libc = ctypes.CDLL(None, use_errno=True)


def loops_below(directory: str) -> list[Loop]:
    """Loop devices that show a file at or below `directory`, also one that was deleted since."""
    top = _resolved(directory) + "/"
    return [loop for loop in loopdevices.devices() if loop.file.startswith(top)]


def mounts_below(directory: str) -> list[MountEntry]:
    """Mounts at or below `directory` that this process sees, the newest first."""
    top = _resolved(directory)
    return [entry for entry in reversed(mountinfo.entries()) if f"{entry.path}/".startswith(f"{top}/")]


def all_mounts() -> Iterator[MountEntry]:
    """Every mount of every process, each mount namespace once, and again for a process with another root: it is shown
    only what lies below that."""
    seen = set()
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            with suppress(OSError):
                seen_from = (os.readlink(f"/proc/{pid}/ns/mnt"), os.readlink(f"/proc/{pid}/root"))
                if seen_from not in seen:
                    seen.add(seen_from)
                    yield from mountinfo.entries(pid)


def directories(overlay: MountEntry) -> list[str]:
    """The directories that an overlay is made of, as whoever mounted it named them: some may be relative."""
    options = (option.partition("=") for option in overlay.options.split(","))
    values = (value for key, _, value in options if key in _OVERLAY_DIRECTORIES)
    return [mountinfo.unescaped(part) for value in values for part in value.split(":") if part]


def overlays_over(layer: str) -> list[str]:
    """Where overlays over a layer mounted at `layer` are mounted, in any process' namespace."""
    name = os.path.basename(layer)

    def is_layer(directory: str) -> bool:
        return directory == layer or (directory[0] != "/" and os.path.basename(directory) == name)

    overlays = (entry for entry in all_mounts() if entry.type == "overlay")
    return sorted({entry.path for entry in overlays if any(map(is_layer, directories(entry)))})


def bound_from(layer: MountEntry) -> list[str]:
    """Where else a mounted file system is mounted, as far as this process sees."""
    return [entry.path for entry in mountinfo.entries() if entry.device == layer.device and entry.path != layer.path]


def abort(view: MountEntry) -> None:
    """End one FUSE connection: its server is gone or hangs, and whoever waits for it gets an error now.

    Its own, found by its minor number: never another file system's. ImgdistError if the kernel refuses.
    """
    minor = view.device.partition(":")[2]
    with _connections() as connections, suppress(FileNotFoundError):  # ended already, with its server
        try:
            (connections / minor / "abort").write_text("1")
        except PermissionError as error:
            raise ImgdistError(f"{view.path}: its connection {minor} cannot be aborted: {error.strerror}") from None


def umount(path: str, *, lazy: bool = False) -> int:
    """umount2(2), of no symlink's target; `lazy` takes it out of the tree at once and lets users finish. The errno: 0
    if it was done."""
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    return 0 if _libc.umount2(os.fsencode(path), flags) == 0 else ctypes.get_errno()


def unmount(path: str, *, lazy: bool = False) -> bool:
    """As `umount`: False if something holds it. ImgdistError for anything else but that nothing is mounted there."""
    code = umount(path, lazy=lazy)
    if code not in (0, errno.EBUSY, *NOT_MOUNTED):
        raise ImgdistError(f"cannot unmount {path}: {os.strerror(code)}")
    return code != errno.EBUSY


@contextmanager
def _connections() -> Iterator[Path]:
    """The directory of FUSE connections, mounted for as long as it takes where nobody has."""
    if any(entry.type == "fusectl" for entry in mountinfo.entries()) or not _CONNECTIONS.is_dir():
        yield _CONNECTIONS
        return
    if _libc.mount(b"fusectl", os.fsencode(_CONNECTIONS), b"fusectl", 0, None) != 0:
        raise ImgdistError(f"cannot mount fusectl on {_CONNECTIONS}: {os.strerror(ctypes.get_errno())}")
    try:
        yield _CONNECTIONS
    finally:
        unmount(str(_CONNECTIONS), lazy=True)


def _resolved(directory: str) -> str:
    """Without symlinks in the way to it. Its last component may be a mount that hangs: it is not looked at."""
    parent, name = os.path.split(os.path.abspath(directory))
    return os.path.join(os.path.realpath(parent), name)

"""mount(2) and umount2(2), with errors that name the path and the cause.

By ctypes and not by util-linux' `mount`: a layer mounts in half a millisecond, a process alone takes ten times that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

from agent.layers import holders
from imgdist import kernel_state
from imgdist.errors import ImgdistError, TemporaryError, UnsupportedError

# <sys/mount.h>
MS_RDONLY = 1
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)

PAGE = 4096
"""Bytes of options that mount(2) takes, the final zero included."""


class BusyError(TemporaryError):
    """Something still uses the mount; the message says who."""


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2). UnsupportedError if the kernel lacks the file system or we lack the right, else ImgdistError."""
    if len(data) >= PAGE:  # the kernel would cut it silently and then complain of a path that does not exist
        raise ImgdistError(f"cannot mount {fstype} on {target}: {len(data)} bytes of options, at most {PAGE - 1} fit")
    result = _libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), flags, data.encode() or None)
    if result == 0:
        return
    code = ctypes.get_errno()
    what = f"cannot mount {source} ({fstype or 'bind'}) on {target}: {os.strerror(code)}"
    if code == errno.ENODEV:
        raise UnsupportedError(f"{what}; this kernel has no {fstype} (is the module installed?)")
    if code == errno.EPERM:
        raise UnsupportedError(f"{what}; this needs root (CAP_SYS_ADMIN)")
    raise ImgdistError(what)


def mount_erofs(device: str, target: str) -> None:
    """Mount a layer image read-only. nosuid and nodev stay off: a container's root file system has both."""
    mount(device, target, "erofs", MS_RDONLY)


def umount(path: str, *, lazy: bool = False) -> bool:
    """umount2(2) without following a symlink; False if nothing was mounted there.

    `lazy` takes it out of the tree at once and lets users finish: right for a mount whose server is dead (ENOTCONN),
    where a plain umount says EBUSY. BusyError names the holders; ImgdistError for anything else.
    """
    code = kernel_state.umount(path, lazy=lazy)
    if code == errno.EBUSY:
        held = ", ".join(map(str, holders.of_mount(path))) or "nobody that /proc shows (a nested mount, a swap file?)"
        raise BusyError(f"cannot unmount {path}: in use by {held}")
    if code not in (0, *kernel_state.NOT_MOUNTED):
        raise ImgdistError(f"cannot unmount {path}: {os.strerror(code)}")
    return code == 0


def is_dead(path: str) -> bool:
    """True if a FUSE server died below `path` (ENOTCONN): it looks as if it existed and were no directory."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def prepare_mount_point(path: str) -> None:
    """Make the directory, detaching dead mounts that a crash left there."""
    with contextlib.suppress(OSError):
        os.mkdir(path)
        return
    while is_dead(path):
        umount(path, lazy=True)
    os.makedirs(path, exist_ok=True)

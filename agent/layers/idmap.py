"""Can this kernel show the layers of a container with its users' ids mapped? Tried, not guessed from a version.

For a container in a user namespace containerd clones the directory that holds the lower directories, with all mounts
in it, and gives the clone the namespace's ids (core/mount `doPrepareIDMappedOverlay`). The same is done here, but for
attaching the clone anywhere: mount_setattr(2), MOUNT_ATTR_IDMAP; EROFS has it from Linux 5.19 on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.layers.syscall import call
from imgdist.errors import ImgdistError

_OPEN_TREE, _MOUNT_SETATTR = 428, 442  # <asm-generic/unistd.h>, the same on every architecture
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _AT_RECURSIVE, _AT_EMPTY_PATH = 1, os.O_CLOEXEC, 0x8000, 0x1000
_AT_FDCWD = -100
_MOUNT_ATTR_IDMAP = 0x100000
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EPERM)
"""EPERM: a mount in the directory has its ids mapped already, or a file system's owner is another user namespace."""

_NAMESPACE = """
import ctypes, sys
if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):  # CLONE_NEWUSER
    sys.exit(ctypes.get_errno())
print(flush=True)
sys.stdin.read()
"""
_MAP = "0 100000 65536\n"  # any will do


class IdMaps:
    """Remembers which directories could be mapped: a kernel does not lose that. From any thread."""

    def __init__(self) -> None:
        self._mappable: set[str] = set()

    def can_map(self, lowers: list[str]) -> bool:
        """Whether containerd will be able to map these lower directories, absolute paths. ImgdistError if that cannot
        be tried."""
        common = os.path.commonpath([os.path.dirname(lower) for lower in lowers])
        if common not in self._mappable and _can_map(common):
            self._mappable.add(common)
        return common in self._mappable


def _can_map(directory: str) -> bool:
    try:
        with user_namespace() as namespace, clone(directory) as mounts:
            return map_ids(mounts, namespace)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise ImgdistError(f"{directory}: cannot try whether its mounts can be id-mapped: {error.strerror}") from None


@contextmanager
def clone(directory: str) -> Iterator[int]:
    """A descriptor of a clone of the mounts at and below a directory, attached nowhere (open_tree(2)). OSError."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    descriptor = call(_OPEN_TREE, _AT_FDCWD, os.fsencode(directory), flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def map_ids(mounts: int, namespace: int) -> bool:
    """Give cloned mounts the ids of a user namespace, both descriptors; False if the kernel cannot. OSError."""
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_IDMAP, 0, 0, namespace)  # struct mount_attr
    flags = _AT_EMPTY_PATH | _AT_RECURSIVE
    try:
        call(_MOUNT_SETATTR, mounts, b"", flags, attributes, ctypes.sizeof(attributes))
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


@contextmanager
def user_namespace() -> Iterator[int]:
    """A descriptor of a new user namespace, whose ids begin at 100000 outside. It needs a process: no thread of one can
    enter it alone."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _NAMESPACE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdin:
            if not child.stdout.readline():
                raise OSError(child.wait(), "no user namespace can be made")
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{child.pid}/{name}").write_text(_MAP)
            descriptor = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)

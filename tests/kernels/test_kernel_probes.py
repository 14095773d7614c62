"""What this kernel can do beyond what imgdist needs: found out and told, never assumed by any code."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from layer_image import build_image
from parts import require
from rig.images import LayerTar

from agent.held import Held
from agent.layers import loop
from agent.layers.mount import mount_erofs, umount
from fuse.device import KernelReplies

Report = Callable[[str, object], None]

# Of <asm-generic/unistd.h>, the same on every architecture; <linux/mount.h>
_OPEN_TREE, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 430, 431, 432, 442
_OPEN_TREE_CLONE = 1
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_IDMAP = 1, 0x100000
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(autouse=True)
def _root() -> None:
    require(os.geteuid() == 0, "root")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    build_image([LayerTar().add("file", b"x" * 5000).bytes()], path)
    return path


@contextlib.contextmanager
def _mounted(image: Path, target: Path) -> Iterator[Path]:
    target.mkdir()
    with loop.attached(str(image)) as device:
        mount_erofs(device, str(target))
    try:
        yield target
    finally:
        umount(str(target))


def test_release(report: Report) -> None:
    report("release", os.uname().release)


def test_loop_configure(image: Path, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """LOOP_CONFIGURE in one step, or the steps of older kernels: the device is the same."""
    steps = []
    stepwise = loop._configure_stepwise
    monkeypatch.setattr(loop, "_configure_stepwise", lambda *words: (steps.append(words), stepwise(*words)))
    with loop.attached(str(image)) as device:
        assert loop.flags(device) == (True, True, True)
    report("LOOP_CONFIGURE with direct I/O", not steps)
    monkeypatch.setattr(loop, "_CONFIGURE", 0x4CFF)  # as before Linux 5.8
    with loop.attached(str(image)) as device:
        assert loop.flags(device) == (True, True, True)
    assert steps


def test_notify_resend(tmp_path: Path, report: Report) -> None:
    held = Held(str(tmp_path / "run"), str(tmp_path / "root"), [], True)
    try:
        names, fds = held.descriptors("view")
        report("FUSE_NOTIFY_RESEND", KernelReplies(fds[names.index("fuse")]).ask_again())
    finally:
        held.release()


def test_fsconfig_lowerdir(image: Path, tmp_path: Path, report: Report) -> None:
    """Lower directories one by one, without a page of options that bounds them; we do without."""
    with _mounted(image, tmp_path / "a") as lower:
        (tmp_path / "b").mkdir()
        context = _call(_FSOPEN, b"overlay", 0)
        try:
            known = False
            with contextlib.suppress(OSError):  # EINVAL, of the first step or of the last
                for directory in (lower, tmp_path / "b"):
                    _call(_FSCONFIG, context, _FSCONFIG_SET_STRING, b"lowerdir+", os.fsencode(directory), 0)
                _call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
                os.close(_call(_FSMOUNT, context, 0, _MOUNT_ATTR_RDONLY))
                known = True
        finally:
            os.close(context)
    report("fsconfig lowerdir+", known)


def test_idmapped_erofs(image: Path, tmp_path: Path, report: Report) -> None:
    """An idmapped clone of a layer's mount shows its files as the container's users own them."""
    with _mounted(image, tmp_path / "a") as lower, _user_namespace() as namespace:
        clone = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(lower), _OPEN_TREE_CLONE)
        try:
            mapped = _idmap(clone, namespace)
            owner = os.stat("file", dir_fd=clone).st_uid
        finally:
            os.close(clone)
    assert owner == (100_000 if mapped else 0)
    report("idmapped EROFS", mapped)


def _idmap(mount: int, namespace: int) -> bool:
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_IDMAP, 0, 0, namespace)  # struct mount_attr
    try:
        _call(_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, attributes, ctypes.sizeof(attributes))
    except OSError as error:
        assert error.errno in (errno.ENOSYS, errno.EINVAL)
        return False
    return True


@contextlib.contextmanager
def _user_namespace() -> Iterator[int]:
    """A user namespace in which root is user 100000 outside."""
    # A program of its own: what is forked from here may have threads (gRPC's), and none of those gets a user namespace.
    unshare = "import ctypes; print(ctypes.CDLL(None).unshare(0x10000000), flush=True); input()"
    argv = [sys.executable, "-c", unshare]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "0\n"
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{process.pid}/{name}").write_text("0 100000 65536")
            descriptor = os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY)
        finally:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.close()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result

"""What this kernel can do beyond what imgdist needs: found out and told, never assumed by any code."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from layer_image import build_image
from parts import require
from rig.images import LayerTar

from agent.held import Held
from agent.layers import idmap, loop
from agent.layers.mount import mount_erofs, umount
from agent.layers.syscall import call
from fuse.device import KernelReplies

Report = Callable[[str, object], None]

# Of <asm-generic/unistd.h>, the same on every architecture; <linux/mount.h>
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_MOUNT_ATTR_RDONLY = 1


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
        context = call(_FSOPEN, b"overlay", 0)
        try:
            known = False
            with contextlib.suppress(OSError):  # EINVAL, of the first step or of the last
                for directory in (lower, tmp_path / "b"):
                    call(_FSCONFIG, context, _FSCONFIG_SET_STRING, b"lowerdir+", os.fsencode(directory), 0)
                call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
                os.close(call(_FSMOUNT, context, 0, _MOUNT_ATTR_RDONLY))
                known = True
        finally:
            os.close(context)
    report("fsconfig lowerdir+", known)


def test_idmapped_erofs(image: Path, tmp_path: Path, report: Report) -> None:
    """An idmapped clone of a layer's mount shows its files as the container's users own them."""
    with (
        _mounted(image, tmp_path / "a") as lower,
        idmap.user_namespace() as namespace,
        idmap.clone(str(lower)) as clone,
    ):
        mapped = idmap.map_ids(clone, namespace)
        owner = os.stat("file", dir_fd=clone).st_uid
    assert owner == (100_000 if mapped else 0)
    report("idmapped EROFS", mapped)

"""What the kernel holds: a FUSE connection whose server hangs is aborted alone."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from parts import require

from imgdist import kernel_state

_SERVER = """
import ctypes, os, sys, time
fuse = os.open("/dev/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
assert libc.mount(b"hung", os.fsencode(sys.argv[1]), b"fuse.hung", 0, options) == 0, ctypes.get_errno()
print("mounted", flush=True)
time.sleep(100)  # and answers nobody
"""
_READER = "import os, sys\ntry: os.listdir(sys.argv[1])\nexcept OSError as error: sys.exit(error.errno)"


@contextmanager
def hung(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A file system at `place` whose server answers nothing; yields somebody who waits for it."""
    place.mkdir()
    with ExitStack() as stack:
        server = subprocess.Popen([sys.executable, "-c", _SERVER, place], stdout=subprocess.PIPE, text=True)
        stack.enter_context(server)
        stack.callback(server.kill)
        assert server.stdout is not None and server.stdout.readline() == "mounted\n"
        stack.callback(kernel_state.unmount, str(place), lazy=True)
        reader = stack.enter_context(subprocess.Popen([sys.executable, "-c", _READER, place], text=True))
        stack.callback(server.kill)  # first of all: it ends the wait of whoever is left
        yield reader


def ended(process: subprocess.Popen[str], timeout_s: float) -> bool:
    descriptor = os.pidfd_open(process.pid)
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


def test_a_hung_connection_is_aborted_and_no_other(tmp_path: Path) -> None:
    require(os.geteuid() == 0 and Path("/dev/fuse").exists(), "root and FUSE")
    with hung(tmp_path / "ours") as waiting, hung(tmp_path / "other") as waiting_too:
        assert not ended(waiting, 0.5)
        (ours,) = kernel_state.mounts_below(str(tmp_path / "ours"))
        kernel_state.abort(ours)
        assert ended(waiting, 10) and waiting.wait() in (errno.ENOTCONN, errno.ECONNABORTED)
        assert not ended(waiting_too, 0.3)
        kernel_state.abort(ours)  # again: nothing to do


def test_a_busy_mount_stays_and_a_missing_one_is_no_error(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root")
    place = tmp_path / "m"
    place.mkdir()
    assert kernel_state.unmount(str(place))
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    held = os.open(place, os.O_RDONLY)
    try:
        assert not kernel_state.unmount(str(place))
    finally:
        os.close(held)
    assert kernel_state.unmount(str(place)) and kernel_state.mounts_below(str(place)) == []


def test_where_a_file_system_is_mounted_once_more_is_found(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root")
    layer, shown = tmp_path / "l", tmp_path / "shown"
    layer.mkdir()
    shown.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", layer], check=True)
    try:
        (entry,) = kernel_state.mounts_below(str(layer))
        assert kernel_state.bound_from(entry) == []
        subprocess.run(["mount", "--bind", layer, shown], check=True)
        try:
            assert kernel_state.bound_from(entry) == [str(shown)]
        finally:
            subprocess.run(["umount", shown], check=True)
    finally:
        subprocess.run(["umount", layer], check=True)


@pytest.mark.parametrize("lowers", ["{root}/l/a:{root}/l/b", "l/a:l/b"], ids=["absolute", "relative"])
def test_overlays_over_a_layer_are_found(tmp_path: Path, lowers: str) -> None:
    require(os.geteuid() == 0, "root")
    for name in ("l/a", "l/b", "l/c", "merged"):
        (tmp_path / name).mkdir(parents=True)
    options = "lowerdir=" + lowers.format(root=tmp_path)
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, "merged"], cwd=tmp_path, check=True)
    try:
        assert kernel_state.overlays_over(f"{tmp_path}/l/a") == [f"{tmp_path}/merged"]
        assert kernel_state.overlays_over(f"{tmp_path}/l/c") == []
    finally:
        subprocess.run(["umount", tmp_path / "merged"], check=True)

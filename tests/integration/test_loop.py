"""Loop devices under EROFS images, as the layers of a node use them."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from parts import require

from agent.layers import loop
from agent.layers.mount import mount_erofs, umount
from imgdist.errors import ImgdistError


@pytest.fixture
def image(tmp_path: Path) -> str:
    require(os.getuid() == 0, "root")
    require(os.path.exists("/dev/loop-control"), "loop devices")
    require(shutil.which("mkfs.erofs"), "mkfs.erofs (Debian: erofs-utils)")
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(300_000))
    path = str(tmp_path / "image")
    subprocess.run(["mkfs.erofs", path, str(source)], check=True, capture_output=True)
    return path


def sysfs(device: str, name: str) -> str:
    return Path("/sys/block", os.path.basename(device), "queue", name).read_text().strip()


def disk_read_ahead(file: str) -> int:
    """Bytes, of the file system's disk as its own tools tell it; 0 if it has none."""
    source = subprocess.run(["findmnt", "-no", "SOURCE", "-T", file], check=True, capture_output=True, text=True).stdout
    told = subprocess.run(["blockdev", "--getra", source.strip()], check=False, capture_output=True, text=True)
    return int(told.stdout) * 512 if told.returncode == 0 else 0


def test_a_layer_mounts_read_only_with_direct_io(image: str, tmp_path: Path) -> None:
    target = tmp_path / "mnt"
    target.mkdir()
    with loop.attached(image) as device:
        assert loop.flags(device) == (True, True, True)
        assert sysfs(device, "logical_block_size") == "4096"
        mount_erofs(device, str(target))
    try:
        assert (target / "file").read_bytes() == (tmp_path / "source/file").read_bytes()
        assert [found.path for found in loop.find(image)] == [device]
        loop.set_read_ahead(device, loop.LAZY_READ_AHEAD)
        assert loop.read_ahead(device) == loop.LAZY_READ_AHEAD
        with open(image, "rb") as file:
            loop.set_read_ahead(device, loop.local_read_ahead(device, file.fileno()))
        assert loop.read_ahead(device) >= max(loop.default_read_ahead(device), disk_read_ahead(image))
    finally:
        assert umount(str(target))
    assert loop.find(image) == []  # autoclear


def test_the_steps_for_old_kernels_give_the_same_device(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_CONFIGURE", 0x4CFF)  # EINVAL, as before Linux 5.8
    with loop.attached(image) as device:
        assert loop.flags(device) == (True, True, True)
        assert sysfs(device, "logical_block_size") == "4096"
    assert loop.find(image) == []


def test_the_file_under_a_mount_changes_unnoticed(image: str, tmp_path: Path) -> None:
    target = tmp_path / "mnt"
    target.mkdir()
    twin = shutil.copy(image, tmp_path / "twin")
    with loop.attached(image) as device:
        mount_erofs(device, str(target))
    try:
        with open(target / "file", "rb") as reader, open(twin, "rb") as other:
            first = reader.read(1000)
            loop.change_file(device, other.fileno())
            assert loop.find(image) == [] and [found.path for found in loop.find(str(twin))] == [device]
            assert first + reader.read() == (tmp_path / "source/file").read_bytes()
        assert loop.flags(device) == (True, True, True)
        short = tmp_path / "short"
        short.write_bytes(b"\0" * 4096)
        with open(short, "rb") as other, pytest.raises(ImgdistError, match="one size"):
            loop.change_file(device, other.fileno())
    finally:
        assert umount(str(target))


def test_a_deleted_file_is_still_found(image: str) -> None:
    with loop.attached(image) as device:
        os.unlink(image)
        assert [found.path for found in loop.find(image)] == [device]
        loop.detach(device)
    loop.detach(device)
    assert loop.find(image) == []


def test_a_size_that_is_no_multiple_of_a_block_is_refused(tmp_path: Path, image: str) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"x" * 5000)
    with pytest.raises(ImgdistError, match="5000 bytes"), loop.attached(str(odd)):
        pass


def test_many_at_once_get_one_each(image: str, tmp_path: Path) -> None:
    copies = [str(shutil.copy(image, tmp_path / f"image{number}")) for number in range(16)]
    contexts = [loop.attached(copy) for copy in copies]
    with ThreadPoolExecutor(16) as pool:
        devices = list(pool.map(lambda context: context.__enter__(), contexts))
        try:
            assert len(set(devices)) == 16
            assert all(
                [found.path for found in loop.find(copy)] == [device]
                for copy, device in zip(copies, devices, strict=True)
            )
        finally:
            for context in contexts:
                context.__exit__(None, None, None)

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from parts import require

from agent.layers import holders
from agent.layers.mount import MS_BIND, BusyError, is_dead, mount, prepare_mount_point, umount
from imgdist import mountinfo
from imgdist.errors import ImgdistError, UnsupportedError


@pytest.fixture
def place(tmp_path: Path) -> str:
    require(os.getuid() == 0, "root")
    directory = tmp_path / "a b\\c"
    directory.mkdir()
    return str(directory)


def test_mount_find_umount(place: str) -> None:
    assert mountinfo.find(place) is None
    mount("source", place, "tmpfs", data="size=1m")
    entry = mountinfo.find(place)
    assert entry is not None and (entry.type, entry.path, entry.source) == ("tmpfs", place, "source")
    assert umount(place) is True
    assert umount(place) is False and umount(place + "/nowhere") is False


def test_errors_name_the_mount_and_the_cause(place: str) -> None:
    with pytest.raises(UnsupportedError, match="nosuchfs"):
        mount("none", place, "nosuchfs")
    with pytest.raises(ImgdistError, match=os.strerror(errno.ENOENT)):
        mount("none", place + "/nowhere", "tmpfs")
    with pytest.raises(ImgdistError, match="5000 bytes of options"):
        mount("none", place, "tmpfs", data="x" * 5000)


def test_a_busy_mount_says_who_holds_it(place: str) -> None:
    mount("none", place, "tmpfs")
    try:
        with open(place + "/file", "w"), pytest.raises(BusyError, match=rf"process {os.getpid()} .*open file"):
            umount(place)
        inner = place + "/inner"
        os.mkdir(inner)
        mount("none", inner, "tmpfs")
        with pytest.raises(BusyError, match="tmpfs mounted on"):
            umount(place)
        umount(inner)
    finally:
        assert umount(place)


def test_holders_see_bind_mounts_and_overlays(place: str, tmp_path: Path) -> None:
    other, over = tmp_path / "other", tmp_path / "over"
    other.mkdir()
    over.mkdir()
    lower = tmp_path / "lower"
    lower.mkdir()
    mount("none", str(lower), "tmpfs")
    mount(str(lower), str(other), "", MS_BIND)
    mount("overlay", str(over), "overlay", data=f"lowerdir={lower}:{tmp_path}/over")
    try:
        whats = {holder.what for holder in holders.of_mount(str(lower))}
        assert whats == {f"mounted on {other} too", f"overlay mounted on {over}"}
    finally:
        for path in (over, other, lower):
            umount(str(path))


def test_a_lazy_umount_takes_a_busy_mount_out_of_the_tree(place: str) -> None:
    mount("none", place, "tmpfs")
    with open(place + "/file", "w"):
        assert umount(place, lazy=True)
        assert mountinfo.find(place) is None


def test_a_dead_fuse_mount_is_cleared_away(place: str) -> None:
    require(os.path.exists("/dev/fuse"), "/dev/fuse")
    device = os.open("/dev/fuse", os.O_RDWR)
    mount("dead", place, "fuse", data=f"fd={device},rootmode=40000,user_id=0,group_id=0")
    os.close(device)
    assert is_dead(place)
    prepare_mount_point(place)
    assert not is_dead(place) and mountinfo.find(place) is None and os.path.isdir(place)

"""A converted layer, mounted, is what containerd's overlayfs unpacking leaves; what containerd refuses is refused."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from erofs_corner_tars import TARS
from erofs_mounts import Unpacker, mounted, unpacker
from integration.rig import tree
from layer_image import build_image

from imgdist.errors import CorruptError, DeclinedError


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unpacker]:
    with unpacker(tmp_path_factory.mktemp("c")) as daemon:
        yield daemon


@pytest.mark.parametrize("name", TARS)
def test_corner_layer_equals_containerds(name: str, containerd: Unpacker, tmp_path: Path) -> None:
    assert_equal(TARS[name], containerd, tmp_path)


def assert_equal(tar: bytes, containerd: Unpacker, directory: Path) -> None:
    """Unpack and convert `tar` and compare the verdicts, then the trees."""
    theirs = containerd.unpack(tar)
    try:
        built = build_image([tar], directory / "image")
    except (DeclinedError, CorruptError) as error:
        assert isinstance(theirs, str), f"we refuse what containerd takes: {error}"
        return
    assert isinstance(theirs, Path), f"we take what containerd refuses: {theirs}"
    with mounted(directory / "image", directory / "mount") as root:
        ours = tree.read(root)
    expected = tree.read(theirs)
    # The root is the runtime's; times of implied directories and of whiteouts are the unpacker's clock.
    exempt = {path.decode(errors="surrogateescape") for path in built.summary.implied_directories}
    exempt |= {path for path, entry in expected.items() if stat.S_ISCHR(entry.mode) and entry.device == 0}
    ours[""] = expected[""] = replace(expected[""], mtime_ns=0)
    assert tree.differences(ours, expected, exempt) == []


def test_layer_of_this_machine_equals_containerds(containerd: Unpacker, tmp_path: Path) -> None:
    """Some thousand files, links and directories as a distribution has them, written by GNU tar with pax headers."""
    tar = ["tar", "--create", "--format=posix", "--numeric-owner", "--sort=name", "--xattrs", "--xattrs-include=*"]
    roots = ["etc", "usr/lib/python3", "usr/share/zoneinfo", "usr/share/terminfo", "var/lib/dpkg/info"]
    present = [root for root in roots if Path("/", root).exists()]
    made = subprocess.run([*tar, "--directory=/", "--file=-", *present], stdout=subprocess.PIPE, check=True)
    assert_equal(made.stdout, containerd, tmp_path)

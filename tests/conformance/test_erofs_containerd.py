"""A converted layer, mounted, is what containerd's overlayfs unpacking leaves; what containerd refuses is refused."""

from __future__ import annotations

import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from erofs_corner_tars import TARS
from image_comparison import UNKNOWABLE
from integration.rig import tree
from layer_image import Built, build_image
from lazy_images import mounted, undescribed
from raw_tar import END, file
from unpackers import Refused, Unpacker

from imgdist.errors import CorruptError, DeclinedError

_BASE = file(b"base-file", b"below") + END


@pytest.mark.parametrize("name", TARS)
def test_corner_layer_equals_containerds(name: str, containerds: list[Unpacker], tmp_path: Path) -> None:
    assert_equal(TARS[name], containerds, tmp_path)


def assert_equal(tar: bytes, containerds: list[Unpacker], directory: Path) -> None:
    """Unpack and convert `tar` and compare the verdicts, then the trees."""
    built: Built | Exception
    try:
        built = build_image([tar], directory / "image")
        with mounted(directory / "image", directory / "mount") as root:
            ours = tree.read(root)
    except (DeclinedError, CorruptError) as error:
        built = error
    for containerd in containerds:
        try:
            with containerd.directory([_BASE, tar]) as root:
                theirs = tree.read(root)
        except Refused as refused:
            assert isinstance(built, Exception), f"we take what containerd {containerd.version} refuses: {refused}"
            continue
        if isinstance(built, Exception):
            needed = any(reason in str(built) for reason in UNKNOWABLE)
            assert needed, f"we refuse what containerd {containerd.version} takes: {built}"
            continue
        # The root is the runtime's; times of implied directories and of whiteouts are the unpacker's clock.
        exempt = undescribed(built.summary.implied_directories)
        exempt |= {path for path, entry in theirs.items() if stat.S_ISCHR(entry.mode) and entry.device == 0}
        ours[""] = theirs[""] = replace(theirs[""], mtime_ns=0)
        assert tree.differences(ours, theirs, exempt) == [], containerd.version


def test_layer_of_this_machine_equals_containerds(containerds: list[Unpacker], tmp_path: Path) -> None:
    """Some thousand files, links and directories as a distribution has them, written by GNU tar with pax headers."""
    tar = ["tar", "--create", "--format=posix", "--numeric-owner", "--sort=name", "--xattrs", "--xattrs-include=*"]
    roots = ["etc", "usr/lib/python3", "usr/share/zoneinfo", "usr/share/terminfo", "var/lib/dpkg/info"]
    present = [root for root in roots if Path("/", root).exists()]
    made = subprocess.run([*tar, "--directory=/", "--file=-", *present], stdout=subprocess.PIPE, check=True)
    assert_equal(made.stdout, containerds, tmp_path)

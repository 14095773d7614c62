"""Whether lower directories can be id-mapped is tried on real mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from parts import require

from agent.layers import idmap, mount
from agent.layers.idmap import IdMaps
from imgdist import mountinfo


def test_directories_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that can, and one that never will; nothing is attached, and a success is remembered."""
    require(os.geteuid() == 0, "root")
    maps = IdMaps()
    assert maps.can_map([str(tmp_path / "a"), str(tmp_path / "b")])
    assert not maps.can_map(["/proc/1", "/proc/2"])
    assert not [entry for entry in mountinfo.entries() if entry.path.startswith(str(tmp_path))]
    monkeypatch.setattr(idmap, "_can_map", lambda _: False)
    assert maps.can_map([str(tmp_path / "c")])
    assert not maps.can_map(["/elsewhere/a"])


def test_one_mount_that_cannot_be_mapped_is_in_the_way(tmp_path: Path) -> None:
    """As containerd would find it: all mounts of the directory count, not just those that are lower directories."""
    require(os.geteuid() == 0, "root")
    inner = tmp_path / "inner"
    inner.mkdir()
    mount.mount("proc", str(inner), "proc")
    try:
        assert not IdMaps().can_map([str(tmp_path / "a"), str(tmp_path / "b")])
    finally:
        mount.umount(str(inner))
    assert IdMaps().can_map([str(tmp_path / "a"), str(tmp_path / "b")])


def test_without_user_namespaces_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idmap, "_NAMESPACE", "import sys; sys.exit(1)")
    assert not IdMaps().can_map([str(tmp_path / "a")]), "EPERM: not allowed is not possible"

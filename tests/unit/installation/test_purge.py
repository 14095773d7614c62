"""ROOT is deleted but for what is in use, and for what an agent did not make."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from parts import require

from imgdist.installation import purge


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for path in (
        "packs/aa",
        "packs/bb",
        "l/a",
        "snapshots/1/fs",
        "snapshots/2/fs",
        "snapshots/2/work",
        "images",
        "revoked",
    ):
        (root / path).mkdir(parents=True)
    (root / "packs/aa/image").write_bytes(bytes(1 << 20))
    for name in ("snapshots.db", "agent.db", "agent.db.bad-wal", "ballast", "format", "node-id", ".lock"):
        (root / name).write_text("")
    return root


def test_an_unused_root_goes_whole(root: Path) -> None:
    assert purge.delete(str(root), dry_run=True) == [] and root.exists()
    assert purge.delete(str(root)) == [] and not root.exists()
    assert purge.delete(str(root)) == [], "again"


def test_what_others_put_there_stays(root: Path) -> None:
    (root / "notes").write_text("mine")
    (left,) = purge.delete(str(root))
    assert left.path == str(root / "notes") and os.listdir(root) == ["notes"]


def test_what_is_in_use_stays(root: Path, tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root")
    losetup = ["losetup", "--find", "--show", "--read-only", root / "packs/aa/image"]
    device = subprocess.run(losetup, capture_output=True, text=True, check=True).stdout.strip()
    merged, bound = tmp_path / "merged", tmp_path / "bound"
    called = tmp_path / "called"
    called.symlink_to(root)
    merged.mkdir()
    bound.mkdir()
    two = root / "snapshots/2"
    options = f"lowerdir={called}/snapshots/1/fs,upperdir={called}/snapshots/2/fs,workdir={called}/snapshots/2/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    (root / "snapshots/3/fs").mkdir(parents=True)
    subprocess.run(["mount", "--bind", root / "snapshots/3/fs", bound], check=True)
    try:
        left = {one.path: one.reason for one in purge.delete(str(called))}
    finally:
        subprocess.run(["umount", merged, bound], check=True)
        subprocess.run(["losetup", "--detach", device], check=True)
    assert set(left) == {str(root / path) for path in ("packs/aa", "snapshots/1", "snapshots/2", "snapshots/3")}
    assert device in left[str(root / "packs/aa")] and str(merged) in left[str(two)]
    assert str(bound) in left[str(root / "snapshots/3")]
    assert sorted(os.listdir(root)) == ["packs", "snapshots"] and os.listdir(root / "packs") == ["aa"]
    assert purge.delete(str(root)) == [] and not root.exists(), "later, when nothing uses it"


def test_a_root_that_is_a_file_system_of_its_own_is_emptied(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root")
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", root], check=True)
    try:
        (root / "packs/aa").mkdir(parents=True)
        (left,) = purge.delete(str(root))
        assert (left.path, os.listdir(root)) == (str(root), []) and "mounted" in left.reason
    finally:
        subprocess.run(["umount", root], check=True)


def test_what_containers_wrote_is_named_and_stays(root: Path) -> None:
    (root / "snapshots.1.bad").mkdir()
    assert [(left.path, left.reason) for left in purge.delete(str(root))] == [
        (str(root / "snapshots.1.bad"), "what containers wrote before snapshots.db was lost")
    ]
    assert (root / "snapshots.1.bad").is_dir()

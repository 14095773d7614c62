"""Fix-up lowers, held against what overlayfs shows with them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from parts import require

from agent.layers import fixup
from agent.layers.mount import mount, umount


@pytest.fixture(autouse=True)
def _root() -> None:
    require(os.getuid() == 0, "root")


def tree(root: Path, **directories: tuple[int, int]) -> str:
    """Directories (path with __ for /) with (mode, owner)."""
    root.mkdir()
    for name, (mode, owner) in directories.items():
        path = root / name.replace("__", "/")
        path.mkdir()
        os.chown(path, owner, owner)
        path.chmod(mode)
    return str(root)


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


PLAIN = (0o755, 0)


def test_nothing_where_nothing_differs(tmp_path: Path) -> None:
    below = tree(tmp_path / "below", etc=PLAIN)
    layer = tree(tmp_path / "layer", etc=PLAIN, new=PLAIN)
    assert fixup.plan([b"etc", b"new"], layer, [below]) == {}
    assert fixup.plan([b"etc"], layer, []) == {}


def test_the_merged_view_has_the_lower_attributes(tmp_path: Path) -> None:
    below = tree(tmp_path / "below", tmp=(0o1777, 0), home=PLAIN, home__x=(0o700, 1000))
    os.setxattr(f"{below}/home/x", "user.note", b"mine")
    layer = tree(tmp_path / "layer", tmp=PLAIN, home=(0o711, 5), home__x=PLAIN)
    (Path(layer) / "home/x/file").write_text("new")
    wanted = fixup.plan([b"home/x", b"tmp"], layer, [below])
    assert list(wanted) == [b"home", b"home/x", b"tmp"]
    fix = tree(tmp_path / "fix")
    fixup.create(fix, wanted)
    merged = tmp_path / "merged"
    merged.mkdir()
    mount("overlay", str(merged), "overlay", data=f"lowerdir={fix}:{layer}:{below}")
    try:
        seen = {name: os.stat(merged / name) for name in ("tmp", "home", "home/x")}
        assert {name: (stat.S_IMODE(s.st_mode), s.st_uid) for name, s in seen.items()} == {
            "tmp": (0o1777, 0),
            "home": (0o711, 5),  # listed by the layer: its own word counts
            "home/x": (0o700, 1000),
        }
        assert os.getxattr(merged / "home/x", "user.note") == b"mine"
        assert (merged / "home/x/file").read_text() == "new"
    finally:
        umount(str(merged))


def test_the_topmost_lower_layer_counts_fix_ups_included(tmp_path: Path) -> None:
    old = tree(tmp_path / "old", etc=(0o700, 0))
    fix = tree(tmp_path / "fix", etc=(0o750, 7))
    layer = tree(tmp_path / "layer", etc=PLAIN)
    found = fixup.plan([b"etc"], layer, [fix, old])
    assert found == {b"etc": fixup.Attributes(0o750, 7, 0 + 7, ())}


def test_a_whiteout_or_a_file_hides_what_lies_below(tmp_path: Path) -> None:
    old = tree(tmp_path / "old", a=(0o700, 0), b=(0o700, 0), c=PLAIN, c__d=(0o700, 0))
    middle = tree(tmp_path / "middle")
    whiteout(Path(middle) / "a")
    (Path(middle) / "b").write_text("a file now")
    whiteout(Path(middle) / "c")
    layer = tree(tmp_path / "layer", a=PLAIN, b=PLAIN, c=PLAIN, c__d=PLAIN)
    assert fixup.plan([b"a", b"b", b"c", b"c/d"], layer, [middle, old]) == {}


def test_an_opaque_directory_hides_what_lies_below_it(tmp_path: Path) -> None:
    old = tree(tmp_path / "old", a=(0o700, 0), a__b=(0o700, 0))
    middle = tree(tmp_path / "middle", a=(0o711, 0))
    os.setxattr(f"{middle}/a", fixup.OPAQUE, b"y")
    layer = tree(tmp_path / "layer", a=PLAIN, a__b=PLAIN)
    assert list(fixup.plan([b"a", b"a/b"], layer, [middle, old])) == [b"a"]


def test_opaque_of_the_layer_itself_still_works_below_a_fix_up(tmp_path: Path) -> None:
    below = tree(tmp_path / "below", d=(0o1777, 0))
    (Path(below) / "d/old").write_text("hidden")
    layer = tree(tmp_path / "layer", d=PLAIN)
    os.setxattr(f"{layer}/d", fixup.OPAQUE, b"y")
    (Path(layer) / "d/new").write_text("seen")
    fix = tree(tmp_path / "fix")
    fixup.create(fix, fixup.plan([b"d"], layer, [below]))
    merged = tmp_path / "merged"
    merged.mkdir()
    mount("overlay", str(merged), "overlay", data=f"lowerdir={fix}:{layer}:{below}")
    try:
        assert os.listdir(merged / "d") == ["new"]
        assert stat.S_IMODE(os.stat(merged / "d").st_mode) == 0o1777
    finally:
        umount(str(merged))

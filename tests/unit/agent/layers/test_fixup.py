"""Fix-up lowers, held against what overlayfs shows with them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from parts import require

from agent.layers import fixup
from agent.layers.mount import mount, umount
from imgdist.errors import DeclinedError


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
    assert fixup.plan([b"etc", b"new"], layer, [[below]]) == {}
    assert fixup.plan([b"etc"], layer, []) == {}


def test_looking_up_directories_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 60 names is looked up from the root on, in each layer: an image may have billions."""
    names = ["__".join("d" * depth) for depth in range(1, 61)]
    below, layer = (tree(tmp_path / name, **dict.fromkeys(names, PLAIN)) for name in ("below", "layer"))
    implied = [name.replace("__", "/").encode() for name in names]
    assert fixup.plan(implied, layer, [[below]]) == {}
    monkeypatch.setattr(fixup, "STEPS_MAX", 60 * 61 // 2)
    with pytest.raises(DeclinedError, match="more than 1830 steps"):
        fixup.plan(implied, layer, [[below]])


def test_the_merged_view_has_the_lower_attributes(tmp_path: Path) -> None:
    below = tree(tmp_path / "below", tmp=(0o1777, 0), home=PLAIN, home__x=(0o700, 1000))
    os.setxattr(f"{below}/home/x", "user.note", b"mine")
    layer = tree(tmp_path / "layer", tmp=PLAIN, home=(0o711, 5), home__x=PLAIN)
    (Path(layer) / "home/x/file").write_text("new")
    wanted = fixup.plan([b"home/x", b"tmp"], layer, [[below]])
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


def test_a_fix_up_lower_speaks_for_its_layer(tmp_path: Path) -> None:
    old = tree(tmp_path / "old", etc=(0o700, 0))
    fix = tree(tmp_path / "fix", etc=(0o750, 7))
    fixed = tree(tmp_path / "fixed", etc=PLAIN)
    (Path(fixed) / "link").symlink_to("etc")
    layer = tree(tmp_path / "layer", etc=PLAIN, link=PLAIN)
    expected = fixup.Attributes(0o750, 7, 7, ())
    assert fixup.plan([b"etc", b"link"], layer, [[fix, fixed], [old]]) == {b"etc": expected, b"link": expected}


def test_a_whiteout_or_a_file_hides_what_lies_below(tmp_path: Path) -> None:
    old = tree(tmp_path / "old", a=(0o700, 0), b=(0o700, 0), c=PLAIN, c__d=(0o700, 0))
    middle = tree(tmp_path / "middle")
    whiteout(Path(middle) / "a")
    (Path(middle) / "b").write_text("a file now")
    whiteout(Path(middle) / "c")
    layer = tree(tmp_path / "layer", a=PLAIN, b=PLAIN, c=PLAIN, c__d=PLAIN)
    assert fixup.plan([b"a", b"b", b"c"], layer, [[middle], [old]]) == {}
    with pytest.raises(DeclinedError, match="which is no directory"):  # as containerd, which asks each layer for c/d
        fixup.plan([b"c", b"c/d"], layer, [[middle], [old]])


def test_an_opaque_directory_hides_nothing_from_containerd(tmp_path: Path) -> None:
    old = tree(tmp_path / "old", a=(0o700, 0), a__b=(0o700, 0))
    middle = tree(tmp_path / "middle", a=(0o711, 0))
    os.setxattr(f"{middle}/a", "trusted.overlay.opaque", b"y")
    layer = tree(tmp_path / "layer", a=PLAIN, a__b=PLAIN)
    found = fixup.plan([b"a", b"a/b"], layer, [[middle], [old]])
    assert {path: attributes.mode for path, attributes in found.items()} == {b"a": 0o711, b"a/b": 0o700}


def test_a_directory_described_late_keeps_the_xattrs_below(tmp_path: Path) -> None:
    below = tree(tmp_path / "below", d=(0o700, 3))
    layer = tree(tmp_path / "layer", d=(0o711, 5))
    os.setxattr(f"{below}/d", "user.a", b"below")
    os.setxattr(f"{below}/d", "user.b", b"below")
    os.setxattr(f"{layer}/d", "user.b", b"own")
    expected = fixup.Attributes(0o711, 5, 5, (("user.a", b"below"), ("user.b", b"own")))
    assert fixup.plan([b"d/"], layer, [[below]]) == {b"d": expected}


def test_a_fix_up_lower_keeps_the_times_of_the_layer(tmp_path: Path) -> None:
    below = tree(tmp_path / "below", d=PLAIN, d__e=(0o700, 0))
    layer = tree(tmp_path / "layer", d=(0o711, 0), d__e=PLAIN)
    for name, time_ns in (("d/e", 7), ("d", 1_000_000_000_000_000_001)):
        os.utime(Path(layer, name), ns=(0, time_ns))
    fix = tree(tmp_path / "fix")
    fixup.create(fix, fixup.plan([b"d/e"], layer, [[below]]))
    assert [os.stat(Path(fix, name)).st_mtime_ns for name in ("d", "d/e")] == [1_000_000_000_000_000_001, 7]


def test_opaque_of_the_layer_itself_still_works_below_a_fix_up(tmp_path: Path) -> None:
    below = tree(tmp_path / "below", d=(0o1777, 0))
    (Path(below) / "d/old").write_text("hidden")
    layer = tree(tmp_path / "layer", d=PLAIN)
    os.setxattr(f"{layer}/d", "trusted.overlay.opaque", b"y")
    (Path(layer) / "d/new").write_text("seen")
    fix = tree(tmp_path / "fix")
    fixup.create(fix, fixup.plan([b"d"], layer, [[below]]))
    merged = tmp_path / "merged"
    merged.mkdir()
    mount("overlay", str(merged), "overlay", data=f"lowerdir={fix}:{layer}:{below}")
    try:
        assert os.listdir(merged / "d") == ["new"]
        assert stat.S_IMODE(os.stat(merged / "d").st_mode) == 0o1777
    finally:
        umount(str(merged))

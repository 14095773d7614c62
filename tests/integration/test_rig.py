"""The rig without imgdist: what the suites beside it rest on must hold with containerd's own snapshotter too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from parts import require
from rig import makers, tree
from rig.containerds import Setting, containerd
from rig.images import Workshop, busybox_layer

from imgdist.demo.ports import free_port
from imgdist.demo.registry import registry


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    require(Path("/bin/busybox").exists(), "busybox-static")
    place = tmp_path_factory.mktemp("reg")
    with registry(place / "registry", f"127.0.0.1:{free_port()}") as address:
        yield Workshop(place / "images", address)


@pytest.mark.parametrize("version", ["1.6", "2"])
def test_a_pod_runs_by_cri(version: str, workshop: Workshop, tmp_path: Path) -> None:
    setting = Setting(version, snapshotter="overlayfs")  # type: ignore[arg-type]
    pause = workshop.push(f"pause{version}", [busybox_layer()], command=("/bin/sleep", "1000000"))
    image = workshop.push(f"plain{version}", [busybox_layer(("etc/word", b"plain\n"))])
    with containerd(tmp_path / "c", setting, tmp_path / "none.sock", pause.reference) as daemon, daemon.cri() as cri:
        assert cri.version().lstrip("v").startswith("1.6." if version == "1.6" else "2.")
        cri.pull(image.reference)
        assert image.reference in cri.images() and cri.has_image(image.reference)
        assert daemon.holds_blob(image.layer_digests[0])
        with cri.pod("rig", tmp_path / "logs") as pod:
            container = pod.start("one", image.reference, "/bin/sleep", "1000")
            assert container.run("/bin/cat", "/etc/word") == b"plain\n"
            assert container.running()
        cri.remove_image(image.reference)
        assert not cri.has_image(image.reference)


@pytest.mark.parametrize("make", [makers.as_builders_make_them, makers.seventy_layers])
def test_two_generations_of_containerd_unpack_alike(
    make: Callable[[Workshop, Path], makers.Made], workshop: Workshop, tmp_path: Path
) -> None:
    """The oracle agrees with itself: otherwise equality with it would say nothing."""
    image = make(workshop, tmp_path)
    trees = []
    for version in ("1.6", "2"):
        setting = Setting(version, snapshotter="overlayfs")  # type: ignore[arg-type]
        with containerd(tmp_path / version, setting, tmp_path / "none.sock", "unused:1") as daemon:
            daemon.ctr("images", "pull", "--plain-http", "--snapshotter", "overlayfs", image.reference)
            with daemon.mounted(image.chain_id, "overlayfs", tmp_path / f"m{version}") as root:
                trees.append(tree.read(root))
    assert len(trees[0]) > 20
    assert tree.differences(*trees, tree.implied_directories(image.layers)) == []


def _rewrite(root: Path) -> None:
    state = (root / "d/f").stat()
    (root / "d/f").write_text("other")
    os.utime(root / "d/f", ns=(state.st_atime_ns, state.st_mtime_ns))


def _break_hard_link(root: Path) -> None:
    times = [os.lstat(root / name).st_mtime_ns for name in ("d/f", "d")]
    content = (root / "d/f").read_bytes()
    (root / "d/f").unlink()
    (root / "d/f").write_bytes(content)
    for name, time_ns in zip(("d/f", "d"), times, strict=True):
        os.utime(root / name, ns=(time_ns, time_ns))


@pytest.mark.parametrize(
    ("change", "aspect"),
    [
        (_rewrite, "content"),
        (_break_hard_link, "twins"),
        (lambda root: os.utime(root / "d", ns=(0, os.lstat(root / "d").st_mtime_ns + 1)), "mtime_ns"),
        (lambda root: os.chmod(root / "d/f", 0o600), "mode"),
        (lambda root: os.chown(root / "d/s", 7, 8, follow_symlinks=False), "owner"),
        (lambda root: os.setxattr(root / "d/f", "user.x", b"y"), "xattrs"),
        (lambda root: os.mkfifo(root / "extra"), "only with us"),
        (lambda root: os.unlink(root / "d/s"), "missing with us"),
    ],
)
def test_tree_reader_sees_a_difference(change: Callable[[Path], None], aspect: str, tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root")
    for name in ("a", "b"):
        (tmp_path / name / "d").mkdir(parents=True)
        (tmp_path / name / "d/f").write_text("value")
        os.link(tmp_path / name / "d/f", tmp_path / name / "d/g")
        os.symlink("f", tmp_path / name / "d/s")
        for path in ("d/f", "d/s", "d"):
            os.utime(tmp_path / name / path, ns=(1, 1_700_000_000_000_000_123), follow_symlinks=False)
    assert tree.differences(tree.read(tmp_path / "a"), tree.read(tmp_path / "b")) == []
    change(tmp_path / "a")
    found = tree.differences(tree.read(tmp_path / "a"), tree.read(tmp_path / "b"))
    assert any(aspect in line for line in found), found

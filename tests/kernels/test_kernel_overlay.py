"""Many layers: loop devices, EROFS mounts and one overlayfs over all of them, by mount(2) as containerd does it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from layer_image import build_image
from parts import require
from rig.images import LayerTar

from agent.layers import loop
from agent.layers.mount import mount, mount_erofs, umount
from agent.snapshotter.model import Kind
from agent.snapshotter.mounts import Place, mounts

LAYERS = 128


@pytest.fixture
def lowers() -> Iterator[list[Path]]:
    """Mounted layers, the top one first. Layer n has the files `n` and, as all the others do, `top`."""
    require(os.geteuid() == 0, "root")
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="")))
        found = []
        for number in range(LAYERS):
            image, target = base / f"{number}.image", base / f"{number:x}"
            tar = LayerTar().add(str(number), b"%d" % number).add("top", b"%d" % number)
            build_image([tar.bytes()], image)
            target.mkdir()
            with loop.attached(str(image)) as device:
                mount_erofs(device, str(target))
            stack.callback(umount, str(target))
            found.append(target)
        yield found[::-1]


def test_an_overlay_of_128_layers(lowers: list[Path], tmp_path: Path, report: Callable[[str, object], None]) -> None:
    place = Place(str(tmp_path / "u"), str(tmp_path / "w"))
    target = tmp_path / "m"
    for directory in (place.upper, place.work, target):
        os.mkdir(directory)
    (made,) = mounts(Kind.ACTIVE, place, [str(lower) for lower in lowers], separate_file_systems=True)
    mount(made.source, str(target), made.type, data=",".join(made.options))
    try:
        assert {path.name: path.read_bytes() for path in target.iterdir()} == {
            "top": b"%d" % (LAYERS - 1),
            **{str(number): b"%d" % number for number in range(LAYERS)},
        }
        (target / "0").write_bytes(b"changed")
        assert (target / "0").read_bytes() == b"changed" and (lowers[-1] / "0").read_bytes() == b"0"
        assert len({os.stat(target / str(number)).st_dev for number in range(LAYERS)}) == 1  # xino
    finally:
        umount(str(target))
    report("layers below one overlayfs", LAYERS)

"""Disk, rows, mounts and loop devices damaged one by one between a stop and a start: the start puts them right."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig.containerds import Setting
from rig.images import LayerTar, busybox_layer
from rig.stack import Stack, stack

from imgdist.demo import leftovers
from imgdist.demo.processes import wait_until

_BIG = random.Random(9).randbytes(5_000_000)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Stack]:
    with stack(tmp_path / "s") as running:
        yield running


def loop_of(file: Path) -> str:
    losetup = ["losetup", "--find", "--show", "--read-only", file]
    return subprocess.run(losetup, capture_output=True, text=True, check=True).stdout.strip()


def test_whatever_is_damaged_is_right_after_a_start(made: Stack, tmp_path: Path) -> None:
    node = made.node
    image = made.workshop.push("app", [busybox_layer(), LayerTar().add("big", _BIG).bytes()])
    daemon = made.containerd(Setting("2"))
    with daemon.cri() as cri:
        cri.pull(image.reference)
        node.wait_settled(2)
        assert node.stop() == 0

        # A directory without a row; a mount and a loop device of no layer; packs that are gone, their mounts with them.
        (node.root / "snapshots/999/fs").mkdir(parents=True)
        packs = list(node.root.glob("packs/*"))
        (node.root / "packs/foreign").mkdir()
        shutil.copy(packs[0] / "image", node.root / "packs/foreign")
        leftovers.unmount_below(node.root / "l")
        for pack in packs:
            shutil.rmtree(pack)
        copy = node.root / "packs/foreign/image"
        loop_of(copy)
        (node.root / "l/zzzz").mkdir()
        subprocess.run(["mount", "-t", "erofs", "-o", "ro", loop_of(copy), node.root / "l/zzzz"], check=True)

        node.start()
        daemon.wait_for_snapshotter()
        wait_until(lambda: not (node.root / "snapshots/999").exists(), "the directory without a row gone")
        wait_until(lambda: node.root / "l/zzzz" not in leftovers.mounts_below(node.root), "the foreign mount gone")
        # By file: a layer may have been given the same device since.
        wait_until(lambda: leftovers.loops_below(copy.parent) == [], "the loop devices of no layer freed")
        with cri.pod("pod", tmp_path / "logs") as pod:
            container = pod.start("c", image.reference, "/bin/sleep", "100000")
            said = container.run("/bin/sha256sum", "/big").split()[0].decode()
            assert said == hashlib.sha256(_BIG).hexdigest(), "packs that were gone are here again"
        wait_until(lambda: len(leftovers.loops_below(node.root)) <= 2, "one loop device a layer")
    said = node.log()
    for words in ("belong to no snapshot", "to no mount: freed", "was mounted there: unmounted", "brought back for"):
        assert words in said, words

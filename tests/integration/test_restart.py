"""Restarts with registry and supernode off: what a node has, it keeps, and so do its containers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rig.containerds import Containerd, Setting
from rig.cri import Container
from rig.images import LayerTar, busybox_layer
from rig.stack import Stack, stack

from imgdist.demo import caches, leftovers

_BOOT_ID_AT = 16  # of present maps and frames
_CONTENT = random.Random(2).randbytes(6_000_000)


def containerd_restarts(made: Stack, daemon: Containerd) -> None:
    daemon.stop()
    daemon.start()


def agent_restarts(made: Stack, daemon: Containerd) -> None:
    assert made.node.stop() == 0
    made.node.start()
    daemon.wait_for_snapshotter()


def both_restart(made: Stack, daemon: Containerd) -> None:
    """In the order of the units: the agent stops after containerd and is there before it."""
    daemon.stop()
    assert made.node.stop() == 0
    made.node.start()
    daemon.start()


def agent_dies_then_both_restart(made: Stack, daemon: Containerd) -> None:
    """As after the OOM killer, while nobody was told anything."""
    made.node.kill()
    daemon.stop()
    made.node.start()
    daemon.start()


def reads_big(container: Container) -> bool:
    return container.run("/bin/sha256sum", "/big").split()[0].decode() == hashlib.sha256(_CONTENT).hexdigest()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Stack]:
    with stack(tmp_path / "s") as running:
        yield running


@pytest.mark.parametrize("version", ["1.6", "2"])
@pytest.mark.parametrize("restart", [containerd_restarts, agent_restarts, both_restart, agent_dies_then_both_restart])
def test_images_and_containers_outlive_a_restart(
    made: Stack, tmp_path: Path, version: str, restart: Callable[[Stack, Containerd], None]
) -> None:
    layer = LayerTar().add("big", _CONTENT).add("word", b"still here\n").bytes()
    image = made.workshop.push("kept", [busybox_layer(), layer])
    daemon = made.containerd(Setting(version))  # type: ignore[arg-type]
    with daemon.cri() as cri:
        cri.pull(image.reference)
        with cri.pod("first", tmp_path / "logs") as pod:
            old = pod.start("old", image.reference, "/bin/sleep", "100000")
            made.node.wait_settled(2)
            made.go_offline()
            before = cri.images()

            restart(made, daemon)
            caches.drop()

            assert image.reference in before and cri.images() == before
            assert old.running()
            assert reads_big(old)
            with cri.pod("second", tmp_path / "logs2") as later:
                new = later.start("new", image.reference, "/bin/sleep", "100000")
                assert new.run("/bin/cat", "/word") == b"still here\n"
                assert reads_big(new)


def _reboot(made: Stack, daemon: Containerd) -> None:
    """What a machine that goes down and comes up has: its disks, and another boot's id."""
    made.node.kill()
    daemon.stop()
    leftovers.unmount_below(made.node.root)
    leftovers.unmount_below(made.node.run)
    leftovers.detach_loops_below(made.node.root)
    for pack in (made.node.root / "packs").iterdir():
        for name in ("present", "frames"):
            if (pack / name).exists():
                with open(pack / name, "r+b") as file:
                    file.seek(_BOOT_ID_AT)
                    file.write(b"0" * 36)
    made.node.start()
    daemon.start()


@pytest.mark.parametrize("version", ["1.6", "2"])
def test_a_reboot_brings_every_snapshot_back(made: Stack, tmp_path: Path, version: str) -> None:
    """Registry and supernode off; layers that were never synced are hashed, not believed."""
    layer = LayerTar().add("big", _CONTENT).add("deep/er/word", b"still here\n").bytes()
    image = made.workshop.push("kept", [busybox_layer(), layer])
    daemon = made.containerd(Setting(version))  # type: ignore[arg-type]
    with daemon.cri() as cri:
        cri.pull(image.reference)
        with cri.pod("first", tmp_path / "logs") as pod:
            pod.start("old", image.reference, "/bin/sleep", "100000")
            made.node.wait_settled(2)
        images, snapshots = cri.images(), _snapshots(daemon)
    made.go_offline()
    _reboot(made, daemon)
    with daemon.cri() as cri:
        assert (cri.images(), _snapshots(daemon)) == (images, snapshots)
        with cri.pod("second", tmp_path / "logs2") as pod:
            new = pod.start("new", image.reference, "/bin/sleep", "100000")
            assert new.run("/bin/cat", "/deep/er/word") == b"still here\n"
            assert reads_big(new)


def _snapshots(daemon: Containerd) -> set[str]:
    """Names of the committed ones: containers of before are gone."""
    listed = daemon.ctr("snapshots", "--snapshotter", "imgdist", "ls", namespace="k8s.io")
    return {line.split()[0] for line in listed.splitlines() if line.endswith("Committed")}

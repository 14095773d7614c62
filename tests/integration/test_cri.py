"""Images on demand, by every client that can ask for them; and what a container keeps when all of imgdist dies."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from rig import tree
from rig.containerds import Containerd, Setting, ctr_container
from rig.images import LayerTar, Pushed, Workshop, busybox_layer, digest
from rig.stack import Stack, stack

from imgdist.demo import caches

_OWN_OF_RUNTIME = {"etc/hosts", "etc/hostname", "etc/resolv.conf"}  # bound into containers from outside


class Running(Protocol):
    """A container that takes commands, whoever started it."""

    def run(self, *command: str) -> bytes: ...


def lazy_image(workshop: Workshop) -> Pushed:
    """Three layers: programs, many files, one large file; the last two too large to be fetched whole at Prepare."""
    draw = random.Random(1)
    many = LayerTar().add("data/")
    for number in range(60):
        many.add(f"data/{number:02}", draw.randbytes(draw.randrange(1, 300_000)), mode=0o640)
    large = LayerTar().add("large", draw.randbytes(9_000_001)).add("data/.wh.59").add("etc/word", b"lazy\n")
    return workshop.push("lazy", [busybox_layer(), many.bytes(), large.bytes()])


@contextmanager
def by_cri(daemon: Containerd, reference: str, logs: Path) -> Iterator[Running]:
    with daemon.cri() as cri:
        cri.pull(reference)
        assert reference in cri.images()
        with cri.pod("lazy", logs) as pod:
            yield pod.start("lazy", reference, "/bin/sleep", "100000")


@contextmanager
def by_ctr(daemon: Containerd, reference: str, logs: Path) -> Iterator[Running]:
    """2.x: the transfer service."""
    daemon.ctr("images", "pull", "--plain-http", "--snapshotter", "imgdist", reference)
    with ctr_container(daemon, reference, "lazy", "/bin/sleep", "100000") as container:
        yield container


@contextmanager
def by_ctr_remote(daemon: Containerd, reference: str, logs: Path) -> Iterator[Running]:
    """Debian's client of remote snapshotters; its labels are stargz-snapshotter's."""
    daemon.ctr_remote("images", "rpull", "--plain-http", "--snapshotter", "imgdist", reference)
    with ctr_container(daemon, reference, "lazy", "/bin/sleep", "100000") as container:
        yield container


Way = Callable[[Containerd, str, Path], AbstractContextManager[Running]]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Stack]:
    with stack(tmp_path / "s") as made:
        yield made


@pytest.mark.parametrize(
    ("setting", "way", "preheated"),
    [
        pytest.param(Setting("1.6", annotations=False), by_cri, True, id="1.6-default-configuration"),
        pytest.param(Setting("1.6"), by_cri, False, id="1.6-annotations"),
        pytest.param(Setting("1.6"), by_ctr_remote, False, id="1.6-ctr-remote"),
        pytest.param(Setting("2"), by_cri, False, id="2-cri"),
        pytest.param(Setting("2"), by_ctr, False, id="2-transfer-service"),
        pytest.param(Setting("2", annotations=False), by_ctr, True, id="2-without-annotations"),
    ],
)
def test_a_container_starts_on_demand_and_outlives_imgdist(
    running: Stack, tmp_path: Path, setting: Setting, way: Way, preheated: bool
) -> None:
    """Chain IDs alone suffice for what a supernode has seen; the rest needs containerd's annotations."""
    image = lazy_image(running.workshop)
    if preheated:
        running.supernode.preheat(image.reference)
    daemon = running.containerd(setting)
    with way(daemon, image.reference, tmp_path / "logs") as container:
        taken = [blob for blob in image.layer_digests if not daemon.holds_blob(blob)]
        assert taken == list(image.layer_digests), "containerd downloaded layers instead of leaving them to imgdist"
        assert container.run("/bin/cat", "/etc/word") == b"lazy\n"

        settled = {layer["diff_id"]: layer["state"] for layer in running.node.wait_settled(len(image.layers))}
        for layer in image.layers:
            assert settled[digest(layer)] in ("switched", "complete"), settled
        expected = unpacked(daemon, image, tmp_path)
        running.node.kill()
        caches.drop()
        assert hashes(container, expected) == expected
        running.node.start()  # removing a container needs its snapshotter


def unpacked(daemon: Containerd, image: Pushed, tmp_path: Path) -> dict[str, str]:
    """Path to sha256 of every file as containerd's own unpacking gives it."""
    daemon.ctr("images", "pull", "--plain-http", "--snapshotter", "overlayfs", image.reference, namespace="plain")
    with daemon.mounted(image.chain_id, "overlayfs", tmp_path / "plain", namespace="plain") as root:
        entries = tree.read(root)
    files = {path: entry.content for path, entry in entries.items() if entry.is_file and path not in _OWN_OF_RUNTIME}
    assert len(files) > 60 and "data/59" not in files
    return files


def hashes(container: Running, wanted: dict[str, str]) -> dict[str, str]:
    """Path to sha256 of the `wanted` files, read inside the container."""
    said = container.run("/bin/sha256sum", *(f"/{path}" for path in sorted(wanted))).decode()
    lines = (line.split(maxsplit=1) for line in said.splitlines())
    return {path.removeprefix("/"): content for content, path in lines}

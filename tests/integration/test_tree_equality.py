"""What imgdist mounts is what containerd unpacks, byte for byte and to the nanosecond, for images of many makers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rig import makers, tree
from rig.containerds import Containerd, Setting
from rig.images import Workshop, digest
from rig.makers import Made
from rig.stack import Stack, stack

_MAKERS = [
    makers.busybox,
    makers.as_builders_make_them,
    makers.zstd,
    makers.seventy_layers,
    makers.by_umoci,
    makers.debian,
    makers.odd,
]


@pytest.fixture(scope="module")
def lazy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Containerd]]:
    with stack(tmp_path_factory.mktemp("e")) as made:
        yield made, made.containerd(Setting("1.6"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("make", _MAKERS)
def test_mounted_image_equals_unpacked_image(
    lazy: tuple[Stack, Containerd], tmp_path: Path, make: Callable[[Workshop, Path], Made]
) -> None:
    """Exempt are only the times of "/" and of directories that a layer does not list: the unpacker chooses them."""
    made, daemon = lazy
    image = make(made.workshop, tmp_path)
    with daemon.cri() as cri:
        cri.pull(image.reference)
    lazy_layers = {layer["diff_id"] for layer in made.node.layers() if layer["state"] not in ("plain", "failed")}
    assert {digest(layer) for layer in image.layers} <= lazy_layers, "not every layer was taken over"
    daemon.ctr("images", "pull", "--plain-http", "--snapshotter", "overlayfs", image.reference, namespace="plain")
    with daemon.mounted(image.chain_id, "imgdist", tmp_path / "ours", namespace="k8s.io") as root:
        ours = tree.read(root)
    with daemon.mounted(image.chain_id, "overlayfs", tmp_path / "theirs", namespace="plain") as root:
        theirs = tree.read(root)
    assert len(theirs) > 5
    different = tree.differences(ours, theirs, tree.implied_directories(image.layers))
    assert not different, f"{len(different)} differences, the first:\n" + "\n".join(different[:40])

"""The rig without imgdist: what the suites beside it rest on must hold with containerd's own snapshotter too."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import require
from rig.containerds import Setting, containerd
from rig.images import Workshop, busybox_layer

from imgdist.demo.registry import registry


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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

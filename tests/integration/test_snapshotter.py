"""The snapshotter under real containerds, with layers that are ready-made EROFS images instead of lazy ones."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from parts import require
from rig import tree
from rig.containerds import Containerd, CtrContainer, Setting, Version, containerd
from rig.images import LayerTar, Pushed, Workshop, busybox_layer, digest

from agent.layers import loop
from agent.layers.mount import mount_erofs, umount
from agent.snapshotter import labels
from agent.snapshotter.core import Snapshotter
from agent.snapshotter.grpc import serve
from agent.snapshotter.model import LayerRequest, TakenLayer, Usage
from imgdist import mountinfo
from imgdist.demo.processes import wait_until
from imgdist.demo.registry import registry
from imgdist.errors import DeclinedError

T = TypeVar("T")
VERSIONS: list[Version] = ["1.6", "2"]


class ErofsLayers:
    """Takes over the layers that it was given, by chain ID, as EROFS images made with mkfs.erofs."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._layers: dict[str, TakenLayer] = {}
        self.asked: list[LayerRequest] = []
        self.starts: list[list[str]] = []
        (root / "l").mkdir(parents=True)

    def learn(self, image: Pushed, only: set[int] | None = None) -> None:
        """Make images of an image's layers, all of them or those numbered."""
        chain = None
        for number, layer in enumerate(image.layers):
            diff_id = digest(layer)
            chain = labels.chain_id(chain, diff_id)
            if only is None or number in only:
                self._layers[chain] = self._make(layer, diff_id)

    def _make(self, layer: bytes, diff_id: str) -> TakenLayer:
        pack_id = diff_id.removeprefix("sha256:")
        implied = tuple(sorted(path.encode() for path in tree.implied_directories([layer])))
        if not (self._root / pack_id).exists():
            source = self._root / f"{pack_id}.tree"
            source.mkdir()
            subprocess.run(
                ["tar", "-xp", "--numeric-owner", "--delay-directory-restore", "-C", source], input=layer, check=True
            )
            for marker in source.rglob(".wh.*"):
                before = marker.parent.stat()
                marker.unlink()
                os.mknod(marker.with_name(marker.name.removeprefix(".wh.")), stat.S_IFCHR, os.makedev(0, 0))
                os.utime(marker.parent, ns=(before.st_atime_ns, before.st_mtime_ns))
            subprocess.run(["mkfs.erofs", self._root / pack_id, source], check=True, capture_output=True)
            shutil.rmtree(source)
        return TakenLayer(pack_id, diff_id, implied)

    async def take_over(self, request: LayerRequest) -> TakenLayer:
        self.asked.append(request)
        if request.chain_id not in self._layers:
            raise DeclinedError("not among the images made for this test")
        return self._layers[request.chain_id]

    def _place(self, pack_id: str) -> str:
        return str(self._root / "l" / pack_id[:4])

    async def ensure_mounted(self, pack_id: str) -> str:
        place = self._place(pack_id)
        os.makedirs(place, exist_ok=True)
        if mountinfo.find(place) is None:
            with loop.attached(str(self._root / pack_id)) as device:
                mount_erofs(device, place)
        return place

    async def settle(self, pack_ids: Sequence[str]) -> None:
        pass

    def above(self, request: LayerRequest, at_most: int) -> Sequence[tuple[str, TakenLayer]]:
        return []

    def mounted_at(self, pack_id: str) -> str | None:
        return None  # `ensure_mounted` sees

    async def implied_directories(self, pack_id: str) -> Sequence[bytes]:
        return next(layer.implied_directories for layer in self._layers.values() if layer.pack_id == pack_id)

    async def starting(self, pack_ids: Sequence[str]) -> None:
        self.starts.append(list(pack_ids))

    async def usage(self, pack_id: str) -> Usage:
        return Usage((self._root / pack_id).stat().st_blocks * 512, 1)

    async def release(self, pack_id: str) -> None:
        umount(self._place(pack_id))

    def mounted(self) -> int:
        return sum(entry.path.startswith(f"{self._root}/l/") for entry in mountinfo.entries())

    def unmount(self) -> None:
        for place in (self._root / "l").iterdir():
            umount(str(place))


class Service:
    """A snapshotter with an event loop and a thread of its own, on a socket that outlives its restarts."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.layers = ErofsLayers(self.root)
        self.socket = directory / "s.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket))
        self._listener.listen()
        self.start()

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.run(self._start())

    async def _start(self) -> None:
        self.core = Snapshotter(self.root, self.layers)
        self._runner = asyncio.ensure_future(self.core.run())
        self._server = await serve(self.core, self._listener.dup())
        self.recovered = await self.core.recover()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def stop(self) -> None:
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()
        self._runner.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        self.core.close()

    def close(self) -> None:
        self.stop()
        self._listener.close()
        self.layers.unmount()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    require(os.getuid() == 0, "root")
    require(Path("/bin/busybox").exists(), "busybox-static")
    require(shutil.which("mkfs.erofs"), "mkfs.erofs (Debian: erofs-utils)")
    require(shutil.which("docker-registry"), "docker-registry")
    place = tmp_path_factory.mktemp("reg")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with registry(place / "registry", address) as found:
        yield Workshop(place / "images", found)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.close()


@contextmanager
def daemon(
    tmp_path: Path, service: Service, version: Version, pause: str = "none", *, annotations: bool = True
) -> Iterator[Containerd]:
    with containerd(tmp_path / "c", Setting(version, annotations=annotations), service.socket, pause) as found:
        yield found


def pull(containerd: Containerd, image: Pushed) -> None:
    containerd.ctr("images", "pull", "--plain-http", "--snapshotter", "imgdist", image.reference)


def run(containerd: Containerd, image: Pushed, *command: str, namespace: str = "default") -> str:
    return containerd.run(image.reference, "one", *command, namespace=namespace)


def three_layers(workshop: Workshop, name: str) -> Pushed:
    """A base, a layer that replaces and hides, a layer that implies a directory of the base."""
    middle = LayerTar().add("etc/").add("etc/.wh.gone", b"").add("etc/word", b"middle\n").bytes()
    top = LayerTar().add("tmp/inside", b"top\n").add("opt/deep/file", name.encode()).bytes()
    base = busybox_layer(("etc/gone", b"gone\n"), ("etc/word", b"base\n"))
    return workshop.push(name, [base, middle, top], command=("/bin/sh",))


def look(containerd: Containerd, image: Pushed, namespace: str = "default") -> None:
    """The container sees what three_layers put there."""
    said = run(containerd, image, "/bin/sh", "-c", "cat /etc/word /tmp/inside; ls /etc", namespace=namespace)
    assert said.split() == ["middle", "top", "group", "passwd", "word"]


def missing_blobs(containerd: Containerd, image: Pushed) -> list[bool]:
    return [not containerd.holds_blob(layer) for layer in image.layer_digests]


def forget(containerd: Containerd, service: Service, image: Pushed, namespace: str = "default") -> None:
    """Remove the image; containerd collects, and nothing of it is left with us."""
    containerd.ctr("images", "rm", "--sync", image.reference, namespace=namespace)
    wait_until(lambda: service.run(service.core.walk()) == [], "snapshots removed")
    wait_until(lambda: not list((service.root / "snapshots").iterdir()), "snapshot directories removed")
    wait_until(lambda: service.layers.mounted() == 0, "layers unmounted")


@contextmanager
def mounted(containerd: Containerd, snapshotter: str, parent: str, directory: Path) -> Iterator[Path]:
    """The tree of a committed snapshot. By `prepare`: ctr gives a view no label that keeps the collector off."""
    directory.mkdir()
    snapshots = ("snapshots", "--snapshotter", snapshotter)
    containerd.ctr(*snapshots, "prepare", directory.name, parent)
    try:
        subprocess.run(containerd.ctr(*snapshots, "mounts", str(directory), directory.name).split(), check=True)
        try:
            yield directory
        finally:
            umount(str(directory))
    finally:
        containerd.ctr(*snapshots, "rm", directory.name)


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_declined_is_an_ordinary_snapshotter(
    version: Version, workshop: Workshop, service: Service, tmp_path: Path
) -> None:
    image = three_layers(workshop, f"declined{version}")
    with daemon(tmp_path, service, version) as containerd:
        pull(containerd, image)
        assert missing_blobs(containerd, image) == [False] * 3
        look(containerd, image)
        # A container's changes, committed, are a parent for others.
        containerd.ctr("snapshots", "--snapshotter", "imgdist", "prepare", "work", image.chain_id)
        (upper,) = service.run(service.core.walk(["kind==active,name~=/work$/"]))
        (mount,) = service.run(service.core.mounts(upper.name))
        place = next(option for option in mount.options if option.startswith("upperdir="))[len("upperdir=") :]
        Path(place, "change").write_text("mine")
        containerd.ctr("snapshots", "--snapshotter", "imgdist", "commit", "changed", "work")
        with mounted(containerd, "imgdist", "changed", tmp_path / "look") as seen:
            assert (seen / "change").read_text() == "mine" and (seen / "etc/word").read_text() == "middle\n"
        used = containerd.ctr("snapshots", "--snapshotter", "imgdist", "usage", "changed")
        assert "8.0 KiB" in used
        containerd.ctr("snapshots", "--snapshotter", "imgdist", "rm", "changed")
        forget(containerd, service, image)


def test_by_transfer_service(workshop: Workshop, service: Service, tmp_path: Path) -> None:
    image = three_layers(workshop, "transfer")
    service.layers.learn(image)
    with daemon(tmp_path, service, "2") as containerd:
        pull(containerd, image)
        assert [request.source and request.source.layer_digest for request in service.layers.asked] == list(
            image.layer_digests
        )
        assert {request.source and request.source.manifest_digest for request in service.layers.asked} == {
            image.manifest_digest
        }
        assert missing_blobs(containerd, image) == [True] * 3
        look(containerd, image)
        forget(containerd, service, image)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("annotations", [True, False])
def test_by_cri(version: Version, annotations: bool, workshop: Workshop, service: Service, tmp_path: Path) -> None:
    image = three_layers(workshop, f"cri{version}{str(annotations).lower()}")
    service.layers.learn(image)
    with (
        daemon(tmp_path, service, version, annotations=annotations) as containerd,
        containerd.cri() as cri,
    ):
        cri.pull(image.reference)
        assert [request.source is not None for request in service.layers.asked] == [annotations] * 3
        assert missing_blobs(containerd, image) == [True] * 3 and cri.has_image(image.reference)
        look(containerd, image, "k8s.io")
        containerd.stop()
        service.stop()
        service.layers.unmount()
        service.start()
        assert service.recovered.unmounted == {} and service.layers.mounted() == 3
        containerd.start()
        with containerd.cri() as again:
            assert again.has_image(image.reference)
        look(containerd, image, "k8s.io")


@pytest.mark.parametrize("version", VERSIONS)
def test_by_a_strangers_client(version: Version, workshop: Workshop, service: Service, tmp_path: Path) -> None:
    require(shutil.which("ctr-remote"), "ctr-remote (Debian: stargz-snapshotter)")
    image = three_layers(workshop, f"stranger{version}")
    service.layers.learn(image)
    with daemon(tmp_path, service, version) as containerd:
        containerd.ctr_remote("images", "rpull", "--plain-http", "--snapshotter", "imgdist", image.reference)
        assert {request.source and request.source.reference for request in service.layers.asked} == {image.reference}
        assert missing_blobs(containerd, image) == [True] * 3
        look(containerd, image)
        forget(containerd, service, image)


@pytest.mark.parametrize("lazy", [{0}, {1}, {2}, {0, 2}, {1, 2}], ids=str)
def test_lazy_and_plain_layers_mix(lazy: set[int], workshop: Workshop, service: Service, tmp_path: Path) -> None:
    image = three_layers(workshop, "mix" + "".join(map(str, sorted(lazy))))
    service.layers.learn(image, lazy)
    with daemon(tmp_path, service, "2") as containerd:
        pull(containerd, image)
        assert service.layers.mounted() == len(lazy)
        look(containerd, image)
        with mounted(containerd, "imgdist", image.chain_id, tmp_path / "look") as seen:
            ours = tree.read(seen)
        containerd.ctr("images", "pull", "--plain-http", "--snapshotter", "overlayfs", image.reference)
        with mounted(containerd, "overlayfs", image.chain_id, tmp_path / "theirs") as seen:
            theirs = tree.read(seen)
        assert tree.differences(ours, theirs, tree.implied_directories(image.layers)) == []
        containerd.ctr("images", "rm", "--sync", image.reference)


def test_namespaces_share_a_taken_over_layer(workshop: Workshop, service: Service, tmp_path: Path) -> None:
    image = three_layers(workshop, "shared")
    service.layers.learn(image)
    with daemon(tmp_path, service, "2") as containerd, containerd.cri() as cri:
        cri.pull(image.reference)
        pull(containerd, image)
        assert len(service.run(service.core.walk())) == 3 and len(service.layers.asked) == 3
        cri.remove_image(image.reference)
        containerd.ctr("content", "ls", namespace="k8s.io")
        look(containerd, image)
        forget(containerd, service, image)


def test_an_image_of_128_layers(workshop: Workshop, service: Service, tmp_path: Path) -> None:
    many = [LayerTar().add(f"n/{number}", str(number).encode()).bytes() for number in range(127)]
    image = workshop.push("many", [busybox_layer(), *many])
    service.layers.learn(image)
    with daemon(tmp_path, service, "2") as containerd:
        pull(containerd, image)
        assert service.layers.mounted() == 128
        said = run(containerd, image, "/bin/sh", "-c", "cat /n/0 /n/126; ls /n")
        assert said.startswith("0126") and len(said.split()) == 127
        forget(containerd, service, image)


@pytest.mark.parametrize("lazy", [{0, 1, 2}, {0, 2}], ids=str)
def test_a_user_namespace_sees_its_own_ids(
    lazy: set[int], workshop: Workshop, service: Service, tmp_path: Path
) -> None:
    """By id-mapped lower directories: nothing of the image is copied, and no snapshot made that would hold it."""
    for directory in (tmp_path, *tmp_path.parents):  # the container's root has to get to its root file system
        directory.chmod(directory.stat().st_mode | 0o111)
    image = three_layers(workshop, "mapped" + "".join(map(str, sorted(lazy))))
    service.layers.learn(image, lazy)
    with daemon(tmp_path, service, "2") as containerd:
        pull(containerd, image)
        before = len(service.run(service.core.walk()))
        mapping = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels")
        arguments = ("run", "--detach", *mapping, "--snapshotter", "imgdist", image.reference, "mapped")
        containerd.ctr(*arguments, "/bin/sleep", "1000")
        try:
            container = CtrContainer(containerd, "mapped")
            container.run("/bin/sh", "-c", "echo mine >/tmp/mine")
            assert container.run("/bin/sh", "-c", "cat /proc/self/uid_map").split() == [b"0", b"100000", b"65536"]
            for path in ("/bin/busybox", "/etc/word", "/opt/deep", "/tmp/mine"):
                assert container.run("/bin/sh", "-c", f"ls -ldn {path}").split()[2:4] == [b"0", b"0"], path
            assert len(service.run(service.core.walk())) == before + 1
            (active,) = service.run(service.core.walk(["kind==active"]))
            (mount,) = service.run(service.core.mounts(active.name))
            upper = next(option for option in mount.options if option.startswith("upperdir="))[len("upperdir=") :]
            written = os.stat(f"{upper}/tmp/mine")
            assert (written.st_uid, written.st_gid) == (100000, 200000)
        finally:
            containerd.ctr("tasks", "delete", "--force", "mapped")
            containerd.ctr("containers", "delete", "mapped")
        forget(containerd, service, image)


def test_a_foreign_open_file_delays_the_release(
    workshop: Workshop, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = three_layers(workshop, "held")
    service.layers.learn(image)
    with daemon(tmp_path, service, "2") as containerd:
        pull(containerd, image)
        layer = service.run(service.layers.ensure_mounted(digest(image.layers[0]).removeprefix("sha256:")))
        with open(f"{layer}/etc/passwd"):
            containerd.ctr("images", "rm", "--sync", image.reference)
            wait_until(lambda: f"process {os.getpid()} (" in caplog.text, "the holder named in the log")
            assert service.layers.mounted() == 1
        wait_until(lambda: service.layers.mounted() == 0, "the layer released after all")

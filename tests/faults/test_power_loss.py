"""The power fails while a node fills, completes, switches, restarts and removes: whatever the disk kept, no wrong byte.

One run of a real agent is recorded with every write and flush of its disk; then the disk is made as a power cut would
have left it at many moments, and an agent of the next boot reads everything back.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from faults import power
from faults.schedule import Schedule
from google.protobuf.empty_pb2 import Empty
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from integration.rig.images import LayerTar, Pushed, Workshop, chain_id
from parts import require

from agent.snapshotter.proto import snapshots_pb2 as pb
from fuse.present import PresentMap
from imgdist.api import JsonApi
from imgdist.demo import leftovers
from imgdist.demo.agent import IMGDIST, Supernode
from imgdist.demo.ports import free_port
from imgdist.demo.processes import Process, command, wait_until
from imgdist.demo.registry import registry
from imgdist.errors import CorruptError, ImgdistError
from imgdist.pack import BLOCK
from imgdist.pack.index import Index

_CHUNK = 256 * 1024
_BOOT = "00000000-0000-4000-8000-{:012}"
_REPLIES = {
    "Prepare": (pb.PrepareSnapshotRequest, pb.PrepareSnapshotResponse),
    "View": (pb.ViewSnapshotRequest, pb.ViewSnapshotResponse),
    "Remove": (pb.RemoveSnapshotRequest, Empty),
    "Stat": (pb.StatSnapshotRequest, pb.StatSnapshotResponse),
}


@dataclass(frozen=True)
class Image:
    """In the registry, and what its tree has."""

    name: str
    pushed: Pushed
    files: dict[str, bytes]

    def chains(self) -> list[str]:
        return [chain_id(self.pushed.layers[: number + 1]) for number in range(len(self.pushed.layers))]


def _image(workshop: Workshop, name: str, *layers: int) -> Image:
    """`layers`: how many chunks each has, of bytes that no compression makes fewer."""
    rng = random.Random(name)
    files: dict[str, bytes] = {}
    tars = []
    for number, chunks in enumerate(layers):
        added = {f"{name}/{number}-{chunk}": rng.randbytes(_CHUNK) for chunk in range(chunks)}
        tar = LayerTar().add(f"{name}/")
        for path, content in added.items():
            tar.add(path, content)
        files |= added
        tars.append(tar.bytes())
    return Image(name, workshop.push(name, tars), files)


class World:
    """What the node's power cut leaves alone: the registry, the supernode and three images."""

    def __init__(self, directory: Path, parts: ExitStack) -> None:
        address = f"127.0.0.1:{free_port()}"
        parts.enter_context(registry(directory / "registry", address))
        workshop = Workshop(directory / "images", address)
        self.first = _image(workshop, "first", 24, 1)
        self.second = _image(workshop, "second", 20, 18)
        self.third = _image(workshop, "third", 28)
        listen = f"127.0.0.1:{free_port()}"
        self.supernode = parts.enter_context(Supernode(directory / "s", listen, plain_http=[address]))
        for image in self.images:
            self.supernode.preheat(image.pushed.reference)

    @property
    def images(self) -> tuple[Image, ...]:
        return self.first, self.second, self.third


class Node:
    """`imgdist agent` on `root`. It ends as a machine does: killed, with its mounts."""

    def __init__(self, directory: Path, root: Path, world: World, *settings: str) -> None:
        self.directory, self.root, self.run = directory, root, directory / "run"
        directory.mkdir(exist_ok=True)
        argv = [*IMGDIST, "agent", "--root", str(root), "--run", str(self.run), "--supernode", world.supernode.url]
        argv += ["--mirror-listen", "", "--peer-listen", f"127.0.0.1:{free_port()}"]
        always = ("fill.quiet_s=0", "switch.idle_s=0.1", "trace.enabled=false", "stop_timeout_s=2")
        self._argv = argv + [word for setting in (*always, *settings) for word in ("--set", setting)]
        self._process: Process | None = None

    def start(self) -> None:
        self._process = Process("agent", self._argv, self.directory / "agent.log", stop_timeout_s=30)
        self._process.wait_for_line("ready")

    def stop(self) -> None:
        """SIGTERM."""
        assert self._process is not None
        assert self._process.stop() == 0

    def kill(self) -> None:
        """SIGKILL for all its processes, the holder first."""
        if self._process is None:
            return
        for pid in leftovers.processes_with(str(self.run)) or [self._process.pid]:
            leftovers.kill_with_children(pid)
        self._process.stop(signal.SIGKILL)

    def power_off(self) -> None:
        """All that would end with the machine."""
        self.kill()
        for mount in leftovers.mounts_below(self.directory) + leftovers.mounts_below(self.root):
            if mount != self.root:
                leftovers.unmount_below(mount)
        for directory in (self.root, self.run):
            leftovers.detach_loops_below(directory)

    @property
    def api(self) -> JsonApi:
        return JsonApi(f"unix://{self.run}/api.sock", "agent", timeout_s=60.0)

    def mount(self, image: Image, name: str) -> Path:
        place = self.directory / name
        place.mkdir()
        self.api.post("/v1/mounts", {"reference": image.pushed.reference, "directory": str(place)})
        return place

    def layers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api.get("/v1/layers")
        return found

    def wait_switched(self, count: int) -> None:
        def settled() -> bool:
            layers = self.layers()
            return len(layers) >= count and all(layer["state"] in ("switched", "complete") for layer in layers)

        wait_until(settled, "every layer complete", 60)

    def log(self) -> str:
        return (self.directory / "agent.log").read_text(errors="replace")

    def call(self, method: str, **fields: Any) -> Any:
        """A call of containerd's; AlreadyExists is an answer like others."""
        return asyncio.run(self._call(method, fields))

    async def _call(self, method: str, fields: dict[str, Any]) -> Any:
        request, reply = _REPLIES[method]
        channel = Channel(path=str(self.run / "snapshotter.sock"))
        path = f"/containerd.services.snapshots.v1.Snapshots/{method}"
        try:
            return await UnaryUnaryMethod(channel, path, request, reply)(request(snapshotter="imgdist", **fields))
        except GRPCError as error:
            if error.status is Status.ALREADY_EXISTS:
                return error.status
            raise
        finally:
            channel.close()


def _live(node: Node, world: World, mark: Any) -> None:
    """What is recorded. A mark names what nobody may take back any more."""
    mark("begin")
    node.start()
    node.mount(world.first, "first")
    node.wait_switched(len(world.first.pushed.layers))
    mark("complete first")
    parent = ""
    for number, chain in enumerate(world.second.chains()):
        label = {"containerd.io/snapshot.ref": chain}
        key = f"k8s.io/{number}/extract {chain}"
        assert node.call("Prepare", key=key, parent=parent, labels=label) is Status.ALREADY_EXISTS
        parent = _committed(node, chain)
        mark(f"committed {parent}")
    node.call("Prepare", key="box", parent=parent)
    mark("snapshot box")
    node.stop()
    node.start()
    node.mount(world.third, "third")
    while _share(node) < 0.4:
        command("sync", "--file-system", node.root)  # as the kernel does by itself, every 5 to 30 s
    node.kill()
    node.start()
    mark("removing box")
    node.call("Remove", key="box")
    mark("removed box")
    node.api.post("/v1/umount", {"directory": str(node.directory / "first")})
    node.wait_switched(5)
    mark("complete third")
    time.sleep(1.2)  # the file system writes by itself what nobody asked it to


def _share(node: Node) -> float:
    return min((layer["present_bytes"] / layer["size_bytes"] for layer in node.layers()), default=0.0)


def _committed(node: Node, chain: str) -> str:
    """The name of the snapshot that was taken over."""
    info = node.call("Stat", key=chain).info
    assert info.kind == pb.COMMITTED
    return str(info.name)


@pytest.mark.timeout(600)
def test_no_wrong_byte_after_any_power_cut(tmp_path: Path, matrix: str) -> None:
    require("\terofs" in Path("/proc/filesystems").read_text(), "EROFS in the kernel")
    rng = random.Random(Schedule().seed)
    with ExitStack() as parts:
        world = World(tmp_path / "w", parts)
        with power.Recording(tmp_path / "d") as recording:
            node = Node(tmp_path / "n", recording.root, world, "swarm.down_bytes_per_s=6000000")
            try:
                _live(node, world, recording.mark)
            finally:
                node.power_off()
        entries = recording.entries()
        cuts = power.cuts(entries, 8 if matrix == "quick" else 60, rng)
        print(f"{len(entries)} entries, cuts {' '.join(map(str, cuts))}")
        root = tmp_path / "r"
        root.mkdir()
        for number, (cut, disk, marks) in enumerate(power.crashed(recording.blank, entries, cuts, tmp_path, rng)):
            with power.mounted(disk, root), power.boot(_BOOT.format(number), tmp_path):
                found = _Found(root)
                after = Node(tmp_path / f"r{number}", root, world, "fill.mode=none")
                try:
                    _check(after, world, marks, found)
                except BaseException:
                    print(f"power cut {cut} after {marks[-1:]}:\n{after.log()}")
                    raise
                finally:
                    after.power_off()
            print(f"cut {cut} after {marks[-1:]}: {found}")


class _Found:
    """What a cut left of each pack, as the disk itself tells it: chunks that are marked and right."""

    def __init__(self, root: Path) -> None:
        self.right: dict[str, int] = {}
        """By pack: raw bytes."""
        self.total: dict[str, int] = {}
        self.wrong_but_marked = 0
        for directory in sorted(root.glob("packs/" + "[0-9a-f]" * 64)):
            with suppress(CorruptError, ImgdistError, OSError):
                self._look(directory)

    def __str__(self) -> str:
        right, total = sum(self.right.values()), sum(self.total.values())
        packs, torn = len(self.total), self.wrong_but_marked
        return f"{packs} packs, {right >> 10} of {total >> 10} KiB synced, {torn} chunks marked and not right"

    def _look(self, directory: Path) -> None:
        index = Index.load((directory / "index").read_bytes())
        image = (directory / "image").read_bytes()
        with closing(PresentMap.open(directory / "present")) as present:
            right = total = 0
            for chunk in range(index.chunk_count):
                if index.is_zero(chunk):
                    continue
                start, size = index.start(chunk), index.size(chunk)
                total += size
                if not present.missing(start // BLOCK, size // BLOCK):
                    if index.digest(chunk) == blake3(image[start : start + size]).digest():
                        right += size
                    else:
                        self.wrong_but_marked += 1
                        assert not present.clean, f"{directory.name}: clean, but chunk {chunk} is wrong"
            self.right[directory.name], self.total[directory.name] = right, total


def _check(node: Node, world: World, marks: list[str], found: _Found) -> None:
    """Everything is there, right, and fetched only where it had not been synced."""
    node.start()
    _containerd_finds_what_it_committed(node, world, marks)
    for image in world.images:
        assert _tree(node.mount(image, f"again-{image.name}"), image)
    assert not [line for line in node.log().splitlines() if "Traceback" in line or "defect" in line], node.log()
    if "complete first" in marks:
        assert len([pack for pack, right in found.right.items() if right == found.total[pack]]) >= 2
    for layer in node.layers():
        fetched, synced = sum(layer["sources"].values()), found.right.get(layer["pack_id"], 0)
        assert fetched <= layer["size_bytes"] - synced, f"{fetched} bytes fetched, though {synced} were synced: {layer}"
    for name in ("snapshots.db", "mounts/snapshots.db", "agent.db"):
        with closing(sqlite3.connect(f"file:{node.root / name}?mode=ro", uri=True)) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)], name


def _containerd_finds_what_it_committed(node: Node, world: World, marks: list[str]) -> None:
    committed = [mark.removeprefix("committed ") for mark in marks if mark.startswith("committed ")]
    for number, name in enumerate(committed):
        assert _committed(node, name) == name
        view = node.call("View", key=f"look-{number}", parent=name)
        place = node.directory / f"look-{number}"
        place.mkdir()
        with _shown(view.mounts, place):
            files = {path: data for path, data in world.second.files.items() if int(path.split("/")[1][0]) <= number}
            assert {path: (place / path).read_bytes() for path in files} == files
    if "snapshot box" in marks and "removing box" not in marks:
        assert node.call("Stat", key="box").info.kind == pb.ACTIVE
    if "removed box" in marks:
        with pytest.raises(GRPCError):
            node.call("Stat", key="box")


@contextmanager
def _shown(mounts: Any, place: Path) -> Iterator[None]:
    """As containerd mounts it."""
    (mount,) = mounts
    options = list(mount.options)
    if mount.type == "bind":
        command("mount", "--bind", mount.source, place)
    else:
        command("mount", "-t", mount.type, mount.source, place, "-o", ",".join(options))
    try:
        yield
    finally:
        command("umount", place)


def _tree(place: Path, image: Image) -> bool:
    return {path: (place / path).read_bytes() for path in image.files} == image.files

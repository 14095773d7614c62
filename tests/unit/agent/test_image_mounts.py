"""Mounts made by hand: over a real snapshotter, with layers and mount(2) that are not."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent import mounts as module
from agent.known_images import KnownImage, KnownLayer
from agent.layers import mount
from agent.mounts import ImageMounts
from agent.snapshotter import labels
from agent.snapshotter.core import Snapshotter
from agent.snapshotter.model import LayerRequest, TakenLayer, Usage
from agent.work import SharedWork
from imgdist.errors import CorruptError, DeclinedError, ImgdistError, NotFoundError, TemporaryError, UsageError
from imgdist.mountinfo import MountEntry

REFERENCE = "reg.test/app:1"


def diff_id(number: int) -> str:
    return f"sha256:{number:064x}"


def image(*numbers: int) -> KnownImage:
    layers, below = [], None
    for number in numbers:
        below = labels.chain_id(below, diff_id(number))
        layer = KnownLayer(
            digest=f"sha256:{number:064d}", media_type="", size_bytes=1, diff_id=diff_id(number), chain_id=below
        )
        layers.append(layer)
    return KnownImage(reference=REFERENCE, name="n", manifest_digest="sha256:m", platform="p", layers=tuple(layers))


class FakeLayers:
    """Every layer can be had but those in `declined`; `mounted` are those in use."""

    def __init__(self) -> None:
        self.by_chain: dict[str, TakenLayer] = {}
        self.mounted: set[str] = set()

    async def take_over(self, request: LayerRequest) -> TakenLayer:
        if request.chain_id not in self.by_chain:
            raise DeclinedError("not lazy")
        return self.by_chain[request.chain_id]

    async def ensure_mounted(self, pack_id: str) -> str:
        self.mounted.add(pack_id)
        return f"/l/{pack_id}"

    async def settle(self, pack_ids: Sequence[str]) -> None:
        pass

    def above(self, request: LayerRequest, at_most: int) -> Sequence[tuple[str, TakenLayer]]:
        return []

    def mounted_at(self, pack_id: str) -> str | None:
        return f"/l/{pack_id}" if pack_id in self.mounted else None

    async def starting(self, pack_ids: Sequence[str]) -> None:
        pass

    async def usage(self, pack_id: str) -> Usage:
        return Usage()

    async def release(self, pack_id: str) -> None:
        self.mounted.discard(pack_id)


class World:
    def __init__(self, directory: Path, tasks: asyncio.TaskGroup, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layers = FakeLayers()
        self.snapshotter = Snapshotter(directory / "mounts", self.layers)
        self.table: dict[str, str] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.fail: Exception | None = None
        self.image = image(1, 2, 3)
        self.failed: dict[int, Exception] = {}
        self.openings = SimpleNamespace(plain={})
        self.unrooted: Exception | None = None
        self._tasks = tasks
        self.mounts = ImageMounts(self, self.snapshotter)  # type: ignore[arg-type]
        monkeypatch.setattr(mount, "mount", self._mount)
        monkeypatch.setattr(mount, "umount", self._umount)
        monkeypatch.setattr(module.mountinfo, "find", self._find)

    async def check_rooted(self, reference: str, image: KnownImage) -> None:
        if self.unrooted is not None:
            raise self.unrooted

    async def open(self, reference: str, *, anew: bool) -> Any:
        assert anew
        openings = {}
        for number, layer in enumerate(self.image.layers):
            if number not in self.failed:
                self.layers.by_chain[layer.chain_id] = TakenLayer(f"pack{number}", layer.diff_id)
            openings[layer.digest] = SharedWork(self._tasks, self._layer(number))
        return SimpleNamespace(image=self.image, layers=openings)

    async def _layer(self, number: int) -> int:
        if number in self.failed:
            raise self.failed[number]
        return number

    def _mount(self, source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
        self.calls.append((fstype, flags, data))
        if self.fail is not None:
            raise self.fail
        self.table[target] = fstype

    def _umount(self, path: str) -> bool:
        if self.fail is not None:
            raise self.fail
        return self.table.pop(path, None) is not None

    def _find(self, path: str) -> MountEntry | None:
        return MountEntry("0:1", "/", path, "overlay", "overlay", "") if path in self.table else None

    async def names(self) -> list[str]:
        return [info.name for info in await self.snapshotter.walk()]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with asyncio.TaskGroup() as tasks:
        made = World(tmp_path, tasks, monkeypatch)
        yield made
    made.snapshotter.close()


async def test_a_mount_stacks_the_layers_top_first_and_umount_leaves_nothing(world: World) -> None:
    assert await world.mounts.mount(REFERENCE, "/m", writable=False) == "sha256:m"
    ((kind, flags, data),) = world.calls
    assert (kind, flags) == ("overlay", 0) and "lowerdir=/l/pack2:/l/pack1:/l/pack0" in data.split(",")
    assert "upperdir" not in data
    assert await world.mounts.all() == ["/m"]
    await world.mounts.umount("/m")
    assert world.table == {} and await world.names() == []
    await world.snapshotter.cleanup()
    assert world.layers.mounted == set()


async def test_a_writable_mount_has_an_upper_directory_of_its_own(world: World) -> None:
    for directory in ("/m", "/n"):
        await world.mounts.mount(REFERENCE, directory, writable=True)
    uppers = {option for _, _, data in world.calls for option in data.split(",") if option.startswith("upperdir=")}
    assert len(uppers) == 2
    await world.mounts.umount("/m")
    await world.snapshotter.cleanup()
    assert len(world.layers.mounted) == 3  # the other one's
    await world.mounts.umount("/n")
    assert await world.names() == []


async def test_images_that_share_layers_keep_what_the_other_uses(world: World) -> None:
    await world.mounts.mount(REFERENCE, "/m", writable=False)
    world.image = image(1, 2)
    await world.mounts.mount(REFERENCE, "/n", writable=False)
    await world.mounts.umount("/m")
    assert await world.mounts.all() == ["/n"]
    await world.snapshotter.cleanup()
    assert world.layers.mounted == {"pack0", "pack1"}


async def test_one_mount_a_directory(world: World) -> None:
    await world.mounts.mount(REFERENCE, "/m", writable=False)
    before = await world.names()
    with pytest.raises(UsageError, match="umount it first"):
        await world.mounts.mount(REFERENCE, "/m", writable=False)
    assert await world.names() == before
    with pytest.raises(UsageError, match="absolute"):
        await world.mounts.mount(REFERENCE, "m", writable=False)


@pytest.mark.parametrize("error", [DeclinedError("a hard link"), TemporaryError("cut"), OSError(28, "disk full")])
async def test_a_layer_that_cannot_be_had_is_named_with_its_reason(world: World, error: Exception) -> None:
    world.failed[1] = error
    with pytest.raises(DeclinedError, match=f"layer {world.image.layers[1].digest} cannot be mounted lazily: .*"):
        await world.mounts.mount(REFERENCE, "/m", writable=False)
    assert await world.names() == [] and world.calls == []


async def test_a_layer_that_the_snapshotter_declines_undoes_those_below(world: World, monkeypatch: Any) -> None:
    job = await world.open(REFERENCE, anew=True)
    monkeypatch.setattr(world, "open", lambda reference, anew: asyncio.sleep(0, job))
    del world.layers.by_chain[world.image.layers[2].chain_id]
    with pytest.raises(DeclinedError, match="cannot be mounted lazily: not lazy"):
        await world.mounts.mount(REFERENCE, "/m", writable=False)
    assert await world.names() == []
    await world.snapshotter.cleanup()
    assert world.layers.mounted == set()


async def test_a_pack_that_the_disk_refuses_is_why_its_image_does_not_mount(world: World, monkeypatch: Any) -> None:
    async def refuse(pack_ids: Sequence[str]) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(world.layers, "settle", refuse)
    with pytest.raises(DeclinedError, match=r"cannot be made durable: .*Input/output error"):
        await world.mounts.mount(REFERENCE, "/m", writable=False)


async def test_a_failed_mount_leaves_no_snapshot(world: World) -> None:
    world.fail = ImgdistError("cannot mount overlay on /m: Not a directory")
    with pytest.raises(ImgdistError, match="Not a directory"):
        await world.mounts.mount(REFERENCE, "/m", writable=True)
    assert await world.names() == []
    await world.snapshotter.cleanup()
    assert world.layers.mounted == set()
    world.fail = None
    await world.mounts.mount(REFERENCE, "/m", writable=True)


async def test_a_busy_mount_stays_and_so_do_its_layers(world: World) -> None:
    await world.mounts.mount(REFERENCE, "/m", writable=False)
    world.fail = mount.BusyError("in use by cat (7)")
    with pytest.raises(mount.BusyError):
        await world.mounts.umount("/m")
    assert await world.mounts.all() == ["/m"] and len(await world.names()) == 4


async def test_what_is_not_ours_is_not_unmounted(world: World) -> None:
    world.table["/other"] = "ext4"
    with pytest.raises(NotFoundError, match="/other: no image is mounted there"):
        await world.mounts.umount("/other")
    assert world.table == {"/other": "ext4"}


async def test_an_image_of_one_layer_or_none_is_bound_read_only(world: World) -> None:
    for numbers in ((1,), ()):
        world.calls.clear()
        world.image = image(*numbers)
        await world.mounts.mount(REFERENCE, "/m", writable=False)
        assert [flags for _, flags, _ in world.calls] == [
            mount.MS_BIND | mount.MS_REC,
            mount.MS_BIND | mount.MS_REMOUNT | mount.MS_RDONLY,
        ]
        await world.mounts.umount("/m")


async def test_options_longer_than_a_page_name_their_directories_by_descriptors(tmp_path: Path, world: World) -> None:
    lowers = [tmp_path / ("x" * 200) / str(number) for number in range(40)]
    for lower in lowers:
        lower.mkdir(parents=True)
    module._mount_overlay(["lowerdir=" + ":".join(map(str, lowers)), "index=off"], "/m")
    ((_, _, data),) = world.calls
    option, rest = data.split(",")
    names = option.removeprefix("lowerdir=").split(":")
    assert len(data) < mount.PAGE and rest == "index=off" and len(names) == 40
    assert all(name.startswith("/proc/self/fd/") for name in names)


async def test_a_start_forgets_what_is_not_mounted_any_more(world: World) -> None:
    await world.mounts.mount(REFERENCE, "/m", writable=False)
    await world.mounts.mount(REFERENCE, "/n", writable=False)
    del world.table["/m"]
    await world.mounts.recover()
    assert await world.mounts.all() == ["/n"]
    del world.table["/n"]
    await world.mounts.recover()
    assert await world.names() == []


async def test_a_symlink_is_known_by_what_it_leads_to(tmp_path: Path, world: World) -> None:
    """As mountinfo has it: by the other name a restart would not find the mount, and would forget it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    await world.mounts.mount(REFERENCE, str(tmp_path / "link"), writable=False)
    assert list(world.table) == await world.mounts.all() == [str(tmp_path / "real")]
    await world.mounts.recover()
    assert await world.mounts.all() == [str(tmp_path / "real")]
    await world.mounts.umount(str(tmp_path / "link"))
    assert world.table == {}


async def test_a_mount_waits_until_the_start_has_forgotten_what_is_old(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interleaving: layers are being taken, and the start takes them for what a kill cut short."""
    walked, go_on = asyncio.Event(), asyncio.Event()
    real = world.snapshotter.walk

    async def slow(filters: Sequence[str] = ()) -> Any:
        found = await real(filters)
        walked.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(world.snapshotter, "walk", slow)
    recovering = asyncio.ensure_future(world.mounts.recover())
    await walked.wait()
    mounting = asyncio.ensure_future(world.mounts.mount(REFERENCE, "/m", writable=False))
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert await world.snapshotter._store.do(world.snapshotter._metadata.walk, ()) == []
    go_on.set()
    await asyncio.gather(recovering, mounting)
    assert world.table == {"/m": "overlay"}


async def test_a_start_clears_away_what_a_kill_cut_short(world: World) -> None:
    """Layers taken one after the other, the last still being asked for; nothing mounted yet."""
    job = await world.open(REFERENCE, anew=True)
    await world.mounts._take_all(job.image, REFERENCE)
    await world.snapshotter.prepare("extract something", job.image.layers[-1].chain_id, {})
    await world.mounts.recover()
    assert await world.names() == []


async def test_an_image_that_is_not_its_manifests_is_not_mounted(world: World) -> None:
    world.unrooted = CorruptError("its supernode gives other layers")
    with pytest.raises(CorruptError):
        await world.mounts.mount(REFERENCE, "/mnt", writable=False)
    assert world.calls == []
    assert await world.snapshotter.walk() == []

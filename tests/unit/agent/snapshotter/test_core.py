"""The snapshotter with layers that are plain directories: what is decided, recorded and returned."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from parts import require

from agent.layers.idmap import IdMaps
from agent.layers.mount import BusyError
from agent.snapshotter import labels
from agent.snapshotter.core import Snapshotter
from agent.snapshotter.model import AlreadyExistsError, Kind, LayerRequest, Mount, PreconditionError, TakenLayer, Usage
from agent.snapshotter.packs import Sharing
from agent.snapshotter.takeover import AHEAD, AHEAD_LEFT
from imgdist.errors import DeclinedError, NotFoundError, TemporaryError, UnsupportedError, UsageError

DIFF_IDS = [f"sha256:{number:064x}" for number in range(1, 3 * AHEAD + 2)]
CHAIN = [DIFF_IDS[0]]
for diff_id in DIFF_IDS[1:]:
    CHAIN.append(labels.chain_id(CHAIN[-1], diff_id))


class FakeLayers:
    """Layers in directories; `known` maps chain IDs to what take_over returns or raises."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: dict[str, TakenLayer | BaseException] = {}
        self.asked: list[LayerRequest] = []
        self.starts: list[list[str]] = []
        self.mounted: set[str] = set()
        self.settled: set[str] = set()
        self.full = False
        self.busy: set[str] = set()
        self.broken: set[str] = set()
        self.opened = False
        self.hold: asyncio.Event | None = None
        self.mounting: asyncio.Event | None = None
        self.called = asyncio.Event()

    def add(self, number: int, *implied: bytes, hides: bytes = b"") -> TakenLayer:
        layer = TakenLayer(f"pack{number}", DIFF_IDS[number], implied, hides)
        self.known[CHAIN[number]] = layer
        self.directory(number).mkdir()
        return layer

    def directory(self, number: int) -> Path:
        return self.root / f"pack{number}"

    async def take_over(self, request: LayerRequest) -> TakenLayer:
        self.asked.append(request)
        self.called.set()
        if self.hold is not None:
            await self.hold.wait()
        found = self.known.get(request.chain_id, DeclinedError("nobody knows it"))
        if isinstance(found, BaseException):
            raise found
        return found

    async def ensure_mounted(self, pack_id: str) -> str:
        if pack_id in self.broken:
            raise TemporaryError(f"{pack_id} does not mount")
        self.mounted.add(pack_id)
        if self.mounting is not None:
            self.mounting.set()
            await asyncio.Event().wait()
        return str(self.root / pack_id)

    async def settle(self, pack_ids: Sequence[str]) -> None:
        assert self.mounted.issuperset(pack_ids)
        if self.full:
            raise OSError(errno.ENOSPC, "no room")
        self.settled.update(pack_ids)

    def above(self, request: LayerRequest, at_most: int) -> Sequence[tuple[str, TakenLayer]]:
        first = CHAIN.index(request.chain_id) + 1
        found = [(chain, self.known.get(chain)) for chain in CHAIN[first : first + at_most] if self.opened]
        return [(chain, layer) for chain, layer in found if isinstance(layer, TakenLayer)]

    def mounted_at(self, pack_id: str) -> str | None:
        return str(self.root / pack_id) if pack_id in (self.mounted & self.settled) - self.broken else None

    async def implied_directories(self, pack_id: str) -> Sequence[bytes]:
        return next(
            layer.implied_directories
            for layer in self.known.values()
            if isinstance(layer, TakenLayer) and layer.pack_id == pack_id
        )

    async def starting(self, pack_ids: Sequence[str]) -> None:
        self.starts.append(list(pack_ids))

    async def usage(self, pack_id: str) -> Usage:
        return Usage(1000, 3)

    async def release(self, pack_id: str) -> None:
        if pack_id in self.busy:
            raise BusyError(f"{pack_id} is in use by process 1 (init)")
        self.mounted.discard(pack_id)
        self.called.set()


async def test_a_start_mounts_layers_side_by_side(tmp_path: Path, layers: FakeLayers) -> None:
    """One that waits for a supernode that is away keeps no other."""
    core = Snapshotter(tmp_path / "root", layers)
    for number in range(2):
        layers.add(number)
    await take(core, 0)
    await take(core, 1, CHAIN[0])
    layers.mounted.clear()
    layers.mounting = asyncio.Event()
    recovering = asyncio.ensure_future(core.recover())
    async with asyncio.timeout(10):
        while layers.mounted != {"pack0", "pack1"}:  # noqa: ASYNC110 - both hang in the fake
            await asyncio.sleep(0.002)
    recovering.cancel()
    await asyncio.gather(recovering, return_exceptions=True)
    core.close()


@pytest.fixture
def layers(tmp_path: Path) -> FakeLayers:
    (tmp_path / "l").mkdir()
    return FakeLayers(tmp_path / "l")


@pytest_asyncio.fixture
async def core(tmp_path: Path, layers: FakeLayers) -> AsyncIterator[Snapshotter]:
    snapshotter = Snapshotter(tmp_path / "root", layers)
    yield snapshotter
    snapshotter.close()


async def prepare_layer(core: Snapshotter, number: int, parent: str = "", **more: str) -> list[Mount]:
    return await core.prepare(f"n/1/extract-{number}-{parent}", parent, {labels.SNAPSHOT_REF: CHAIN[number], **more})


async def take(core: Snapshotter, number: int, parent: str = "") -> None:
    with pytest.raises(AlreadyExistsError):
        await prepare_layer(core, number, parent)


@asynccontextmanager
async def working(core: Snapshotter) -> AsyncIterator[None]:
    """What runs beside calls does."""
    running = asyncio.ensure_future(core.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def recorded(core: Snapshotter, name: str) -> None:
    async with asyncio.timeout(10):
        while name not in {info.name for info in await core.walk()}:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.002)


async def plain(core: Snapshotter, number: int, parent: str = "") -> str:
    """A layer that was declined, unpacked and committed by containerd."""
    mounts = await prepare_layer(core, number, parent)
    name = f"n/2/{CHAIN[number]}"
    assert mounts
    await core.commit(name, f"n/1/extract-{number}-{parent}", {labels.SNAPSHOT_REF: CHAIN[number]})
    return name


def lowerdirs(mounts: list[Mount]) -> list[str]:
    (mount,) = mounts
    return next(option for option in mount.options if option.startswith("lowerdir="))[len("lowerdir=") :].split(":")


async def test_an_ordinary_snapshotter_without_layers(tmp_path: Path) -> None:
    core = Snapshotter(tmp_path / "r", None)
    try:
        (bind,) = await core.prepare("k1", "", {labels.SNAPSHOT_REF: CHAIN[0]})
        assert (bind.type, bind.options) == ("bind", ("rw", "rbind"))
        assert os.stat(bind.source).st_mode & 0o7777 == 0o755
        Path(bind.source, "file").write_bytes(b"x" * 10000)
        await core.commit("c1", "k1", {})
        assert (await core.usage("c1")).size_bytes >= 12288 and (await core.usage("c1")).inodes == 2
        (overlay,) = await core.prepare("k2", "c1", {})
        assert lowerdirs([overlay]) == [bind.source] and not any("xino" in one for one in overlay.options)
        assert await core.mounts("k2") == [overlay]
        assert (await core.view("v", "c1", {}))[0] == Mount("bind", bind.source, ("ro", "rbind"))
        with pytest.raises(PreconditionError):
            await core.mounts("c1")
    finally:
        core.close()


async def test_a_layer_is_taken_over_under_its_chain_id(core: Snapshotter, layers: FakeLayers) -> None:
    layers.add(0)
    layers.add(1)
    source = {"containerd.io/snapshot/cri.image-ref": "r/i:1", "containerd.io/snapshot/cri.layer-digest": DIFF_IDS[2]}
    with pytest.raises(AlreadyExistsError):
        await prepare_layer(core, 0, **source)
    request = layers.asked[0]
    assert (request.chain_id, request.parent_chain_id) == (CHAIN[0], None)
    assert request.source is not None and request.source.layer_digest == DIFF_IDS[2]
    (found,) = await core.walk([f'labels."{labels.SNAPSHOT_REF}"=={CHAIN[0]},parent==""'])
    assert (found.name, found.kind) == (CHAIN[0], Kind.COMMITTED)
    assert await core.stat(CHAIN[0]) == found
    await take(core, 1, found.name)
    assert layers.asked[1].parent_chain_id == CHAIN[0]
    mounts = await core.prepare("n/5/container", CHAIN[1], {})
    assert lowerdirs(mounts) == [str(layers.directory(1)), str(layers.directory(0))]
    assert "xino=on" in mounts[0].options
    assert await core.usage(CHAIN[0]) == Usage(1000, 3)


async def test_a_second_namespace_finds_the_same_snapshot(core: Snapshotter, layers: FakeLayers) -> None:
    layers.add(0)
    await take(core, 0)
    await take(core, 0)
    assert len(layers.asked) == 1 and len(await core.walk()) == 1


async def take_two(core: Snapshotter, layers: FakeLayers) -> None:
    """The first two layers of an image all of which is open; twice as many as at once are recorded above them."""
    for number in range(len(CHAIN)):
        layers.add(number)
    layers.opened = True
    await take(core, 0)
    await recorded(core, CHAIN[AHEAD])
    await take(core, 1, CHAIN[0])
    await recorded(core, CHAIN[2 * AHEAD])


async def test_the_next_layers_are_recorded_together_while_the_client_deals_with_the_one_before(
    core: Snapshotter, layers: FakeLayers
) -> None:
    async with working(core):
        await take_two(core, layers)
        enough = 2 * AHEAD - AHEAD_LEFT
        for number in range(2, enough + 1):
            await take(core, number, CHAIN[number - 1])
            assert [info.name for info in await core.walk()] == CHAIN[: 2 * AHEAD + 1], "some are left: more can wait"
        await take(core, enough + 1, CHAIN[enough])
        await recorded(core, CHAIN[-1])
        for number in range(enough + 2, len(CHAIN)):
            await take(core, number, CHAIN[number - 1])
    assert layers.settled == {f"pack{number}" for number in range(len(CHAIN))}
    assert [request.chain_id for request in layers.asked] == CHAIN[:1]
    assert (await core.stat(CHAIN[-1])).parent == CHAIN[-2]
    lowers = lowerdirs(await core.prepare("n/5/container", CHAIN[-1], {}))
    assert lowers == [str(layers.directory(number)) for number in reversed(range(len(CHAIN)))]


async def test_what_is_recorded_together_ends_with_a_fix_up_lower(core: Snapshotter, layers: FakeLayers) -> None:
    """What the layers above it inherit is not known before it is there."""
    require(os.getuid() == 0, "root")
    for number, mode in ((0, 0o1777), (1, 0o700), (2, 0o755), (3, 0o755)):
        layers.add(number, b"tmp") if number > 1 else layers.add(number)
        (layers.directory(number) / "tmp").mkdir()
        (layers.directory(number) / "tmp").chmod(mode)
    layers.opened = True
    async with working(core):
        await take(core, 0)
        await recorded(core, CHAIN[2])
        assert [info.name for info in await core.walk()] == CHAIN[:3]
        for number in (1, 2):
            await take(core, number, CHAIN[number - 1])
        await recorded(core, CHAIN[3])
    assert [request.chain_id for request in layers.asked] == CHAIN[:1]
    lowers = lowerdirs(await core.prepare("n/5/container", CHAIN[3], {}))
    assert [os.stat(f"{lower}/tmp").st_mode & 0o777 for lower in lowers] == [0o700, 0o755, 0o700, 0o755, 0o700, 0o777]


async def test_a_layer_that_the_disk_does_not_keep_is_not_promised(core: Snapshotter, layers: FakeLayers) -> None:
    layers.add(0)
    layers.full = True
    assert await prepare_layer(core, 0)
    assert [info.kind for info in await core.walk()] == [Kind.ACTIVE]
    assert core.declined(CHAIN[0]) == "its pack cannot be made durable: [Errno 28] no room"
    layers.full = False
    await take(core, 0)
    assert layers.settled == {"pack0"} and core.declined(CHAIN[0]) is None


async def test_a_pack_that_comes_back_is_settled_before_it_is_used(core: Snapshotter, layers: FakeLayers) -> None:
    """With the first of an image all others come back mounted."""
    for number in range(2):
        layers.add(number)
    await take(core, 0)
    await take(core, 1, CHAIN[0])
    layers.settled.clear()
    await core.prepare("n/5/container", CHAIN[1], {})
    assert layers.settled == {"pack0", "pack1"}


async def test_rows_that_were_collected_are_recorded_ahead_again(core: Snapshotter, layers: FakeLayers) -> None:
    async with working(core):
        await take_two(core, layers)
        for number in reversed(range(2, 2 * AHEAD + 1)):
            await core.remove(CHAIN[number])
        await take(core, 2, CHAIN[1])  # above it enough was recorded, before
        await recorded(core, CHAIN[3])


async def test_layers_that_are_asked_for_while_they_are_recorded_are_recorded_once(
    core: Snapshotter, layers: FakeLayers
) -> None:
    for number in range(AHEAD):
        layers.add(number)
    layers.opened = True
    async with working(core):
        for number in range(AHEAD):
            await take(core, number, CHAIN[number - 1] if number else "")
    assert [info.name for info in await core.walk()] == CHAIN[:AHEAD]


async def test_images_that_stack_the_same_layers_in_either_order_wait_for_each_other() -> None:
    """Two that take one lock after the other, in the order of their images, would wait for ever."""
    packs = Sharing()

    async def hold(*pack_ids: str) -> None:
        async with packs.locked(pack_ids):
            await asyncio.sleep(0)

    async with asyncio.timeout(10):
        await asyncio.gather(*(hold("a", "b", "a") if turn % 2 else hold("b", "a") for turn in range(20)))


async def test_a_layer_that_is_not_the_images_is_not_recorded_ahead_either(
    core: Snapshotter, layers: FakeLayers
) -> None:
    layers.add(0)
    layers.known[CHAIN[1]] = TakenLayer("pack9", DIFF_IDS[2])
    layers.opened = True
    layers.mounted.add("pack9")
    async with working(core):
        await take(core, 0)
        await layers.called.wait()
        layers.called.clear()
        await layers.called.wait()
    assert "pack9" not in layers.mounted and [info.name for info in await core.walk()] == CHAIN[:1]
    assert await prepare_layer(core, 1, CHAIN[0])


async def test_simultaneous_prepares_ask_once(core: Snapshotter, layers: FakeLayers) -> None:
    layers.add(0)
    layers.hold = asyncio.Event()
    calls = [asyncio.ensure_future(take(core, 0)) for _ in range(5)]
    await layers.called.wait()
    layers.hold.set()
    await asyncio.gather(*calls)
    assert len(layers.asked) == 1 and len(await core.walk()) == 1


@pytest.mark.parametrize(
    "failure", [DeclinedError("no"), RuntimeError("bug"), TemporaryError("later"), OSError(5, "io")]
)
async def test_any_failure_of_a_take_over_is_a_decline(
    core: Snapshotter, layers: FakeLayers, failure: Exception
) -> None:
    layers.known[CHAIN[0]] = failure
    (mount,) = await prepare_layer(core, 0)
    assert mount.type == "bind" and mount.options[0] == "rw"


async def test_a_take_over_is_bounded_in_time(tmp_path: Path, layers: FakeLayers) -> None:
    layers.hold = asyncio.Event()
    core = Snapshotter(tmp_path / "r", layers, take_over_timeout_s=0.01)
    try:
        assert (await prepare_layer(core, 0))[0].type == "bind"
        slow = Snapshotter(tmp_path / "r2", layers)
        try:
            found = await slow.prepare("k", "", {labels.SNAPSHOT_REF: CHAIN[0]}, remaining_s=0.01)
            assert found[0].type == "bind"
        finally:
            slow.close()
    finally:
        core.close()


async def test_a_layer_with_another_diff_id_is_declined_and_released(core: Snapshotter, layers: FakeLayers) -> None:
    layers.add(0)
    layers.known[CHAIN[0]] = TakenLayer("pack0", DIFF_IDS[2])
    layers.mounted.add("pack0")
    assert (await prepare_layer(core, 0))[0].type == "bind"
    await core.cleanup()
    assert layers.mounted == set()


async def test_what_hides_something_is_taken_over_only_above_another(core: Snapshotter, layers: FakeLayers) -> None:
    hiding = layers.add(0, hides=b"etc/gone")
    assert await prepare_layer(core, 0)
    assert layers.mounted == set()
    await core.remove("n/1/extract-0-")
    layers.known[CHAIN[0]] = replace(hiding, hides=b"")
    layers.add(1, hides=b"etc/gone")
    await take(core, 0)
    await take(core, 1, CHAIN[0])


async def test_parallel_unpacking_is_declined(core: Snapshotter, layers: FakeLayers) -> None:
    """The client names a parent chain and gives no parent: ALREADY_EXISTS would cut the chain (containerd#13264)."""
    layers.known[CHAIN[1]] = TakenLayer("pack1", DIFF_IDS[1])
    assert (await prepare_layer(core, 1, **{labels.PARENT_CHAIN_ID: CHAIN[0]}))[0].type == "bind"
    assert layers.asked == []


async def test_mixed_chains(core: Snapshotter, layers: FakeLayers) -> None:
    layers.add(1)
    bottom = await plain(core, 0)
    await take(core, 1, bottom)
    top = await plain(core, 2, CHAIN[1])
    mounts = await core.prepare("container", top, {})
    found = lowerdirs(mounts)
    assert found[1] == str(layers.directory(1))
    assert found[0].endswith("/fs") and found[2].endswith("/fs") and "xino=on" in mounts[0].options


async def test_one_chain_id_on_two_parents_is_two_snapshots(core: Snapshotter, layers: FakeLayers) -> None:
    layers.add(1)
    bottom = await plain(core, 0)
    layers.add(0)
    await take(core, 0)
    await take(core, 1, bottom)
    await take(core, 1, CHAIN[0])
    found = await core.walk([f'labels."{labels.SNAPSHOT_REF}"=={CHAIN[1]}'])
    assert {info.parent for info in found} == {bottom, CHAIN[0]} and len({info.name for info in found}) == 2
    used = [await core.usage(info.name) for info in found]
    assert used == [Usage(1000, 3), Usage()], "the pack is on the disk once"


async def test_an_unknown_parent_is_the_callers_error(core: Snapshotter) -> None:
    with pytest.raises(NotFoundError):
        await prepare_layer(core, 1, "nowhere")
    await core.prepare("active", "", {})
    with pytest.raises(UsageError):
        await prepare_layer(core, 1, "active")


async def test_a_failed_mount_frees_the_key(core: Snapshotter, layers: FakeLayers) -> None:
    layers.add(0)
    await take(core, 0)
    layers.broken.add("pack0")
    with pytest.raises(TemporaryError):
        await core.prepare("c", CHAIN[0], {})
    layers.broken.clear()
    assert (await core.prepare("c", CHAIN[0], {}))[0].type == "overlay"


async def test_a_taken_layer_that_no_longer_mounts_is_declined(core: Snapshotter, layers: FakeLayers) -> None:
    layers.add(0)
    await take(core, 0)
    layers.broken.add("pack0")
    assert (await prepare_layer(core, 0))[0].type == "bind"


async def test_removed_directories_go_with_cleanup(core: Snapshotter, tmp_path: Path) -> None:
    (mount,) = await core.prepare("k", "", {})
    (Path(mount.source) / "d").mkdir()
    await core.remove("k")
    assert Path(mount.source).exists(), "Remove touches rows only"
    await core.cleanup()
    assert list((tmp_path / "root/snapshots").iterdir()) == []


async def test_a_held_layer_is_released_later(
    core: Snapshotter, layers: FakeLayers, caplog: pytest.LogCaptureFixture
) -> None:
    layers.add(0)
    await take(core, 0)
    layers.busy.add("pack0")
    await core.remove(CHAIN[0])
    await core.cleanup()
    assert layers.mounted == {"pack0"} and "process 1 (init)" in caplog.text
    layers.busy.clear()
    layers.called.clear()
    async with asyncio.timeout(5):
        runner = asyncio.ensure_future(core.run())
        await layers.called.wait()
        runner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await runner
    assert layers.mounted == set()


async def test_a_layer_taken_again_during_its_release_stays_mounted(core: Snapshotter, layers: FakeLayers) -> None:
    layers.add(0)
    await take(core, 0)
    await core.remove(CHAIN[0])
    await asyncio.gather(core.cleanup(), take(core, 0), core.cleanup())
    assert layers.mounted == {"pack0"}
    assert await core.packs_in_use() == ["pack0"]


async def test_snapshotters_over_the_same_layers_leave_each_other_theirs(tmp_path: Path, layers: FakeLayers) -> None:
    sharing = Sharing()
    one, other = (Snapshotter(tmp_path / name, layers, sharing=sharing) for name in ("one", "other"))
    try:
        layers.add(0)
        await take(one, 0)
        await take(other, 0)
        await one.remove(CHAIN[0])
        await one.cleanup()
        assert layers.mounted == {"pack0"}
        await other.remove(CHAIN[0])
        await other.cleanup()
        assert layers.mounted == set()
    finally:
        one.close()
        other.close()


async def test_a_restart_mounts_and_reports(tmp_path: Path, layers: FakeLayers) -> None:
    core = Snapshotter(tmp_path / "r", layers)
    layers.add(0)
    await take(core, 0)
    (lost,) = await core.prepare("lost", "", {})
    core.close()
    Path(lost.source).rmdir()
    (tmp_path / "r/snapshots/999").mkdir()
    layers.mounted.clear()
    again = Snapshotter(tmp_path / "r", layers)
    try:
        recovered = await again.recover()
        assert recovered.missing == ("lost",) and recovered.unmounted == {} and layers.mounted == {"pack0"}
        await again.cleanup()
        assert not (tmp_path / "r/snapshots/999").exists()
        layers.broken.add("pack0")
        assert set((await again.recover()).unmounted) == {"pack0"}
    finally:
        again.close()


async def test_a_start_makes_again_what_held_nothing(tmp_path: Path, layers: FakeLayers) -> None:
    """A view's directory, overlayfs' own, and a fix-up lower, which follows from the layers."""
    require(os.geteuid() == 0, "root")
    core = Snapshotter(tmp_path / "r", layers)
    layers.add(0)
    layers.add(1, b"etc")
    (layers.directory(0) / "etc").mkdir(mode=0o711)
    (layers.directory(1) / "etc").mkdir(mode=0o755)
    await take(core, 0)
    await take(core, 1, CHAIN[0])
    await core.prepare("running", CHAIN[1], {})
    looked = lowerdirs(await core.view("look", CHAIN[1], {}))
    core.close()
    (fixed,) = (tmp_path / "r/snapshots").glob("*/fs/etc")
    (work,) = (tmp_path / "r/snapshots").glob("*/work")
    work.rmdir()
    for lost in (tmp_path / "r/snapshots").iterdir():
        if lost not in (work.parent, fixed.parent.parent):
            shutil.rmtree(lost)
    shutil.rmtree(fixed.parent.parent)

    again = Snapshotter(tmp_path / "r", layers)
    try:
        assert (await again.recover()).missing == ()
        assert fixed.stat().st_mode & 0o7777 == 0o711 and work.is_dir()
        assert lowerdirs(await again.mounts("look")) == looked
        assert len(list((tmp_path / "r/snapshots").glob("*/fs"))) == 3
    finally:
        again.close()


async def test_a_cancelled_take_over_leaves_no_mount_behind(core: Snapshotter, layers: FakeLayers) -> None:
    layers.add(0)
    layers.mounting = asyncio.Event()
    call = asyncio.ensure_future(prepare_layer(core, 0))
    await layers.mounting.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await core.cleanup()
    assert await core.walk() == [] and layers.mounted == set()


async def test_id_mapping_labels_give_the_upper_to_the_mapped_root(core: Snapshotter) -> None:
    require(os.getuid() == 0, "root")
    mapping = {labels.UID_MAPPING: "0:100000:65536", labels.GID_MAPPING: "0:200000:65536"}
    (mount,) = await core.prepare("k", "", mapping)
    status = os.stat(mount.source)
    assert (status.st_uid, status.st_gid) == (100000, 200000)
    await core.commit("c", "k", {})
    (child,) = await core.prepare("k2", "c", {})
    upper = next(option for option in child.options if option.startswith("upperdir="))[len("upperdir=") :]
    assert os.stat(upper).st_uid == 100000, "as containerd: the parent's owner"


async def test_fix_up_lowers_stand_above_their_layer(core: Snapshotter, layers: FakeLayers) -> None:
    require(os.getuid() == 0, "root")
    bottom = await plain(core, 0)
    (view,) = await core.view("look", bottom, {})
    (Path(view.source) / "tmp").mkdir(mode=0o1777)
    os.chmod(Path(view.source) / "tmp", 0o1777)
    layers.add(1, b"tmp")
    (layers.directory(1) / "tmp").mkdir()
    await take(core, 1, bottom)
    fixup, layer, _ = lowerdirs(await core.prepare("container", CHAIN[1], {}))
    assert layer == str(layers.directory(1)) and os.stat(f"{fixup}/tmp").st_mode & 0o7777 == 0o1777
    (overlay,) = await core.view("one", CHAIN[1], {})
    assert overlay.type == "overlay" and len(lowerdirs([overlay])) == 3


async def test_only_a_container_s_snapshot_is_a_start(core: Snapshotter, layers: FakeLayers) -> None:
    for number in (0, 1):
        layers.add(number)
        parent = CHAIN[number - 1] if number else ""
        with pytest.raises(AlreadyExistsError):
            await core.prepare(f"extract-{number}", parent, {labels.SNAPSHOT_REF: CHAIN[number]})
    assert layers.starts == []
    await core.prepare("container", CHAIN[1], {})
    assert layers.starts == [["pack1", "pack0"]]


@pytest.mark.parametrize("able", [True, False])
async def test_mapped_layers_are_mounted_or_refused_and_never_copied(
    core: Snapshotter, layers: FakeLayers, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    tried: list[list[str]] = []
    monkeypatch.setattr(IdMaps, "can_map", lambda _, lowers: tried.append(lowers) or able)  # type: ignore[func-returns-value]
    layers.add(0)
    await take(core, 0)
    mapping = {labels.UID_MAPPING: "0:100000:65536", labels.GID_MAPPING: "0:200000:65536"}
    if able:
        (mount,) = await core.prepare("pod", CHAIN[0], mapping)
        assert {"uidmap=0:100000:65536", "gidmap=0:200000:65536"} <= set(mount.options)
        assert await core.mounts("pod") == [mount]
    else:
        with pytest.raises(UnsupportedError, match=r"Linux 5\.19"):
            await core.prepare("pod", CHAIN[0], mapping)
        await core.prepare("pod", CHAIN[0], {})
    assert tried[0] == [str(layers.directory(0))]

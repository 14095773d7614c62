"""The keeper carries plans out: what came into use meanwhile stays, and what is gone is gone everywhere."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest
from fake_node import FakeNode, FakeStore
from prometheus_client import CollectorRegistry
from test_unused import FakeSharing

from agent.frames import Frames
from agent.known_images import KnownImage, KnownImages, KnownLayer
from agent.space import keeper as keeping
from agent.space.figures import SpaceFigures
from agent.space.keeper import SpaceKeeper
from agent.space.policy import What
from imgdist.space import Disk, Watermarks


class Users(FakeSharing):
    async def users(self) -> dict[str, list[str]]:
        return {pack_id: ["a snapshot"] for pack_id in self.used}


class Rig:
    """A keeper over a fake node whose packs of 1 MiB are real directories; `used` is what statvfs says."""

    def __init__(self, tasks: asyncio.TaskGroup, root: Path, monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
        self.node = FakeNode(tasks, *(FakeStore(number) for number in numbers))
        self.sharing = Users()
        self.registry = CollectorRegistry()
        self.known = KnownImages(root / "images")
        self.disk = Disk(1000, 500)
        self.served: dict[int, float] = {}
        self._root = root
        monkeypatch.setattr(keeping, "disk_of", lambda path: self.disk)
        self.keeper = self.made()

    def made(self) -> SpaceKeeper:
        (self._root / "packs").mkdir(exist_ok=True)
        catalog, chunks = self.node.catalog, self.node.chunks
        figures = SpaceFigures(CollectorRegistry())
        return SpaceKeeper(
            self._root / "packs",
            Watermarks(0.8, 0.75),
            catalog,
            chunks,
            self.known.forget_without,
            self.sharing,
            figures,
            min_age_s=300,
            served_at=self.served.get,
        )

    async def adopt(self, number: int, age_s: float) -> str:
        layer = await self.node.catalog.adopt(bytes([number]))
        directory = self._root / "packs" / layer.pack_id
        directory.mkdir(parents=True)
        (directory / "image").write_bytes(bytes(1 << 20))
        (directory / "node").write_text(str(number))
        os.utime(directory / "node", (time.time() - age_s, time.time() - age_s))
        layer.store.directory = directory
        return layer.pack_id


async def test_below_the_watermark_nothing_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.TaskGroup() as tasks:
        rig = Rig(tasks, tmp_path, monkeypatch, 5)
        await rig.adopt(5, 9000)
        await rig.keeper.look()
        assert rig.node.chunks.removed == []


async def test_above_it_the_longest_unused_goes_until_it_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.TaskGroup() as tasks:
        rig = Rig(tasks, tmp_path, monkeypatch, 5, 6, 7, 8)
        for number, age_s in ((5, 500), (6, 900), (7, 700), (8, 10)):
            await rig.adopt(number, age_s)
        rig.sharing.used.add((b"\6" * 32).hex())
        total = 100 << 20
        rig.disk = Disk(total, total * 19 // 100)  # 6 MiB above the low watermark
        await rig.keeper.look()
        assert rig.node.chunks.removed == [7, 5], "6 is used, 8 too young"
        assert sorted(layer.store.node for layer in rig.node.catalog.all()) == [6, 8]


async def test_what_comes_into_use_after_the_decision_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.TaskGroup() as tasks:
        rig = Rig(tasks, tmp_path, monkeypatch, 5)
        pack_id = await rig.adopt(5, 900)
        original = rig.sharing.users

        async def users() -> dict[str, list[str]]:
            found = await original()
            rig.sharing.used.add(pack_id)
            return found

        rig.sharing.users = users  # type: ignore[method-assign]
        report = await rig.keeper.collect()
        assert report.removed == () and rig.node.chunks.removed == []
        assert [kept.why for kept in report.kept] == ["used again meanwhile"]


async def test_what_is_coming_into_use_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds the pack's lock may itself wait for room, which only one at a time makes."""
    async with asyncio.TaskGroup() as tasks:
        rig = Rig(tasks, tmp_path, monkeypatch, 5, 6)
        taken, free = [await rig.adopt(number, 900) for number in (5, 6)]
        async with rig.sharing.lock(taken), asyncio.timeout(5):
            report = await rig.keeper.collect()
        assert [gone.name for gone in report.removed] == [free]
        assert [(kept.pack_id, kept.why) for kept in report.kept] == [(taken, "used again meanwhile")]


async def test_mounted_shown_or_served_layers_are_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.TaskGroup() as tasks:
        rig = Rig(tasks, tmp_path, monkeypatch, 5, 6, 7)
        for number in (5, 6, 7):
            await rig.adopt(number, 900)
        mounted, shown, served = rig.node.catalog.all()
        mounted.mounted = shown.shown = True
        rig.served[served.store.node] = time.monotonic()
        report = await rig.keeper.collect()
        why = {kept.pack_id: kept.why for kept in report.kept}
        assert why == {
            mounted.pack_id: "used by a pull that mounted it",
            shown.pack_id: "used by a loop device",
            served.pack_id: "used by an upload",
        }


async def test_frames_go_before_packs_and_their_layer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.TaskGroup() as tasks:
        rig = Rig(tasks, tmp_path, monkeypatch, 5)
        pack_id = await rig.adopt(5, 900)
        layer = rig.node.catalog.get(pack_id)
        assert layer is not None
        layer.store.frames = Frames(layer.store.directory / "frames")
        layer.store.frames.append(0, 1, os.urandom(50_000))
        rig.sharing.used.add(pack_id)
        rig.disk = Disk(1 << 20, 100)
        await rig.keeper.look()
        assert layer.store.frames is None and not (layer.store.directory / "frames").exists()
        assert rig.node.catalog.get(pack_id) is layer


async def test_a_dry_run_says_the_same_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.TaskGroup() as tasks:
        rig = Rig(tasks, tmp_path, monkeypatch, 5, 6)
        for number in (5, 6):
            await rig.adopt(number, 900)
        rig.node.chunks.leftovers = [(".part-x", 4096)]
        would = await rig.keeper.collect(dry_run=True)
        assert rig.node.chunks.removed == [] and rig.node.chunks.leftovers and len(rig.node.catalog.all()) == 2
        done = await rig.keeper.collect()
        assert (would.dry_run, done.dry_run) == (True, False)
        assert (would.removed, would.freed_bytes) == (done.removed, done.freed_bytes)
        assert [victim.what for victim in done.removed] == [What.LEFTOVER, What.PACK, What.PACK]
        assert rig.node.chunks.leftovers == []


async def test_an_image_without_packs_is_forgotten_and_others_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.TaskGroup() as tasks:
        rig = Rig(tasks, tmp_path, monkeypatch, 5, 6)
        gone, stays = [await rig.adopt(number, age) for number, age in ((5, 900), (6, 1))]
        rig.sharing.used.add("lost from the disk")
        for name, pack in (("a", gone), ("b", stays), ("plain", None), ("used", "lost from the disk")):
            digest = "sha256:" + name.encode().hex().ljust(64, "0")
            layer = KnownLayer(
                digest=digest, media_type="", size_bytes=1, diff_id=digest, chain_id=digest, pack_id=pack
            )
            rig.known.add(KnownImage(reference=name, name=name, manifest_digest=digest, platform="", layers=(layer,)))
        await rig.keeper.collect()
        assert [image.reference for image in rig.known.all()] == ["b", "plain", "used"]
        assert [image.reference for image in KnownImages(tmp_path / "images").all()] == ["b", "plain", "used"]


async def test_a_layer_that_finds_the_disk_full_makes_room_and_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.TaskGroup() as tasks:
        asked: list[int] = []
        rig = Rig(tasks, tmp_path, monkeypatch, 5)

        async def make_room(size_bytes: int) -> bool:
            asked.append(size_bytes)
            rig.node.chunks.full = None
            return True

        monkeypatch.setattr(rig.node.catalog, "_make_room", make_room)
        monkeypatch.setattr("agent.catalog.Index", type("I", (), {"load": lambda data: FakeStore(5).index}))
        rig.node.chunks.full = OSError(errno.ENOSPC, "full")
        layer = await rig.node.catalog.adopt(b"\5")
        assert layer.store.node == 5 and asked == [layer.store.index.image_size]
        rig.node.chunks.full = OSError(errno.EIO, "broken")
        with pytest.raises(OSError, match="broken"):
            await rig.node.catalog.adopt(b"\5")


async def test_who_waits_for_room_that_another_made_does_not_free_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.TaskGroup() as tasks:
        rig = Rig(tasks, tmp_path, monkeypatch, 5)
        await rig.adopt(5, 900)
        rig.disk = Disk(1 << 40, 1 << 39)
        assert await rig.keeper.make_room(1000)
        assert rig.node.chunks.removed == []
        rig.disk = Disk(1 << 40, 0)
        assert await rig.keeper.make_room(1000)
        assert rig.node.chunks.removed == [5]
        assert not await rig.keeper.make_room(1000), "nothing is left to go"


async def test_hundreds_of_packs_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a look costs grows with the packs, not with their files: sizes are taken once."""
    async with asyncio.TaskGroup() as tasks:
        rig = Rig(tasks, tmp_path, monkeypatch, *range(2, 252))
        for number in range(2, 252):
            await rig.adopt(number, 1000 + number)
        measured: list[Path] = []
        original = keeping.directory_bytes

        def counted(directory: Path, *, without: str = "") -> int:
            measured.append(directory)
            return original(directory, without=without)

        monkeypatch.setattr(keeping, "directory_bytes", counted)
        total = 1 << 30
        for excess in (10, 20):
            rig.disk = Disk(total, total // 4 - excess * (1 << 20))
            rig.disk = Disk(total, min(rig.disk.available_bytes, total // 5 - 1))
            before = len(rig.node.chunks.removed)
            await rig.keeper.look()
            assert len(rig.node.chunks.removed) > before
        assert len(measured) == len(set(measured)) == 250
        assert rig.node.chunks.removed[0] == 251, "the longest unused"

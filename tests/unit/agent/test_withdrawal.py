"""Revoked packs: remembered, replaced below snapshots, kept as long as something runs on them, then removed."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_node import FakeStore

from agent.known_images import KnownImage, KnownImages, KnownLayer
from agent.layer import Layer
from agent.revocations import Revocation, Revocations, RevokedLayer
from agent.snapshotter.model import Info, Kind
from agent.withdrawal import THIS_NODE, Withdrawal
from agent.work import SharedWork
from imgdist.errors import ImgdistError, TemporaryError
from imgdist.proving.verdict import Verdict
from imgdist.wire import tracker

DIGEST, DIFF_ID, MANIFEST = "sha256:" + "a" * 64, "sha256:" + "d" * 64, "sha256:" + "e" * 64
MOUNT = Info("mount 1", "", Kind.ACTIVE, 0, 0, {"containerd.io/gc.root": "/m"})
CONTAINER = Info("k8s.io/7/web", "", Kind.ACTIVE, 0, 0)


def layer(number: int, diff_id: str = DIFF_ID) -> Layer:
    store: Any = FakeStore(number, diff_id=diff_id)
    return Layer(store)


BAD, GOOD = layer(1), layer(2)


class World:
    """A node with one image of one layer, of the pack BAD; `found` is what a supernode gives for it now."""

    def __init__(self, root: Path, tasks: asyncio.TaskGroup) -> None:
        self.root, self._tasks = root, tasks
        known = KnownImages(root / "images")
        known.add(
            KnownImage(
                reference="reg/app:1",
                name="reg/app",
                manifest_digest=MANIFEST,
                platform="linux/amd64",
                layers=(KnownLayer(digest=DIGEST, media_type="", size_bytes=1, diff_id=DIFF_ID, chain_id=DIFF_ID),),
            )
        )
        known.sealed(DIGEST, BAD.pack_id)
        self.known = known
        self.here = {BAD.pack_id: BAD}
        self.found: Layer | ImgdistError = TemporaryError("still revoked")
        self.asked: list[tuple[str, str, str | None]] = []
        self.given_up: list[str] = []
        self.snapshots: dict[str, list[Info]] = {BAD.pack_id: [MOUNT, CONTAINER]}
        self.reported: list[str] = []
        self.answers: list[tuple[str, Verdict | ImgdistError]] = []
        self.durable: set[str] = set()
        self.busy = True
        self.evicted = False
        self.late: list[Info] = []
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.withdrawal = self.begin()

    def begin(self, *, block: bool = False) -> Withdrawal:
        """As after a start."""
        self.revocations = Revocations(self.root / "revoked")
        fakes: Any = SimpleNamespace(images=self, catalog=self, sharing=self)
        return Withdrawal(
            self.revocations, fakes.images, fakes.catalog, fakes.sharing, self._tasks, block=block, report=self._report
        )

    # Images.

    def give_up(self, pack_id: str) -> None:
        self.given_up.append(pack_id)

    async def layer(self, reference: str, digest: str, manifest_digest: str | None) -> Layer:
        self.asked.append((reference, digest, manifest_digest))
        if isinstance(self.found, ImgdistError):
            raise self.found
        if not self.evicted:
            self.here[self.found.pack_id] = self.found
        return self.found

    # Catalog.

    def get(self, pack_id: str) -> Layer | None:
        return self.here.get(pack_id)

    async def settle(self, pack_ids: Sequence[str]) -> None:
        self.durable.update(pack_ids)

    async def unmount(self, pack_id: str) -> None:
        if self.busy:
            raise TemporaryError("busy")

    async def remove(self, pack_id: str) -> bool:
        del self.here[pack_id]
        return True

    # Sharing.

    def lock(self, pack_id: str) -> asyncio.Lock:
        return self.locks[pack_id]

    async def is_used(self, pack_id: str) -> bool:
        return pack_id in self.snapshots

    async def built_on(self) -> dict[str, list[Info]]:
        return self.snapshots

    async def replace(self, pack_id: str, by: str) -> list[Info]:
        assert self.locks[by].locked(), "else it may go meanwhile"
        assert by in self.durable
        self.snapshots[by] = [*self.snapshots.pop(pack_id), *self.late]
        return self.snapshots[by]

    async def _report(self, pack_id: str) -> Iterable[tuple[str, Verdict | ImgdistError]]:
        self.reported.append(pack_id)
        return self.answers

    async def look(self) -> None:
        """What `run` does once."""
        await self.withdrawal.look()

    async def settled(self) -> None:
        """What was begun beside has been done."""
        await SharedWork(self._tasks, asyncio.sleep(0)).wait()
        await asyncio.sleep(0)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with asyncio.TaskGroup() as tasks:
        yield World(tmp_path, tasks)


async def test_a_lie_that_this_node_has_found_is_given_up_and_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        world.withdrawal.found(BAD, Verdict("false", "it was altered"))
    await world.settled()
    assert f"pack {BAD.pack_id} is revoked by this node: it was altered; images: reg/app@{MANIFEST}" in caplog.text
    assert world.given_up == world.reported == [BAD.pack_id]
    assert world.revocations.reason(BAD.pack_id) == "it was altered"
    world.withdrawal.found(BAD, Verdict("false", "again"))
    assert world.given_up == [BAD.pack_id], "once"


async def test_right_packs_are_left_alone_and_unproven_ones_reported(world: World) -> None:
    for verdict in (Verdict("proven"), Verdict("partial", "half"), Verdict("unproven", "no tar-split")):
        world.withdrawal.found(BAD, verdict)
    await world.settled()
    assert (world.given_up, world.reported) == ([], [BAD.pack_id])
    world.answers = [("http://s:1", TemporaryError("away")), ("http://t:1", Verdict("false", "it lies"))]
    world.withdrawal.suspect(BAD.pack_id)
    await world.settled()
    assert [(one.by, one.reason) for one in world.revocations.all()] == [("http://t:1", "it lies")]


async def test_what_a_supernode_tells_holds_also_after_a_restart(world: World) -> None:
    world.withdrawal.told("http://s:1", [tracker.Revocation(BAD.pack_id, "it lies")])
    for block in (False, True):
        withdrawal = world.begin(block=block)
        (one,) = world.revocations.all()
        assert (one.by, one.reason, one.layers[0].digest) == ("http://s:1", "it lies", DIGEST)
        assert withdrawal.refused(BAD.pack_id) == ("it lies" if block else None)
        assert withdrawal.refused(GOOD.pack_id) is None


async def test_snapshots_are_put_on_the_layers_own_pack_and_who_runs_is_named(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.withdrawal.revoke(BAD.pack_id, "it lies", THIS_NODE)
    await world.look()
    assert world.asked == [(f"reg/app@{MANIFEST}", DIGEST, MANIFEST)]
    assert world.withdrawal.used_by == {BAD.pack_id: ["container k8s.io/web", "mount /m"]}

    world.found = layer(3, "sha256:" + "f" * 64)
    await world.look()
    assert world.snapshots.keys() == {BAD.pack_id}, "another layer is no replacement"

    world.found = GOOD
    with caplog.at_level(logging.ERROR):
        await world.look()
        await world.look()
    assert world.snapshots == {GOOD.pack_id: [MOUNT, CONTAINER]}
    assert world.withdrawal.used_by == {BAD.pack_id: ["container k8s.io/web", "mount /m"]}, "as long as they run"

    world.snapshots[GOOD.pack_id].remove(MOUNT)
    world.withdrawal = world.begin()
    await world.look()
    assert world.withdrawal.used_by == {BAD.pack_id: ["container k8s.io/web"]}
    world.busy = False
    await world.look()
    assert BAD.pack_id not in world.here and world.withdrawal.used_by == {}


async def test_a_replacement_that_has_gone_again_is_none(world: World) -> None:
    world.found, world.evicted = GOOD, True
    world.withdrawal.revoke(BAD.pack_id, "it lies", THIS_NODE)
    await world.look()
    assert world.snapshots.keys() == {BAD.pack_id}
    world.evicted = False
    await world.look()
    assert world.snapshots.keys() == {GOOD.pack_id}


async def test_who_comes_while_a_pack_is_replaced_is_named_too(world: World) -> None:
    world.found, world.late = GOOD, [Info("k8s.io/8/late", "", Kind.ACTIVE, 0, 0)]
    world.withdrawal.revoke(BAD.pack_id, "it lies", THIS_NODE)
    await world.look()
    assert world.revocations.all()[0].outlived == (MOUNT.name, CONTAINER.name, "k8s.io/8/late")
    assert world.withdrawal.used_by[BAD.pack_id] == ["container k8s.io/late", "container k8s.io/web", "mount /m"]


async def test_a_damaged_pack_goes_once_nobody_uses_it(world: World) -> None:
    world.busy = False
    world.withdrawal.found(BAD, Verdict("damaged", "1 of 3 chunks are damaged"))
    await world.settled()
    assert BAD.pack_id in world.here
    world.snapshots.clear()
    world.withdrawal.found(BAD, Verdict("damaged", "1 of 3 chunks are damaged"))
    async with asyncio.timeout(10):
        while world.here:  # noqa: ASYNC110 - a thread looks at loop devices meanwhile
            await asyncio.sleep(0.005)
    assert world.given_up == []


def test_a_file_that_makes_no_sense_still_revokes(tmp_path: Path) -> None:
    (tmp_path / ("ab" * 32)).write_text("{")
    (tmp_path / ".half").write_text("")
    assert [one.pack_id for one in Revocations(tmp_path).all()] == ["ab" * 32]


def test_what_replaces_a_pack_is_on_the_disk_before_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").read_bytes()))
    revocations = Revocations(tmp_path)
    revocations.add(
        Revocation("ab" * 32, "it lies", THIS_NODE, 1.0, (RevokedLayer("reg/app", MANIFEST, DIGEST, DIFF_ID),))
    )
    revocations.add(Revocation("cd" * 32, "not of this node", "supernode", 1.0))
    assert synced == [(tmp_path / ("ab" * 32)).read_bytes()]


def test_a_disk_that_refuses_does_not_keep_it_from_counting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    revocations = Revocations(tmp_path / "r")
    (tmp_path / "r").rmdir()
    with caplog.at_level(logging.ERROR):
        assert revocations.add(Revocation("ab" * 32, "it lies", THIS_NODE, 0.0))
    assert "not remembered over a restart" in caplog.text
    assert revocations.reason("ab" * 32) == "it lies"

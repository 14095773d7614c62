"""Layers as neighbours see them: before the seal under their name, after it under both, served without a gap."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from made_layers import MadeLayer
from mesh_rig import Node, Rig, rig, until

from agent.chunkstore import ChunkStore
from agent.database import Database
from agent.earlystore import EarlyStore
from agent.swarm.presence import Presence
from agent.swarm.shelf import Shelf
from imgdist.errors import NotFoundError
from imgdist.pack import codec
from imgdist.pack.index import IndexFollower
from imgdist.pack.kinds import early_name
from imgdist.pack.records import offset_of

LAYER = MadeLayer((4, 64, 8, 1, 2), zero=[2])
NAME = early_name("sha256:" + "ab" * 32)


@pytest.fixture
async def world() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made


@pytest.fixture
def chunks(tmp_path: Path) -> Iterator[ChunkStore]:
    database = Database(tmp_path / "agent.db")
    made = ChunkStore(tmp_path / "packs", database)
    yield made
    made.close()
    database.close()


def begun(chunks: ChunkStore, count: int) -> EarlyStore:
    follower = IndexFollower()
    follower.feed(LAYER.index_data[: offset_of(LAYER.index_data, 1 + count)])
    store = chunks.begin(NAME, follower)
    store.grow()
    return store


def land(node: Node, shelf: Shelf, store: EarlyStore, chunk: int) -> None:
    store.write(chunk, memoryview(LAYER.chunks[chunk]))
    shelf.arrived(store.node, chunk)
    node.mesh.here(store.node, chunk)


def body(shelf: Shelf, name: str, chunk: int) -> bytes:
    reader = shelf.open(name)
    assert reader is not None
    row = reader.row(chunk)
    assert row.encoding == codec.RAW
    return os.pread(row.fd, row.length, row.offset)


async def test_neighbours_follow_a_layer_through_its_seal(world: Rig, chunks: ChunkStore) -> None:
    one, two, late = world.node(1), world.node(2), world.node(3)
    two.mesh.learn([one.peer])
    async with asyncio.TaskGroup() as tasks:
        presence = Presence(one.mesh, tasks)
        shelf = Shelf(presence.find)
        early = begun(chunks, 4)
        presence.begin(early)
        two.mesh.open(9, NAME, "", 0, 0)
        assert one.mesh.lacks and [share.swarm for share in one.mesh.shares()] == [NAME]
        land(one, shelf, early, 3)
        await until(lambda: two.knows(one, 9) == 0b1000)
        assert body(shelf, NAME, 3) == LAYER.chunks[3]
        with pytest.raises(NotFoundError):
            body(shelf, NAME, 1)
        late.mesh.open(7, NAME, "", 0, 0)
        late.mesh.learn([one.peer])
        await until(lambda: late.knows(one, 7) == 0b1000)

        land(one, shelf, early, 0)  # its news is on the way while the layer is sealed
        store = chunks.create(LAYER.index_data, early)
        presence.show(store)
        assert body(shelf, NAME, 3) == body(shelf, LAYER.name, 3) == LAYER.chunks[3]
        presence.end(early)
        shelf.forget(early.node)
        chunks.discard(early)
        assert body(shelf, NAME, 0) == body(shelf, LAYER.name, 0) == LAYER.chunks[0]
        await until(lambda: two.knows(one, 9) == late.knows(one, 7) == 0b1101)
        one.mesh.here(store.node, 1)
        await until(lambda: two.knows(one, 9) == 0b1111)
        assert [share.count for share in one.mesh.shares()] == [5]
        two.mesh.sealed(9, 9, LAYER.name, 5, 0b10000)
        await until(lambda: one.knows(two, store.node) == 0b10000)


async def test_a_layer_that_is_never_sealed_is_left(world: Rig, chunks: ChunkStore) -> None:
    one, two = world.node(1), world.node(2)
    two.mesh.learn([one.peer])
    async with asyncio.TaskGroup() as tasks:
        presence = Presence(one.mesh, tasks)
        shelf = Shelf(presence.find)
        early = begun(chunks, 2)
        presence.begin(early)
        two.mesh.open(9, NAME, "", 0, 0)
        land(one, shelf, early, 1)
        await until(lambda: two.knows(one, 9) == 0b10)
        presence.end(early)
        chunks.discard(early)
        await until(lambda: two.knows(one, 9) is None)
        assert shelf.open(NAME) is None and not one.mesh.lacks and one.mesh.shares() == []

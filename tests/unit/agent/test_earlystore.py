"""Chunks before the seal: where they lie, what a pack takes over of them, and that nothing is left otherwise."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_layers import MadeLayer, make_index

from agent.chunkstore import ChunkStore
from agent.database import Database
from agent.earlystore import EarlyStore
from agent.imagefile import ImageFile
from imgdist.errors import CorruptError
from imgdist.pack import BLOCK, CHUNK_MAX
from imgdist.pack.index import IndexFollower
from imgdist.pack.kinds import early_name
from imgdist.pack.records import offset_of

LAYER = MadeLayer((4, 64, 8, 1, 2), zero=[2])
NAME = early_name("sha256:" + "ab" * 32)


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    return tmp_path / "packs"


@pytest.fixture
def chunks(tmp_path: Path, packs: Path) -> Iterator[ChunkStore]:
    database = Database(tmp_path / "agent.db")
    made = ChunkStore(packs, database, keep_frames=True)
    yield made
    made.close()
    database.close()


def followed(layer: MadeLayer, count: int) -> IndexFollower:
    """An index of which `count` chunks came."""
    follower = IndexFollower()
    follower.feed(layer.index_data[: offset_of(layer.index_data, 1 + count)])
    assert follower.chunk_count == count
    return follower


def put(store: EarlyStore, *numbers: int, layer: MadeLayer = LAYER, direct: bool = False) -> None:
    buffer = memoryview(mmap.mmap(-1, CHUNK_MAX))
    for chunk in numbers:
        raw = buffer[: store.index.size(chunk)]
        raw[:] = layer.chunks[chunk]
        store.verify(chunk, raw)
        store.write(chunk, raw, direct=direct)
        assert store.frames is not None
        store.frames.append(chunk, *layer.encoded[chunk])


def test_where_space_is_short_a_pack_drops_the_bodies_that_came_before_the_seal(chunks: ChunkStore) -> None:
    early = chunks.begin(NAME, followed(LAYER, 5))
    early.grow()
    put(early, 1)
    chunks.frames_paused = True
    store = chunks.create(LAYER.index_data, early)
    chunks.discard(early)
    assert store.has(1) and store.frames is None and not (store.directory / "frames").exists()


def image_of(directory: Path) -> bytes:
    return (directory / "image").read_bytes()


def test_it_grows_with_its_index_and_knows_what_is_here(chunks: ChunkStore, packs: Path) -> None:
    follower = followed(LAYER, 2)
    store = chunks.begin(NAME, follower)
    assert store.directory == packs / f".part-{NAME}" and store.node < 0
    assert store.index.chunk_count == 0, "none before there is room"
    assert store.grow() == [0, 1]
    assert store.grow() == []
    put(store, 1)
    assert [store.has(chunk) for chunk in (0, 1)] == [False, True]
    with pytest.raises(CorruptError, match="chunk 0 of layer sha256-ab"):
        store.verify(0, memoryview(LAYER.chunks[1]))
    follower.feed(LAYER.index_data[offset_of(LAYER.index_data, 3) : offset_of(LAYER.index_data, 5)])
    assert store.grow() == [3], "zeros need not be fetched"
    assert store.has(2) and (store.count, store.size_bytes) == (2, 72 * BLOCK)
    at = LAYER.index.start(1)
    assert image_of(store.directory)[at : at + len(LAYER.chunks[1])] == LAYER.chunks[1]


@pytest.mark.parametrize("direct", [False, True])
def test_a_pack_takes_over_what_came(chunks: ChunkStore, packs: Path, direct: bool) -> None:
    early = chunks.begin(NAME, followed(LAYER, 4))
    early.grow()
    put(early, 3, 0, direct=direct)
    inode = os.stat(early.directory / "image").st_ino
    store = chunks.create(LAYER.index_data, early)
    assert [path.name for path in packs.iterdir()] == [LAYER.name]
    assert (store.directory / "image").stat().st_ino == inode
    assert (store.directory / "image").stat().st_size == LAYER.index.image_size
    assert store.missing_chunks() == [1, 4]
    assert not store.present.clean and store.is_proven
    assert store.frames is not None and [bool(store.frames.find(chunk)) for chunk in range(5)] == [1, 0, 0, 1, 0]
    with early.use() as usable:
        assert usable and os.pread(early.image_fd, BLOCK, LAYER.index.start(0)) == LAYER.chunks[0][:BLOCK]
    chunks.discard(early)
    assert store.directory.exists()
    for chunk in store.missing_chunks():
        store.write(chunk, memoryview(LAYER.chunks[chunk]))
    store.complete()
    assert image_of(store.directory) == LAYER.index.block0() + b"".join(LAYER.chunks)


def test_only_what_the_sealed_index_has_at_the_same_place_is_present(chunks: ChunkStore) -> None:
    """A supernode that changes its mind, or two that disagree."""
    other = MadeLayer((4, 64, 8, 1, 2), seed=2, zero=[2])
    sealed = make_index([LAYER.chunks[0], other.chunks[1], LAYER.chunks[3], LAYER.chunks[4]])
    early = chunks.begin(NAME, followed(LAYER, 5))
    early.grow()
    put(early, 0, 1, 3, 4)
    store = chunks.create(sealed, early)
    assert store.missing_chunks() == [1, 2, 3]
    chunks.discard(early)


def test_a_pack_that_is_here_already_stays_as_it_is(chunks: ChunkStore, packs: Path) -> None:
    store = chunks.create(LAYER.index_data)
    early = chunks.begin(NAME, followed(LAYER, 2))
    early.grow()
    put(early, 0)
    assert chunks.create(LAYER.index_data, early) is store
    chunks.discard(early)
    assert store.missing_chunks() == [0, 1, 3, 4]
    assert [path.name for path in packs.iterdir()] == [LAYER.name]


def test_a_full_disk_leaves_nothing(chunks: ChunkStore, packs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(image: ImageFile, size_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    early = chunks.begin(NAME, followed(LAYER, 2))
    early.grow()
    put(early, 0)
    monkeypatch.setattr(ImageFile, "reserve", full)
    with pytest.raises(OSError, match="No space"):
        chunks.create(LAYER.index_data, early)
    assert chunks.get(LAYER.index.pack_id) is None
    chunks.discard(early)
    with pytest.raises(OSError, match="No space"):
        chunks.create(LAYER.index_data)
    assert list(packs.iterdir()) == []
    again = chunks.begin(NAME, followed(LAYER, 2))
    with pytest.raises(OSError, match="No space"):
        again.grow()
    assert again.index.chunk_count == 0, "nobody asks for what has no room"
    chunks.discard(again)
    assert list(packs.iterdir()) == []


def test_what_a_dead_agent_left_goes_at_the_start_and_what_a_stopped_one_had_at_its_end(
    chunks: ChunkStore, packs: Path
) -> None:
    left = packs / f".part-{NAME}"
    left.mkdir()
    (left / "image").write_bytes(b"\1" * BLOCK)
    assert chunks.recover() == []
    assert list(packs.iterdir()) == []
    chunks.begin(NAME, followed(LAYER, 1)).grow()
    assert [path.name for path in packs.iterdir()] == [f".part-{NAME}"]
    chunks.close()
    assert list(packs.iterdir()) == []


def test_copies_on_this_disk_are_found_by_digest(chunks: ChunkStore) -> None:
    other = MadeLayer((64, 3, 1), seed=9)
    shared = make_index([LAYER.chunks[1], other.chunks[1], LAYER.chunks[0]])
    store = chunks.create(shared)
    early = chunks.begin(NAME, followed(LAYER, 4))
    assert chunks.copies(early, early.grow()) == [(0, store, 2), (1, store, 0)]


def test_space_is_taken_ahead_of_what_is_known(chunks: ChunkStore) -> None:
    layer = MadeLayer([64] * 40 + [2])
    early = chunks.begin(NAME, followed(layer, 1))
    early.grow()
    first = os.stat(early.directory / "image").st_blocks * 512
    assert first >= 2 * (CHUNK_MAX + BLOCK)
    chunks.discard(early)
    early = chunks.begin(NAME, followed(layer, 41))
    early.grow()
    put(early, 0, layer=layer)
    store = chunks.create(layer.index_data, early)
    status = os.stat(store.directory / "image")
    assert layer.index.image_size == status.st_size <= status.st_blocks * 512 < layer.index.image_size + CHUNK_MAX
    chunks.discard(early)

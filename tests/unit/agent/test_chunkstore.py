"""Packs on disk: what counts as present after kills, reboots and damage."""

from __future__ import annotations

import errno
import mmap
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_layers import MadeLayer, make_index

from agent.chunkstore import ChunkStore
from agent.database import Database, Twin
from agent.frames import Frames
from agent.layerstore import LayerStore
from agent.space.disk import is_full
from fuse.present import PresentMap, current_boot_id
from imgdist.errors import CorruptError, ImgdistError, TemporaryError
from imgdist.pack import BLOCK, CHUNK_MAX
from imgdist.pack.index import IndexFollower
from imgdist.wire.control import Body

LAYER = MadeLayer((4, 64, 8, 1, 2), zero=[2])


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "agent.db")
    yield made
    made.close()


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def put(store: LayerStore, *chunks: int, direct: bool = False) -> None:
    buffer = memoryview(mmap.mmap(-1, CHUNK_MAX))
    for chunk in chunks:
        raw = buffer[: store.index.size(chunk)]
        raw[:] = LAYER.chunks[chunk]
        store.verify(chunk, raw)
        store.write(chunk, raw, direct=direct)


def image_of(store: LayerStore) -> bytes:
    return (store.directory / "image").read_bytes()


def reboot(store: LayerStore, *, clean: bool) -> None:
    """Leave a store as the machine's stop would: orderly, or with whatever lay on disk."""
    if clean:
        store.close()
        left = PresentMap.open(store.directory / "present")
        left.boot_id = "0" * 36
        left.close()
        return
    store.present.boot_id = "0" * 36
    store.abandon()


def test_chunks_that_come_with_an_index_are_taken_if_they_are_right(packs: Path, database: Database) -> None:
    right, wrong = Body(4, *LAYER.encoded[4]), Body(0, *LAYER.encoded[1])
    store = ChunkStore(packs, database).create(LAYER.index_data, None, [Body(9, 0, b""), wrong, right])
    assert store.missing_chunks() == [0, 1, 3]
    assert image_of(store)[store.index.start(4) :] == LAYER.chunks[4]
    assert store.received == {"supernode": len(LAYER.encoded[4][1])}


def test_a_new_pack_holds_block_0_and_its_zero_chunks(packs: Path, database: Database) -> None:
    store = ChunkStore(packs, database).create(LAYER.index_data)
    assert store.directory == packs / LAYER.name
    assert (store.node, store.name) == (2, "2")
    assert [store.has(chunk) for chunk in range(5)] == [False, False, True, False, False]
    assert store.missing_chunks() == [0, 1, 3, 4]
    assert image_of(store) == LAYER.index.block0() + bytes(LAYER.index.image_size - BLOCK)
    blocks = os.stat(store.directory / "image").st_blocks * 512
    assert blocks >= LAYER.index.image_size, "the space is taken up front"
    store.abandon()


@pytest.mark.parametrize("direct", [False, True])
def test_written_chunks_make_the_image_and_complete_it(packs: Path, database: Database, direct: bool) -> None:
    store = ChunkStore(packs, database).create(LAYER.index_data)
    put(store, 1, 0, direct=direct)
    assert store.missing_chunks() == [3, 4]
    with pytest.raises(ImgdistError, match="not complete"):
        store.complete()
    put(store, 3, 4, direct=direct)
    assert store.is_complete
    assert not store.present.clean
    store.complete()
    assert store.present.clean
    assert image_of(store) == LAYER.index.block0() + b"".join(LAYER.chunks)
    store.close()


def test_wrong_bytes_are_told(packs: Path, database: Database) -> None:
    store = ChunkStore(packs, database).create(LAYER.index_data)
    with pytest.raises(CorruptError, match="chunk 0 of pack"):
        store.verify(0, memoryview(LAYER.chunks[1]))
    store.abandon()


def test_creating_twice_gives_the_same_store(packs: Path, database: Database) -> None:
    chunks = ChunkStore(packs, database)
    store = chunks.create(LAYER.index_data)
    assert chunks.create(LAYER.index_data) is store
    assert chunks.get(LAYER.index.pack_id) is store
    chunks.close()


def test_kill_in_the_same_boot_keeps_every_marked_chunk(packs: Path, database: Database) -> None:
    store = ChunkStore(packs, database).create(LAYER.index_data)
    put(store, 0, 1)
    store.abandon()
    (again,) = ChunkStore(packs, database).recover()
    assert again.node == store.node
    assert again.missing_chunks() == [3, 4]
    again.abandon()


def test_an_unclean_reboot_keeps_only_what_hashes_right(packs: Path, database: Database) -> None:
    store = ChunkStore(packs, database).create(LAYER.index_data)
    put(store, 0, 1, 3)
    store.present.mark(store.index.start(4) // BLOCK, 1)  # half a chunk marked: the map page came, another did not
    os.pwrite(store.image_fd, b"torn", store.index.start(1) + 5000)
    os.pwrite(store.image_fd, b"torn", 1024)
    reboot(store, clean=False)
    chunks = ChunkStore(packs, database)
    other = chunks.create(make_index([LAYER.chunks[1], LAYER.chunks[0], bytes(BLOCK)]))
    other.abandon()
    again, other = sorted(chunks.recover(), key=lambda one: one.pack_id != LAYER.index.pack_id)
    assert not again.is_proven and chunks.twins(other) == [], "nothing is hashed at the start, nor copied from it"
    again.prove()
    assert again.is_proven and len(chunks.twins(other)) == 2
    other.abandon()
    assert again.missing_chunks() == [1, 4]
    assert again.present.boot_id == current_boot_id()
    assert not again.present.clean
    assert image_of(again)[:BLOCK] == LAYER.index.block0()
    put(again, 1, 4)
    assert image_of(again) == LAYER.index.block0() + b"".join(LAYER.chunks)
    again.abandon()


def test_nothing_is_copied_from_a_pack_that_is_being_removed(
    packs: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = ChunkStore(packs, database)
    going = chunks.create(LAYER.index_data)
    other = chunks.create(make_index([LAYER.chunks[1], LAYER.chunks[0], bytes(BLOCK)]))
    assert len(chunks.twins(other)) == 2
    before = chunks.stores()
    chunks.remove(going)
    monkeypatch.setattr(chunks, "stores", lambda: before)  # as they were listed a moment ago
    monkeypatch.setattr(database, "twins", lambda node: [Twin(0, going.node, 1)])
    assert chunks.twins(other) == []
    chunks.close()


def test_a_clean_stop_is_trusted_unread_and_then_unclean_again(packs: Path, database: Database) -> None:
    store = ChunkStore(packs, database).create(LAYER.index_data)
    put(store, 0, 1)
    os.pwrite(store.image_fd, b"would be found if it were hashed", store.index.start(1))
    reboot(store, clean=True)
    (again,) = ChunkStore(packs, database).recover()
    assert again.missing_chunks() == [3, 4]
    assert not again.present.clean, "bytes written from here on are not vouched for"
    assert again.present.boot_id == current_boot_id()
    again.abandon()


def test_a_complete_layer_stays_clean_over_reboots(packs: Path, database: Database) -> None:
    store = ChunkStore(packs, database).create(LAYER.index_data)
    put(store, 0, 1, 3, 4)
    store.complete()
    reboot(store, clean=False)
    (again,) = ChunkStore(packs, database).recover()
    assert again.is_complete
    assert again.present.clean
    again.close()


@pytest.mark.parametrize("damage", ["index", "present", "image", "no image", "no index", "other"])
def test_a_broken_pack_is_removed_and_can_be_made_again(packs: Path, database: Database, damage: str) -> None:
    store = ChunkStore(packs, database).create(LAYER.index_data)
    store.abandon()
    if damage == "other":
        (store.directory / "index").write_bytes(MadeLayer(seed=9).index_data)
    elif damage.startswith("no "):
        (store.directory / damage.removeprefix("no ")).unlink()
    else:
        os.truncate(store.directory / damage, 100)
    chunks = ChunkStore(packs, database)
    assert chunks.recover() == []
    assert list(packs.iterdir()) == []
    assert database.packs() == {}
    again = chunks.create(LAYER.index_data)
    assert again.node > store.node, "a view may still know the old number"
    chunks.close()


@pytest.mark.parametrize(("name", "offset"), [("present", 8), ("index", None)])
def test_a_pack_of_a_newer_release_is_left_alone(
    packs: Path, database: Database, name: str, offset: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    store = ChunkStore(packs, database).create(LAYER.index_data)
    store.abandon()
    file = store.directory / name
    content = bytearray(file.read_bytes())
    content[content.index(b"IDX") + 3 if offset is None else offset] += 1
    file.write_bytes(content)
    assert ChunkStore(packs, database).recover() == []
    assert file.read_bytes() == content
    assert "is of a newer release and is left alone" in caplog.text


def test_leftovers_are_cleared_and_strangers_left_alone(packs: Path, database: Database) -> None:
    for name in (".new-1", ".gone-2", "lost+found"):
        (packs / name).mkdir(parents=True)
    assert ChunkStore(packs, database).recover() == []
    assert [path.name for path in packs.iterdir()] == ["lost+found"]


def test_a_full_disk_leaves_nothing_behind(packs: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    chunks = ChunkStore(packs, database)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        chunks.create(LAYER.index_data)
    assert list(packs.iterdir()) == []
    monkeypatch.undo()
    assert chunks.create(LAYER.index_data).missing_chunks()
    chunks.close()


def test_removal_frees_everything(packs: Path, database: Database) -> None:
    chunks = ChunkStore(packs, database)
    descriptors = len(os.listdir("/proc/self/fd"))
    store = chunks.create(LAYER.index_data)
    chunks.remove(store)
    assert chunks.get(LAYER.index.pack_id) is None
    assert list(packs.iterdir()) == []
    assert database.packs() == {}
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with store.use() as usable:
        assert not usable


def test_a_stop_does_not_wait_for_hashing_nor_vouch_for_what_is_not_proven(packs: Path, database: Database) -> None:
    store = ChunkStore(packs, database).create(LAYER.index_data)
    put(store, 0, 1)
    reboot(store, clean=False)
    (again,) = ChunkStore(packs, database).recover()
    again.close()
    (third,) = ChunkStore(packs, database).recover()
    assert not third.present.clean and not third.is_proven
    third._image.retired = True
    with pytest.raises(TemporaryError, match="stopping"):
        third.prove()
    assert not third.is_proven
    third.abandon()


@pytest.mark.parametrize("restart", [False, True])
def test_after_a_failed_sync_the_disk_itself_is_read(
    packs: Path, database: Database, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    """Linux reports a write error once: the second sync succeeds over bytes that never came to the disk."""
    store = ChunkStore(packs, database).create(LAYER.index_data)
    put(store, 0, 1, 3, 4)
    real = os.fdatasync

    def failing(fd: int) -> None:
        monkeypatch.setattr(os, "fdatasync", real)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OSError, match="Input/output"):
        store.complete()
    os.pwrite(store.image_fd, b"lost", store.index.start(1) + 5000)  # what the disk has instead
    if restart:
        store.abandon()
        (store,) = ChunkStore(packs, database).recover()
    assert not store.is_proven
    with pytest.raises(ImgdistError, match="lost bytes"):
        store.complete()
    assert store.missing_chunks() == [1] and not store.present.clean
    put(store, 1)
    store.complete()
    assert store.present.clean
    store.close()


def test_a_pack_is_settled_once_and_one_that_is_clean_is_already(
    packs: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1])
    chunks = ChunkStore(packs, database)
    store, other = chunks.create(LAYER.index_data), chunks.create(MadeLayer(seed=9).index_data)
    LayerStore.settle([store])
    assert synced == [str(path) for path in (store.directory / "index", store.directory, packs)]
    LayerStore.settle([store])
    assert len(synced) == 3 and store.is_settled and not store.present.clean
    LayerStore.settle([store, other])
    assert synced[3:] == [str(path) for path in (other.directory / "index", other.directory, packs)]
    put(store, 0, 1, 3, 4)
    store.complete()
    assert len(synced) == 6 and store.present.clean
    chunks.remove(other)
    chunks.close()
    synced.clear()
    (again,) = ChunkStore(packs, database).recover()
    LayerStore.settle([again])
    assert not synced
    again.close()


def test_packs_are_settled_together_in_one_go(packs: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing disk is heard of, and what it did not take is settled the next time."""
    synced: list[str] = []

    def sync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        if len(synced) == 7:
            raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "fdatasync", sync)
    chunks = ChunkStore(packs, database)
    stores = [chunks.create(LAYER.index_data), chunks.create(MadeLayer(seed=9).index_data)]
    with pytest.raises(OSError, match="the disk is gone"):
        LayerStore.settle(stores)
    assert not any(store.is_settled for store in stores)
    LayerStore.settle(stores)
    names = [store.directory / name for store in stores for name in ("present", "index", "")]
    assert synced[7:] == [*map(str, names), str(packs)] and all(store.is_settled for store in stores)
    chunks.close()


def test_a_pack_keeps_its_node_number_without_the_database(packs: Path, tmp_path: Path) -> None:
    """Its mount, which outlives agent.db, is found by that number."""
    first = Database(tmp_path / "first.db")
    chunks = ChunkStore(packs, first)
    one, two = chunks.create(LAYER.index_data), chunks.create(MadeLayer(seed=9).index_data)
    nodes = {store.pack_id: store.node for store in (one, two)}
    chunks.remove(min(one, two, key=lambda store: store.node))
    chunks.close()
    first.close()
    second = Database(tmp_path / "second.db")
    chunks = ChunkStore(packs, second)
    (kept,) = chunks.recover()
    assert kept.node == nodes[kept.pack_id] == 3
    fresh = chunks.create(make_index([LAYER.chunks[1], bytes(BLOCK)]))
    assert fresh.node == 4
    chunks.renumber(kept)
    assert (kept.node, kept.name, (kept.directory / "node").read_text()) == (5, "5", "5")
    chunks.close()
    second.close()


def test_twins_name_the_other_store(packs: Path, database: Database) -> None:
    chunks = ChunkStore(packs, database)
    store = chunks.create(LAYER.index_data)
    other = chunks.create(make_index([LAYER.chunks[1], LAYER.chunks[0], bytes(BLOCK)]))
    assert sorted(chunks.twins(other), key=lambda twin: twin[0]) == [(0, store, 1), (1, store, 0)]
    chunks.close()


def test_bodies_are_kept_for_other_agents_and_go_with_the_swarm(packs: Path, database: Database) -> None:
    chunks = ChunkStore(packs, database, keep_frames=True)
    store = chunks.create(LAYER.index_data)
    assert store.frames is not None
    store.frames.append(1, *LAYER.encoded[1])
    chunks.close()
    again = ChunkStore(packs, database, keep_frames=True)
    (store,) = again.recover()
    assert store.frames is not None and store.frames.find(1) is not None and store.frames.find(0) is None
    again.close()
    alone = ChunkStore(packs, database)
    (store,) = alone.recover()
    assert store.frames is None and not (store.directory / "frames").exists()
    alone.close()


def test_a_disk_that_refuses_to_keep_bodies_costs_nothing_else(
    packs: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, boot_id: str) -> Frames:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("agent.chunkstore.Frames", refuse)
    chunks = ChunkStore(packs, database, keep_frames=True)
    store = chunks.create(LAYER.index_data)
    put(store, 0)
    assert store.frames is None and store.has(0)
    chunks.close()


def test_leftovers_are_cleared_but_nothing_that_is_being_made(packs: Path, database: Database) -> None:
    chunks = ChunkStore(packs, database)
    follower = IndexFollower()
    early = chunks.begin("sha256-" + "cd" * 32 + "-v0", follower)
    for name in (".new-x", ".gone-y", ".part-z"):
        (packs / name).mkdir()
        (packs / name / "image").write_bytes(bytes(8192))
    would = chunks.clear_leftovers(dry_run=True)
    assert sorted(name for name, _ in would) == [".gone-y", ".new-x", ".part-z"]
    assert all(size >= 8192 for _, size in would)
    assert chunks.clear_leftovers() == would and chunks.clear_leftovers() == []
    assert [path.name for path in packs.iterdir()] == [early.directory.name]
    chunks.discard(early)


def test_a_layer_that_finds_no_room_after_its_seal_may_try_again(
    packs: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came before the seal is not lost: room is made in between."""
    chunks = ChunkStore(packs, database)
    follower = IndexFollower()
    early = chunks.begin("sha256-" + "ab" * 32 + "-v0", follower)
    follower.feed(LAYER.index_data)
    early.grow()
    early.write(1, memoryview(LAYER.chunks[1]))
    create = PresentMap.create

    def full(*arguments: object) -> PresentMap:
        monkeypatch.setattr(PresentMap, "create", create)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(PresentMap, "create", full)
    with pytest.raises(OSError, match="full"):
        chunks.create(LAYER.index_data, early)
    store = chunks.create(LAYER.index_data, early)
    chunks.discard(early)
    assert store.has(1)
    store.close()


def _database_full(*_: object) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


@pytest.mark.parametrize("is_early", [False, True])
def test_a_disk_that_is_full_behind_the_image_leaves_no_pack_that_nobody_knows(
    packs: Path, database: Database, monkeypatch: pytest.MonkeyPatch, is_early: bool
) -> None:
    chunks = ChunkStore(packs, database)
    early = None
    if is_early:
        follower = IndexFollower()
        early = chunks.begin("sha256-" + "ab" * 32 + "-v0", follower)
        follower.feed(LAYER.index_data)
        early.grow()
        early.write(1, memoryview(LAYER.chunks[1]))
    with monkeypatch.context() as patch:
        patch.setattr(database, "node_of", _database_full)
        with pytest.raises(OSError, match=r"agent\.db") as caught:
            chunks.create(LAYER.index_data, early)
        assert is_full(caught.value)
    assert list(packs.iterdir()) == ([early.directory] if early is not None else [])
    store = chunks.create(LAYER.index_data, early)
    if early is not None:
        chunks.discard(early)
    assert list(packs.iterdir()) == [store.directory] and store.has(1) is is_early
    chunks.close()


def test_a_full_disk_costs_copies_and_neither_a_layer_nor_a_start(
    packs: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = ChunkStore(packs, database)
    gone = chunks.create(LAYER.index_data)
    for name in ("add_chunks", "forget"):
        monkeypatch.setattr(database, name, _database_full)
    chunks.remove(gone)
    store = chunks.create(make_index([LAYER.chunks[1], LAYER.chunks[0], bytes(BLOCK)]))
    chunks.close()
    (again,) = ChunkStore(packs, database).recover()
    assert again.pack_id == store.pack_id
    again.close()


def test_a_pack_goes_from_a_disk_that_has_no_room_to_forget_it(
    packs: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = ChunkStore(packs, database)
    store = chunks.create(LAYER.index_data)

    def full(node: int) -> None:
        assert not store.directory.exists(), "space first"
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(database, "forget", full)
    chunks.remove(store)
    assert chunks.stores() == [] and list(packs.iterdir()) == []
    monkeypatch.undo()
    ChunkStore(packs, database).recover()
    assert database.packs() == {}

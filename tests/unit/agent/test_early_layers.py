"""Layers taken while they are converted: when one is begun, what is fetched of it, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_layers import FakeView, MadeLayer, MemorySource
from prometheus_client import CollectorRegistry

import agent.early
from agent.chunkstore import ChunkStore
from agent.database import Database
from agent.early import EarlyLayers
from agent.earlystore import EarlyStore
from agent.imagefile import ImageFile
from agent.transfer.transfers import Transfers
from imgdist.errors import NotFoundError, NotYetError, TemporaryError
from imgdist.pack.index import Index, IndexFollower
from imgdist.pack.kinds import early_name
from imgdist.pack.records import offset_of

LAYER = MadeLayer([4, 64, 64, 1, 30, 2], zero=[3])
DIGEST = "sha256:" + "ab" * 32
NAME = early_name(DIGEST)
CHUNKS = len(LAYER.chunks)


class Stream:
    """The index of a layer as it comes."""

    def __init__(self, layer: MadeLayer = LAYER) -> None:
        self.follower = IndexFollower()
        self._data, self._fed = layer.index_data, 0

    def feed(self, chunks: int) -> IndexFollower:
        """So many chunks are known from now on."""
        end = offset_of(self._data, 1 + chunks)
        self.follower.feed(self._data[self._fed : end])
        assert end is not None
        self._fed = end
        return self.follower

    def seal(self) -> IndexFollower:
        self.follower.feed(self._data[self._fed :])
        return self.follower


class Swarm:
    """Takes notes."""

    def __init__(self) -> None:
        self.shown: list[EarlyStore] = []

    def begin(self, early: EarlyStore) -> None:
        self.shown.append(early)

    def end(self, early: EarlyStore) -> None:
        self.shown.remove(early)


class Tasks:
    """Stands for the daemon's task group, which ends after everything here."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def create_task(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))


class Node:
    """Real stores and transfers; a supernode in memory that has the layer under both its names."""

    def __init__(self, root: Path) -> None:
        self.packs = root / "packs"
        self.database = Database(root / "agent.db")
        self.chunks = ChunkStore(self.packs, self.database, keep_frames=True)
        self.supernode = MemorySource(LAYER)
        self.supernode.layers[NAME] = LAYER
        self.complete = threading.Event()
        self.transfers = Transfers(
            FakeView(),
            [self.supernode],
            twins=self.chunks.twins,
            on_layer_complete=lambda store: self.complete.set(),
            registry=CollectorRegistry(),
        )
        self.transfers.join(MemorySource(name="a neighbour", kind="peer"))
        self.landed: set[int] = set()
        self._came = threading.Condition()
        self.transfers.listen(self._here)
        self.swarm = Swarm()
        self.early = EarlyLayers(self.chunks, self.transfers, Tasks(), swarm=self.swarm)  # type: ignore[arg-type]

    def _here(self, node: int, chunk: int) -> None:
        with self._came:
            self.landed.add(chunk)
            self._came.notify_all()

    async def came(self, *chunks: int) -> None:
        def wait() -> bool:
            with self._came:
                return self._came.wait_for(lambda: self.landed >= set(chunks), 10)

        assert await asyncio.to_thread(wait), self.landed

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.packs.iterdir())

    def stop(self) -> None:
        self.transfers.stop()
        self.chunks.close()
        self.database.close()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(agent.early, "BEGIN_S", 0.0)
    monkeypatch.setattr(agent.early, "GROW_S", 0.0)
    made = Node(tmp_path)
    yield made
    made.stop()


async def test_what_came_before_the_seal_is_not_fetched_again(node: Node) -> None:
    stream = Stream()
    async with node.early.layer(DIGEST) as layer:
        layer.progress(stream.feed(2))
        await node.came(0, 1)
        early = node.early.of(DIGEST)
        assert early is not None and node.swarm.shown == [early]
        assert early.received["supernode"] > 0 and early.size_bytes == 68 * 4096
        assert {pack for pack, _, _ in node.supernode.asked} == {NAME}
        layer.progress(stream.feed(5))
        await node.came(2, 4)
        layer.progress(stream.seal())
        assert node.supernode.asked_chunks.count(5) == 0
        assert await layer.hand_over() is early
        store = node.chunks.create(LAYER.index_data, early)
    assert node.swarm.shown == [] and node.early.of(DIGEST) is None
    assert node.left == [LAYER.name]
    assert store.missing_chunks() == [5] and store.received == early.received
    node.transfers.add(store)
    node.transfers.fill(store)
    assert await asyncio.to_thread(node.complete.wait, 10)
    assert sorted(node.supernode.asked_chunks) == [0, 1, 2, 4, 5], "nothing comes twice"
    assert (store.directory / "image").read_bytes() == LAYER.index.block0() + b"".join(LAYER.chunks)
    assert store.frames is not None and all(store.frames.find(chunk) for chunk in (0, 1, 2, 4, 5))


async def test_an_index_that_comes_at_once_makes_no_store(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.early, "BEGIN_S", 3600.0)
    monkeypatch.setattr(node.chunks, "begin", None)
    stream = Stream()
    async with node.early.layer(DIGEST) as layer:
        for count in range(CHUNKS):
            layer.progress(stream.feed(count))
            await asyncio.sleep(0)
        layer.progress(stream.seal())
        assert await layer.hand_over() is None
    assert node.left == [] and node.supernode.asked == []


async def test_nothing_is_begun_before_the_first_chunk_nor_after_the_seal(node: Node) -> None:
    stream = Stream()
    async with node.early.layer(DIGEST) as layer:
        layer.progress(stream.feed(0))
        layer.progress(stream.seal())
        assert await layer.hand_over() is None
    assert node.left == []


async def test_a_node_that_does_not_fill_takes_nothing_early(node: Node) -> None:
    idle: Any = EarlyLayers(node.chunks, node.transfers, Tasks(), enabled=False)  # type: ignore[arg-type]
    async with idle.layer(DIGEST) as layer:
        layer.progress(Stream().feed(3))
        assert await layer.hand_over() is None
    assert node.left == []


@pytest.mark.parametrize("error", [TemporaryError("the supernode died"), NotFoundError("forgotten")])
async def test_a_conversion_that_fails_leaves_nothing(node: Node, error: Exception) -> None:
    with pytest.raises(type(error)):
        async with node.early.layer(DIGEST) as layer:
            layer.progress(Stream().feed(3))
            await node.came(0, 1, 2)
            assert node.left == [f".part-{NAME}"]
            raise error
    assert node.left == [] and node.swarm.shown == []
    assert node.transfers.drain(0) == []


async def test_a_cancelled_one_waits_for_nothing_and_goes_with_the_node(node: Node) -> None:
    reached = asyncio.Event()
    held = threading.Event()
    node.supernode.before = lambda numbers, priority: require(held.wait(10))

    async def follow() -> None:
        async with node.early.layer(DIGEST) as layer:
            layer.progress(Stream().feed(3))
            await until(lambda: node.supernode.asked)
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(follow())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert node.left == [f".part-{NAME}"]
    held.set()
    node.transfers.stop()
    node.chunks.close()
    assert node.left == []


async def test_a_full_disk_ends_it_and_the_pull_goes_on(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(image: ImageFile, size_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    stream = Stream()
    async with node.early.layer(DIGEST) as layer:
        layer.progress(stream.feed(2))
        await node.came(0, 1)
        monkeypatch.setattr(ImageFile, "reserve", full)
        monkeypatch.setattr(node.early.of(DIGEST), "_reserved", 0)
        layer.progress(stream.feed(3))
        await until(lambda: node.left == [] and node.swarm.shown == [])
        layer.progress(stream.feed(4))
        assert await layer.hand_over() is None
    assert node.left == []


async def test_another_supernodes_index_begins_anew(node: Node) -> None:
    async with node.early.layer(DIGEST) as layer:
        layer.progress(Stream().feed(4))
        await node.came(0, 1, 2)
        before = node.early.of(DIGEST)
        layer.progress(Stream().feed(1))
        await until(lambda: node.early.of(DIGEST) not in (None, before))
        after = node.early.of(DIGEST)
        assert after is not None and node.swarm.shown == [after]
        await until(lambda: after.has(0))
        assert node.left == [f".part-{NAME}"] and after.index.chunk_count == 1


async def test_a_supernode_that_has_it_not_yet_is_asked_again_soon(node: Node) -> None:
    """Ten refusals in a row would otherwise make a pause of ten seconds."""
    refusals = 10

    def not_yet(numbers: tuple[int, ...], priority: Any) -> None:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise NotFoundError("not there yet")

    node.supernode.before = not_yet
    async with node.early.layer(DIGEST) as layer:
        started = asyncio.get_running_loop().time()
        layer.progress(Stream().feed(2))
        await node.came(0, 1)
        assert asyncio.get_running_loop().time() - started < 3.0


async def test_a_layer_of_which_others_just_got_all_keeps_no_other_layer_waiting(node: Node) -> None:
    """Else each node takes the first of several layers that are converted at once, and nothing of the rest."""
    first, second = early_name("sha256:" + "11" * 32), early_name("sha256:" + "22" * 32)
    node.supernode.layers[second] = LAYER
    refused = 0

    def before(numbers: tuple[int, ...], priority: Any) -> None:
        nonlocal refused
        if node.supernode.asked[-1][0] == first:
            refused += 1
            raise NotYetError("others got these only just now", 3600.0)

    node.supernode.before = before
    member = Transfers(FakeView(), [node.supernode], swarm=True, registry=CollectorRegistry())
    try:
        early = EarlyLayers(node.chunks, member, Tasks())  # type: ignore[arg-type]
        async with early.layer("sha256:" + "11" * 32) as one, early.layer("sha256:" + "22" * 32) as two:
            one.progress(Stream().feed(5))
            await until(lambda: refused)
            two.progress(Stream().feed(5))
            await until(lambda: (store := early.of("sha256:" + "22" * 32)) and all(map(store.has, range(5))))
            assert refused == 1
    finally:
        member.stop()


async def test_a_stop_does_not_wait_for_layers_without_a_seal(node: Node) -> None:
    async with node.early.layer(DIGEST) as layer:
        layer.progress(Stream().feed(2))
        await node.came(0, 1)
        assert await asyncio.to_thread(node.transfers.drain, 60.0) == []


async def test_what_this_disk_has_is_copied(node: Node) -> None:
    first = node.chunks.create(LAYER.index_data)
    node.transfers.add(first)
    node.transfers.fill(first)
    assert await asyncio.to_thread(node.complete.wait, 10)
    asked = len(node.supernode.asked)
    next_version = MadeLayer([4, 64, 64, 1, 30, 3], zero=[3])
    assert next_version.chunks[:5] == LAYER.chunks[:5]
    node.landed.clear()
    async with node.early.layer(DIGEST) as layer:
        layer.progress(Stream(next_version).feed(5))
        await node.came(0, 1, 2, 4)
        early = node.early.of(DIGEST)
        assert early is not None and early.received.keys() == {"dedup"}
    assert len(node.supernode.asked) == asked


async def test_wrong_bytes_are_not_taken(node: Node) -> None:
    lies = 2

    def spoil(number: int, body: bytes) -> bytes:
        nonlocal lies
        lies -= 1
        return body[:-1] + bytes([body[-1] ^ 1]) if lies >= 0 else body

    node.supernode.spoil = spoil
    async with node.early.layer(DIGEST) as layer:
        layer.progress(Stream().feed(3))
        await node.came(0, 1, 2)
        early = await layer.hand_over()
        assert early is not None
        store = node.chunks.create(LAYER.index_data, early)
        assert bytes_of(store.directory, LAYER.index, 3) == b"".join(LAYER.chunks[:3])
    assert lies < 0


async def test_an_index_that_stands_still_is_taken_all_the_same(node: Node) -> None:
    """As for a node that comes later: it learns all there is so far at once, and nothing more for a while."""
    async with node.early.layer(DIGEST) as layer:
        layer.progress(Stream().feed(5))
        await node.came(0, 1, 2, 4)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until it holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - whatever a test looks at, not one event
            await asyncio.sleep(0.002)


def bytes_of(directory: Path, index: Index, chunks: int) -> bytes:
    return (directory / "image").read_bytes()[index.start(0) : index.start(chunks)]


def require(value: bool) -> None:
    assert value

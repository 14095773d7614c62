"""Transfers with real stores and threads: bytes land verified, whoever lies, fails or comes late."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from made_layers import FailingSource, FakeView, MadeLayer, MemorySource, make_index
from prometheus_client import CollectorRegistry
from stored_node import StoredNode

from agent.chunkstore import ChunkStore
from agent.database import Database
from agent.layerstore import LayerStore
from agent.transfer.gate import QUIET_S
from agent.transfer.sources import ChunkSource
from agent.transfer.transfers import Transfers
from agent.transfer.urgent import NOW_SLOTS
from imgdist.demo.processes import wait_until
from imgdist.errors import ImgdistError, NotFoundError, ProtocolError, TemporaryError
from imgdist.wire.messages import Priority

LAYER = MadeLayer([4, 64, 64, 1, 30, 2], zero=[3])
START = [LAYER.index.start(chunk) for chunk in range(6)]
END = [LAYER.index.start(chunk) + LAYER.index.size(chunk) for chunk in range(6)]


class Node(StoredNode):
    """One node's transfers, its stores, a fake view, and what was reported complete."""

    def __init__(self, root: Path, sources: list[ChunkSource], slots: int = 4, spared: int = 0) -> None:
        super().__init__(root, slots=slots, spared=spared)
        self.completed: dict[int, threading.Event] = {}
        self.transfers = Transfers(
            self.view,
            sources,
            twins=self.chunks.twins,
            on_layer_complete=lambda store: self.completed[store.node].set(),
            registry=self.registry,
        )

    def add(self, layer: MadeLayer) -> LayerStore:
        return self.add_index(layer.index_data)

    def add_index(self, index_data: bytes) -> LayerStore:
        store = self.chunks.create(index_data)
        self.completed[store.node] = threading.Event()
        self.transfers.add(store)
        return store


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def make(*sources: ChunkSource, slots: int = 4, spared: int = 0) -> Node:
        (tmp_path / str(len(nodes))).mkdir()
        nodes.append(Node(tmp_path / str(len(nodes)), list(sources), slots, spared))
        return nodes[-1]

    yield make
    for node in nodes:
        node.stop()


def require_true(value: bool) -> None:
    assert value


def image_of(store: LayerStore) -> bytes:
    return (store.directory / "image").read_bytes()


WHOLE = LAYER.index.block0() + b"".join(LAYER.chunks)
MakeNode = Callable[..., Node]


def test_a_miss_is_answered_from_the_ring_then_written(make_node: MakeNode) -> None:
    source = MemorySource(LAYER)
    node = make_node(source)
    store = node.add(LAYER)
    node.transfers.miss(2, START[1] + 8192, 4096)
    node.view.wait(("written", 2, START[1], END[1]))
    assert node.view.events[0] == ("ready", 2, START[1], END[1])
    assert node.view.bytes[2, START[1]] == LAYER.chunks[1]
    assert store.has(1)
    assert (LAYER.name, (1,), Priority.DEMAND) in source.asked
    assert node.figure("imgdist_chunk_bytes_total", source="supernode") >= len(LAYER.encoded[1][1])
    assert node.figure("imgdist_read_wait_seconds_count") == 1


def test_a_thread_that_may_linger_fetches_what_it_is_told_of(make_node: MakeNode) -> None:
    """Another miss meanwhile is carried out by another thread, and so is what else is due."""
    source = MemorySource(LAYER)
    node = make_node(source, spared=1)
    store = node.add(LAYER)
    threads: dict[int, str] = {}

    def before(numbers: tuple[int, ...], priority: Priority) -> None:
        threads[numbers[0]] = threading.current_thread().name
        if numbers == (1,):
            node.transfers.miss(2, START[0], 4096)
            node.view.wait(("written", 2, START[0], END[0]))
            wait_until(lambda: store.has(2), "the chunk behind it, fetched ahead: that was caught up with before")

    source.before = before
    node.transfers.miss(2, START[1], 4096)
    assert ("written", 2, START[1], END[1]) in node.view.events
    assert threads[1] == threading.current_thread().name
    assert threads[0].startswith("demand")
    assert threads[2].startswith("bulk")


def test_a_thread_that_may_linger_is_let_go_when_there_is_nothing_to_fetch(make_node: MakeNode) -> None:
    node = make_node(FailingSource(TemporaryError("down")), spared=1)
    node.add(LAYER)
    for start in (START[3], START[1], START[1]):  # zeros; a source that fails; the same while its layer rests
        node.transfers.miss(2, start, 4096)
    assert node.view.linger()


def test_without_a_free_ring_buffer_the_image_answers(make_node: MakeNode) -> None:
    node = make_node(MemorySource(LAYER), slots=0)
    node.add(LAYER)
    node.transfers.miss(2, START[1], 4096)
    node.view.wait(("written", 2, START[1], END[1]))
    assert all(event[0] == "written" for event in node.view.events)


def test_a_miss_for_what_is_here_and_for_an_unknown_layer(make_node: MakeNode) -> None:
    node = make_node(MemorySource(LAYER))
    node.add(LAYER)
    node.transfers.miss(2, START[3], 4096)
    node.transfers.miss(2, 0, 4096)
    node.transfers.miss(7, 0, 4096)
    assert node.view.events == [
        ("written", 2, START[3], START[3] + 4096),
        ("written", 2, 0, 4096),
        ("fail", 7, 0, 4096),
    ]


def test_fill_completes_and_makes_durable(make_node: MakeNode) -> None:
    source = MemorySource(LAYER)
    node = make_node(source)
    store = node.add(LAYER)
    node.transfers.fill(store)
    assert node.completed[2].wait(10)
    assert image_of(store) == WHOLE
    assert store.present.clean
    assert sorted(source.asked_chunks) == [0, 1, 2, 4, 5]
    assert node.view.events == [], "nobody waited"
    node.transfers.fill(store)
    assert len(source.asked) == 1, "five chunks in one run"


def test_fill_that_was_held_by_a_miss_begins_by_itself(make_node: MakeNode) -> None:
    node = make_node(MemorySource(LAYER))
    store = node.add(LAYER)
    node.transfers.miss(2, START[1], 4096)
    node.view.wait(("written", 2, START[1], END[1]))
    node.transfers.fill(store)
    assert node.completed[2].wait(10)


def test_a_cancelled_job_withdraws_what_is_not_in_flight(make_node: MakeNode) -> None:
    layer = MadeLayer([1] * (NOW_SLOTS + 3))
    source = MemorySource(layer)
    go = threading.Event()
    source.before = lambda numbers, priority: require_true(go.wait(10))
    node = make_node(source)
    store = node.add(layer)
    kept = [node.transfers.fetch_now(store, [chunk]) for chunk in range(NOW_SLOTS)]
    kept.append(node.transfers.fetch_now(store, [NOW_SLOTS]))
    node.transfers.fetch_now(store, [NOW_SLOTS, NOW_SLOTS + 1]).cancel()
    go.set()
    for future in kept:
        future.result(10)
    assert store.missing_chunks() == [NOW_SLOTS + 1, NOW_SLOTS + 2]


def test_a_layer_that_is_whole_when_added_is_reported(make_node: MakeNode) -> None:
    node = make_node(MemorySource(LAYER))
    store = node.add(LAYER)
    node.transfers.fetch_now(store, range(6)).result(10)
    assert node.completed[2].wait(10)
    node.completed[2].clear()
    node.transfers.remove(2)
    node.transfers.add(store)
    assert node.completed[2].wait(10)


def test_fetch_now_ends_when_all_are_here(make_node: MakeNode) -> None:
    node = make_node(MemorySource(LAYER))
    store = node.add(LAYER)
    node.transfers.fetch_now(store, [5, 0]).result(10)
    assert store.missing_chunks() == [1, 2, 4]
    node.transfers.fetch_now(store, [5, 3]).result(0)


def test_trace_goes_in_its_order(make_node: MakeNode) -> None:
    source = MemorySource(LAYER)
    node = make_node(source)
    store = node.add(LAYER)
    node.transfers.trace([(store, chunk) for chunk in (4, 0, 2)])
    node.transfers.fetch_now(store, [4, 0, 2]).result(10)
    assert source.asked == [(LAYER.name, (4, 0, 2), Priority.TRACE)]


def test_a_miss_never_repeats_what_is_in_flight(make_node: MakeNode) -> None:
    source = MemorySource(LAYER)
    asked, go = threading.Event(), threading.Event()

    def hold(numbers: tuple[int, ...], priority: Priority) -> None:
        asked.set()
        assert go.wait(10)

    source.before = hold
    node = make_node(source)
    store = node.add(LAYER)
    node.transfers.trace([(store, 1), (store, 2)])
    assert asked.wait(10)
    node.transfers.miss(2, START[2], 4096)
    go.set()
    node.view.wait(("written", 2, START[2], END[2]))
    assert ("ready", 2, START[2], END[2]) in node.view.events, "who waits is answered first, whoever asked"
    assert source.asked_chunks == [1, 2]


def test_a_liar_is_asked_last_and_its_bytes_never_seen(make_node: MakeNode) -> None:
    liar, honest = MemorySource(LAYER, name="liar"), MemorySource(LAYER, name="honest")
    liar.spoil = lambda number, body: flipped(body)
    node = make_node(liar, honest)
    store = node.add(LAYER)
    node.transfers.fetch_now(store, [0, 1, 2]).result(10)
    rejected = (
        node.figure("imgdist_chunk_rejected_total", source="supernode", reason=why) for why in ("digest", "protocol")
    )
    assert sum(rejected) == 3
    asked = len(liar.asked)
    node.transfers.fetch_now(store, range(6)).result(10)
    assert len(liar.asked) == asked, "quarantined"
    assert image_of(store) == WHOLE


def flipped(body: bytes) -> bytes:
    return bytes([body[0] ^ 1]) + body[1:]


def test_a_chunk_that_is_rotten_at_the_only_source_costs_nothing_else(make_node: MakeNode) -> None:
    """It lies in the middle of a run, and stays rotten; its neighbours and another layer do not wait for it."""
    other = MadeLayer([2, 2], seed=4)
    source = MemorySource(LAYER, other)
    source.spoil = lambda number, body: flipped(body) if body == LAYER.encoded[1][1] else body
    node = make_node(source)
    rotten, healthy = node.add(LAYER), node.add(other)
    with pytest.raises(TemporaryError, match="in time"):
        node.transfers.fetch_now(rotten, [0, 1, 2, 4, 5], deadline_s=0.5).result(10)
    assert rotten.missing_chunks() == [1]
    node.transfers.fill(rotten)
    for chunk in (0, 1):
        node.transfers.fetch_now(healthy, [chunk], deadline_s=0.5).result(10)
    source.spoil = lambda number, body: body
    node.transfers.miss(rotten.node, START[1], 4096)
    node.view.wait(("written", rotten.node, START[1], END[1]), 5)


def test_of_a_broken_answer_only_the_chunk_where_it_broke_is_to_blame(make_node: MakeNode) -> None:
    source = MemorySource(LAYER)

    def break_at_two(number: int, body: bytes) -> bytes:
        if number == 2:
            raise ProtocolError("expected chunk 2, got nonsense")
        return body

    source.spoil = break_at_two
    node = make_node(source)
    store = node.add(LAYER)
    with pytest.raises(TemporaryError, match="in time"):
        node.transfers.fetch_now(store, [0, 1, 2, 4, 5], deadline_s=0.5).result(10)
    assert store.missing_chunks() == [2]
    assert node.figure("imgdist_chunk_rejected_total", source="supernode", reason="protocol") >= 1


def test_the_only_source_may_err_once(make_node: MakeNode) -> None:
    source = MemorySource(LAYER)
    spoiled: list[int] = []

    def flip_once(number: int, body: bytes) -> bytes:
        if spoiled:
            return body
        spoiled.append(number)
        return bytes([body[0] ^ 1]) + body[1:]

    source.spoil = flip_once
    node = make_node(source)
    node.add(LAYER)
    node.transfers.miss(2, START[1], 4096)
    node.view.wait(("written", 2, START[1], END[1]))
    assert node.view.bytes[2, START[1]] == LAYER.chunks[1]


def test_another_source_takes_over_what_the_first_lacks(make_node: MakeNode) -> None:
    empty, gone = MemorySource(name="empty"), FailingSource(TemporaryError("refused"), LAYER)
    full = MemorySource(LAYER, name="full")
    node = make_node(empty, gone, full)
    store = node.add(LAYER)
    node.transfers.fetch_now(store, range(6)).result(10)
    assert image_of(store) == WHOLE
    assert empty.asked
    assert gone.asked


def test_a_source_without_this_pack_is_still_asked_first_for_others(make_node: MakeNode) -> None:
    other = MadeLayer([2, 2], seed=4)
    first, second = MemorySource(other, name="first"), MemorySource(LAYER, other, name="second")
    node = make_node(first, second)
    store, other_store = node.add(LAYER), node.add(other)
    node.transfers.fetch_now(store, [1]).result(10)
    node.transfers.fetch_now(other_store, [0]).result(10)
    assert [name for name, _, _ in first.asked] == [LAYER.name, other.name]
    assert [name for name, _, _ in second.asked] == [LAYER.name]


def test_a_source_that_returns_heals_readers_without_being_told(make_node: MakeNode) -> None:
    source = FailingSource(TemporaryError("refused"), LAYER)
    node = make_node(source)
    store = node.add(LAYER)
    node.transfers.miss(2, START[1], 4096)
    while len(source.asked) < 3:
        threading.Event().wait(0.01)
    source.error = None
    node.view.wait(("written", 2, START[1], END[1]), 5)
    assert store.has(1)


def test_a_source_that_was_away_is_looked_after_while_a_reader_waits(make_node: MakeNode) -> None:
    """Its request hangs: the probe that finds it back has that asked again."""
    source = MemorySource(LAYER)
    hanging, renewed = threading.Event(), threading.Event()

    def hang(numbers: tuple[int, ...], priority: Priority) -> None:
        if not renewed.is_set():
            hanging.set()
            assert renewed.wait(20)

    source.before, source.renew = hang, renewed.set  # type: ignore[method-assign]
    source.gone = TemporaryError("no answer")
    node = make_node(source)
    node.add(LAYER)
    node.transfers.miss(2, START[1], 4096)
    assert hanging.wait(5)
    while source.probed < 2:
        threading.Event().wait(0.01)
    assert not renewed.is_set()
    source.gone = None
    node.view.wait(("written", 2, START[1], END[1]), 1)


def test_a_slow_source_is_not_cut(make_node: MakeNode) -> None:
    source = MemorySource(LAYER)
    go_on = threading.Event()
    source.before = lambda numbers, priority: require_true(go_on.wait(20))
    node = make_node(source)
    node.add(LAYER)
    node.transfers.miss(2, START[1], 4096)
    while not source.probed:
        threading.Event().wait(0.01)
    go_on.set()
    node.view.wait(("written", 2, START[1], END[1]), 5)
    assert not source.renewed and source.probed == 1


def test_a_node_where_nobody_waits_looks_after_nobody(make_node: MakeNode) -> None:
    source = FailingSource(TemporaryError("refused"), LAYER)
    node = make_node(source)
    store = node.add(LAYER)
    node.transfers.fill(store)
    while len(source.asked) < 3:
        threading.Event().wait(0.01)
    assert not source.probed


def test_a_read_that_failed_is_explained(make_node: MakeNode, caplog: pytest.LogCaptureFixture) -> None:
    source = FailingSource(TemporaryError("connection refused"), LAYER, name="http://there")
    node = make_node(source)
    node.add(LAYER)
    node.transfers.miss(2, START[1], 4096)
    while len(source.asked) < 2:
        threading.Event().wait(0.01)
    for _ in range(2):
        node.transfers.lapsed(2, START[1], 4096, 60.1)
    node.transfers.lapsed(77, 0, 4096, 60.1)  # a layer that has gone
    (line,) = [record.getMessage() for record in caplog.records if "EIO" in record.getMessage()]
    assert line.startswith(f"layer {LAYER.name}: 4096 bytes at {START[1]}: no bytes after 60.1 s, EIO; chunk 1: ")
    assert "supernode http://there failed " in line and line.endswith("ago: connection refused")
    assert node.figure("imgdist_read_wait_seconds_count") == 2


def test_no_source_at_all_ends_a_job_at_its_deadline(make_node: MakeNode) -> None:
    node = make_node(FailingSource(TemporaryError("refused"), LAYER))
    store = node.add(LAYER)
    with pytest.raises(TemporaryError, match="in time"):
        node.transfers.fetch_now(store, [1], deadline_s=0.3).result(10)


def test_removal_ends_jobs_and_frees_the_store(make_node: MakeNode) -> None:
    node = make_node(FailingSource(TemporaryError("refused"), LAYER))
    store = node.add(LAYER)
    waiting: Future[None] = node.transfers.fetch_now(store, [1])
    node.transfers.remove(2)
    with pytest.raises(NotFoundError, match="removed"):
        waiting.result(10)
    node.chunks.remove(store)
    with pytest.raises(NotFoundError):
        node.transfers.fetch_now(store, [1])


def whole_but_not_on_disk(node: Node, monkeypatch: pytest.MonkeyPatch) -> LayerStore:
    """A layer whose sync failed when its last chunk was in, and with it the bytes of chunk 1 were lost."""
    real, failed = os.fdatasync, threading.Event()

    def failing(fd: int) -> None:
        monkeypatch.setattr(os, "fdatasync", real)
        failed.set()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    store = node.add(LAYER)
    node.transfers.fill(store)
    assert failed.wait(10)
    with store._syncing:  # until the thread that completes it has done with it
        assert store.is_complete and not store.is_proven
    os.pwrite(store.image_fd, b"lost", START[1] + 5000)
    return store


def test_a_layer_that_is_whole_no_more_is_filled_again(make_node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MemorySource(LAYER)
    node = make_node(source)
    store = whole_but_not_on_disk(node, monkeypatch)
    node.transfers.remove(2)
    node.transfers.add(store)
    assert node.completed[2].wait(10)
    assert image_of(store) == WHOLE and store.present.clean
    assert source.asked[1:] == [(LAYER.name, (1,), Priority.FILL)]


def test_a_reader_of_lost_bytes_gets_them_before_anybody_told_the_transfers(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node(MemorySource(LAYER))
    store = whole_but_not_on_disk(node, monkeypatch)
    with pytest.raises(ImgdistError, match="lost bytes"):
        store.complete()  # as a switch does
    node.transfers.miss(2, START[1], 4096)
    node.view.wait(("written", 2, START[1], END[1]))
    assert [event[0] for event in node.view.events] == ["ready", "written"]
    assert node.completed[2].wait(10), "and so it is whole again"


def test_adding_a_layer_again_tells_what_its_store_lost(make_node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    node = make_node(MemorySource(LAYER))
    store = whole_but_not_on_disk(node, monkeypatch)
    with pytest.raises(ImgdistError, match="lost bytes"):
        store.complete()
    node.transfers.add(store)
    node.transfers.fetch_now(store, [1]).result(10)
    assert image_of(store) == WHOLE


def test_what_another_pack_has_is_copied_not_fetched(make_node: MakeNode) -> None:
    shared = make_index([LAYER.chunks[2], LAYER.chunks[4], b"own " * 1024])
    source = MemorySource(LAYER)
    node = make_node(source)
    store = node.add(LAYER)
    other = node.add_index(shared)
    node.transfers.fetch_now(store, range(6)).result(10)
    node.transfers.miss(other.node, other.index.start(0), 4096)
    node.view.wait(("written", other.node, other.index.start(0), other.index.start(0) + 64 * 4096))
    node.transfers.fetch_now(other, [1]).result(10)
    assert other.missing_chunks() == [2]
    assert node.figure("imgdist_chunk_bytes_total", source="dedup") == len(LAYER.chunks[2] + LAYER.chunks[4])


def test_a_rotten_copy_is_not_taken(make_node: MakeNode) -> None:
    source = MemorySource(LAYER)
    node = make_node(source)
    store = node.add(LAYER)
    node.transfers.fetch_now(store, range(6)).result(10)
    (store.directory / "image").open("r+b").close()
    with (store.directory / "image").open("r+b") as image:
        image.seek(START[2] + 100)
        image.write(b"rot")
    twin_layer = MadeLayer([1], seed=5)
    twin_index = make_index([LAYER.chunks[2], twin_layer.chunks[0]])
    second = MadeLayer([1])
    second.encoded = [LAYER.encoded[2], twin_layer.encoded[0]]
    twin = node.add_index(twin_index)
    source.layers[twin.pack_id.hex()] = second
    node.transfers.fetch_now(twin, [0]).result(10)
    assert (twin.pack_id.hex(), (0,), Priority.DEMAND) in source.asked
    assert LAYER.chunks[2] in image_of(twin)


def test_a_copy_that_cannot_be_read_is_fetched_and_not_tried_again(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = make_index([LAYER.chunks[2], b"own " * 1024])
    second = MadeLayer([1])
    second.encoded = [LAYER.encoded[2]]
    source = MemorySource(LAYER)
    node = make_node(source)
    store = node.add(LAYER)
    node.transfers.fetch_now(store, range(6)).result(10)
    tried: list[int] = []

    def fail(chunk: int, out: memoryview) -> None:
        tried.append(chunk)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(store, "read_into", fail)
    twin = node.add_index(shared)
    with pytest.raises(TemporaryError):
        node.transfers.fetch_now(twin, [0], deadline_s=0.3).result(10)
    source.layers[twin.pack_id.hex()] = second
    node.transfers.fetch_now(twin, [0], deadline_s=5).result(10)
    assert tried == [2]
    assert LAYER.chunks[2] in image_of(twin)


@pytest.mark.parametrize("what", ["a first touch", "a layer asked for"])
def test_what_starts_holds_fill_though_nothing_misses(make_node: MakeNode, what: str) -> None:
    node = make_node(MemorySource(LAYER))
    store = node.add(LAYER)
    node.transfers.touched([])
    touched = time.monotonic()
    if what == "a first touch":
        node.transfers.touched([(store.node, 1, 1)])
    else:
        node.transfers.starting()
    node.transfers.fill(store)
    assert node.completed[store.node].wait(10)
    assert time.monotonic() - touched >= QUIET_S - 0.05


def test_drain_fills_everything_or_names_what_is_left(make_node: MakeNode) -> None:
    other = MadeLayer([3, 3], seed=8)
    node = make_node(MemorySource(LAYER))
    store = node.add(LAYER)
    left = node.add(other)
    assert node.transfers.drain(1.0) == [left.node]
    assert store.is_complete


def test_stop_cuts_what_hangs(make_node: MakeNode) -> None:
    source = MemorySource(LAYER)

    def hang(numbers: tuple[int, ...], priority: Priority) -> None:
        source.closed.wait(30)
        raise TemporaryError("closed")

    source.before = hang
    node = make_node(source)
    store = node.add(LAYER)
    waiting = node.transfers.fetch_now(store, [1])
    node.transfers.stop()
    assert source.closed.is_set()
    with pytest.raises(TemporaryError, match="stopping"):
        waiting.result(0)


def test_a_pack_that_a_supernode_does_not_have_is_told(tmp_path: Path) -> None:
    lost: list[str] = []
    database = Database(tmp_path / "agent.db")
    chunks = ChunkStore(tmp_path / "packs", database)
    transfers = Transfers(FakeView(), [MemorySource()], registry=CollectorRegistry(), on_pack_lost=lost.append)
    store = chunks.create(LAYER.index_data)
    transfers.add(store)
    transfers.miss(store.node, START[1], 4096)
    wait_until(lambda: lost, "told", 5)
    assert set(lost) == {LAYER.name}
    transfers.stop()
    chunks.close()
    database.close()

"""Transfers on a disk that takes no more chunks: who waits is answered, nothing is counted as here, fill waits."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_layers import MadeLayer, MemorySource
from stored_node import StoredNode

from agent.layerstore import LayerStore
from agent.transfer import bulk
from agent.transfer.overflow import Overflow
from agent.transfer.transfers import Transfers
from imgdist.demo.processes import wait_until

LAYER = MadeLayer([4, 64, 64, 1, 30, 2])
START = [LAYER.index.start(chunk) for chunk in range(6)]
END = [LAYER.index.start(chunk) + LAYER.index.size(chunk) for chunk in range(6)]


class Node(StoredNode):
    """Transfers into one store whose disk is full until `relieve`."""

    def __init__(self, root: Path, slots: int = 4) -> None:
        self.source = MemorySource(LAYER)
        super().__init__(root, slots=slots)
        self.refused: list[int] = []
        self.errno = errno.ENOSPC
        self.transfers = Transfers(
            self.view,
            [self.source],
            registry=self.registry,
            on_disk_refused=lambda error, name: self.refused.append(error.errno or 0),
        )
        self.store = self.chunks.create(LAYER.index_data)
        self._write = self.store.write
        self.store.write = self.full  # type: ignore[method-assign]
        self.transfers.add(self.store)

    def full(self, chunk: int, raw: memoryview, *, direct: bool = False) -> None:
        raise OSError(self.errno, "the disk")

    def relieve(self) -> None:
        self.store.write = self._write  # type: ignore[method-assign]


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(slots: int = 4) -> Node:
        made.append(Node(tmp_path, slots))
        return made[-1]

    yield make
    for node in made:
        node.stop()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_reader_has_the_chunk_and_nobody_counts_it(make_node: Callable[..., Node], number: int) -> None:
    node = make_node()
    node.errno = number
    node.transfers.miss(node.store.node, START[1], 4096)
    node.view.wait(("ready", node.store.node, START[1], END[1]))
    node.view.wait(("held", node.store.node, START[1], END[1]))
    assert node.view.bytes[node.store.node, START[1]] == LAYER.chunks[1]
    assert not node.store.has(1) and 1 in node.store.missing_chunks()
    wait_until(lambda: node.figure("imgdist_disk_refused_bytes_total") >= len(LAYER.chunks[1]), "counted", 5)
    assert set(node.refused) == {number}
    assert ("written", node.store.node, START[1], END[1]) not in node.view.events


def test_the_next_reader_has_it_from_memory_and_the_disk_when_it_takes_it(make_node: Callable[..., Node]) -> None:
    node = make_node()
    key = ("held", node.store.node, START[1], END[1])
    for times in (1, 2):
        node.transfers.miss(node.store.node, START[1], 4096)
        wait_until(lambda times=times: node.view.events.count(key) == times, "held", 5)  # type: ignore[misc]
    assert node.source.asked_chunks.count(1) == 1, "asked for once"
    node.relieve()
    node.transfers.miss(node.store.node, START[1], 4096)
    node.view.wait(("written", node.store.node, START[1], END[1]))
    assert node.store.has(1) and node.source.asked_chunks.count(1) == 1


def test_a_read_that_parks_just_after_the_chunk_was_handed_out_is_answered(
    make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node()
    key = ("held", node.store.node, START[1], END[1])
    hand_out = node.view.held

    def held(number: int, start: int, end: int, slot: int) -> None:
        hand_out(number, start, end, slot)
        if start == START[1] and node.view.events.count(key) == 1:
            node.transfers.miss(number, START[1], 4096)

    monkeypatch.setattr(node.view, "held", held)
    node.transfers.miss(node.store.node, START[1], 4096)
    wait_until(lambda: node.view.events.count(key) == 2, "handed out again", 5)


def test_a_ring_without_room_keeps_the_reader_waiting_not_without_bytes(make_node: Callable[..., Node]) -> None:
    node = make_node(slots=0)
    node.transfers.miss(node.store.node, START[1], 4096)
    wait_until(lambda: len(node.refused) >= 2, "tried again", 5)
    node.relieve()
    node.view.wait(("written", node.store.node, START[1], END[1]))
    assert node.source.asked_chunks.count(1) == 1


def test_a_job_goes_on_with_what_is_in_memory(make_node: Callable[..., Node]) -> None:
    node = make_node()
    node.transfers.fetch_now(node.store, [4, 5]).result(5)
    assert not node.store.has(4) and not node.store.has(5)


def test_fill_stops_and_resumes_by_itself(make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "FULL_S", 0.3)
    node = make_node()
    node.transfers.fill(node.store)
    wait_until(lambda: len(node.refused) >= 1, "the disk found full", 5)
    assert node.store.missing_chunks() == list(range(6))
    node.transfers.miss(node.store.node, START[0], 4096)
    node.view.wait(("ready", node.store.node, START[0], END[0]))
    node.relieve()
    wait_until(lambda: node.store.is_complete, "filled", 10)
    assert _image_of(node.store) == LAYER.index.block0() + b"".join(LAYER.chunks)


def _image_of(store: LayerStore) -> bytes:
    return (store.directory / "image").read_bytes()


def test_memory_is_bounded_and_the_longest_unused_goes() -> None:
    overflow = Overflow(limit_bytes=10)
    for chunk in range(3):
        overflow.keep(1, chunk, memoryview(bytes([chunk]) * 4))
        overflow.find(1, 0)
    assert (overflow.find(1, 0), overflow.find(1, 1), overflow.find(1, 2)) == (b"\0" * 4, None, b"\2" * 4)
    overflow.keep(1, 0, memoryview(b"again"))
    assert overflow.size_bytes == 9
    overflow.keep(2, 0, memoryview(b"x"))
    overflow.forget(1)
    assert (overflow.size_bytes, overflow.find(2, 0)) == (1, b"x")

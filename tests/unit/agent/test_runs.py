"""Chunks that nobody waits for are written in runs, and are here before the thread waits for more of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_layers import FakeView, MadeLayer, MemorySource
from prometheus_client import CollectorRegistry

from agent.chunkstore import ChunkStore
from agent.database import Database
from agent.transfer.run import PATIENT_AT_ONCE, RUN_BYTES, Run
from agent.transfer.transfers import Transfers
from imgdist.demo.processes import wait_until
from imgdist.errors import TemporaryError
from imgdist.pack import CHUNK_MAX

LAYER = MadeLayer([4, 2, 1, 8, 1, 3, 2])
LARGE = MadeLayer([64] * 7 + [1])


class Node:
    """Transfers of one layer, whose writes are noted as (offset in blocks, blocks)."""

    def __init__(self, root: Path, layer: MadeLayer) -> None:
        self.source = MemorySource(layer)
        self.layer = layer
        self.writes: list[tuple[int, int]] = []
        self.registry = CollectorRegistry()
        self.database = Database(root / "agent.db")
        self.chunks = ChunkStore(root / "packs", self.database)
        self.transfers = Transfers(FakeView(), [self.source], registry=self.registry)
        self.store = self.chunks.create(layer.index_data)
        write = self.store.write

        def note(chunk: int, raw: memoryview, *, direct: bool = False) -> None:
            self.writes.append((chunk, len(raw) // 4096))
            write(chunk, raw, direct=direct)

        self.store.write = note  # type: ignore[method-assign]
        self.transfers.add(self.store)

    def fill(self) -> None:
        self.transfers.fill(self.store)
        wait_until(lambda: self.store.present.clean, "the layer is complete", 10)
        image = (self.store.directory / "image").read_bytes()
        assert image[4096:] == b"".join(self.layer.chunks)

    def stop(self) -> None:
        self.transfers.stop()
        self.chunks.close()
        self.database.close()


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[[MadeLayer], Node]]:
    made: list[Node] = []

    def make(layer: MadeLayer) -> Node:
        made.append(Node(tmp_path, layer))
        return made[-1]

    yield make
    for node in made:
        node.stop()


def test_neighbours_are_written_at_once(make_node: Callable[[MadeLayer], Node]) -> None:
    node = make_node(LAYER)
    node.fill()
    assert node.writes == [(0, 21)]
    came = node.registry.get_sample_value("imgdist_chunk_bytes_total", {"source": "supernode"})
    assert came == sum(len(body) for _, body in LAYER.encoded)


def test_a_run_has_an_end(make_node: Callable[[MadeLayer], Node]) -> None:
    node = make_node(LARGE)
    node.fill()
    assert node.writes == [(first, RUN_BYTES // 4096) for first in (0, 2, 4)] + [(6, 64 + 1)]


def test_what_is_here_is_written_before_the_thread_waits(make_node: Callable[[MadeLayer], Node]) -> None:
    node = make_node(LAYER)
    here: list[list[int]] = []
    fetch = node.source.fetch

    def pausing(request: object, on_chunk: Callable[..., None], *others: object) -> None:
        on_pause = others[-1]
        assert callable(on_pause)

        def one(number: int, encoding: int, body: memoryview) -> None:
            on_chunk(number, encoding, body)
            if number == 3:
                before = node.store.missing_chunks()
                on_pause()
                here.extend((before, node.store.missing_chunks()))

        fetch(request, one, *others)  # type: ignore[arg-type]

    node.source.fetch = pausing  # type: ignore[method-assign, assignment]
    node.fill()
    assert here == [list(range(7)), [4, 5, 6]]


def test_an_answer_that_breaks_off_leaves_what_came(make_node: Callable[[MadeLayer], Node]) -> None:
    node = make_node(LAYER)
    broken = [2]

    def spoil(number: int, body: bytes) -> bytes:
        if number in broken:
            broken.clear()
            raise TemporaryError("cut")
        return body

    node.source.spoil = spoil
    node.fill()
    assert node.writes == [(0, 6), (2, 15)]


def test_the_places_of_a_run_follow_one_another() -> None:
    run = Run()
    for chunk, size in ((5, 8192), (6, 4096)):
        place = run.place(chunk, size)
        assert place is not None
        place[:] = bytes([chunk]) * size
        run.add(chunk, place, 1)
    assert run.raw == bytes([5]) * 8192 + bytes([6]) * 4096
    assert [(chunk, len(raw)) for chunk, raw, _ in run] == [(5, 8192), (6, 4096)]
    assert run.place(8, 4096) is None and run.place(6, 4096) is None
    assert run.place(7, CHUNK_MAX) is not None and run.place(7, RUN_BYTES - 8192) is None
    run.close()


def test_few_patient_runs_have_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asks: list[threading.Event] = []

    class Turns(threading.Semaphore):
        def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
            for event in asks:
                event.set()
            return super().acquire(blocking, timeout)

    turns = Turns(PATIENT_AT_ONCE)
    monkeypatch.setattr("agent.transfer.run._patient", turns)
    first, *others = runs = [Run(patient=True) for _ in range(PATIENT_AT_ONCE)]
    places = [run.place(0, CHUNK_MAX) for run in runs]
    assert all(place is not None for place in places)
    assert not turns.acquire(blocking=False), "that many, and no more"
    asks.append(threading.Event())
    late, got = Run(patient=True), threading.Event()

    def place() -> None:
        late.place(0, CHUNK_MAX)
        got.set()

    waiting = threading.Thread(target=place)
    waiting.start()
    reader = Run()
    assert reader.place(0, CHUNK_MAX) is not None, "a reader's does not wait"
    reader.close()
    assert asks[0].wait(10), "it asked for its turn"
    assert late.is_untouched and not got.is_set()
    first.close()
    assert got.wait(10)
    waiting.join()
    for run in (*others, late):
        run.close()


def test_a_run_without_memory_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> memoryview:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("agent.transfer.run._take", fails)
        for _ in range(PATIENT_AT_ONCE + 1):
            with pytest.raises(MemoryError):
                Run(patient=True).place(0, CHUNK_MAX)
    run = Run(patient=True)
    assert run.place(0, CHUNK_MAX) is not None
    run.close()

"""Layers made for tests: chunks of chosen sizes, their index, and sources that serve them well or badly."""

from __future__ import annotations

import mmap
import random
import threading
from collections.abc import Callable, Sequence

from blake3 import blake3

from agent.swarm.bitset import numbers_of
from imgdist.errors import ImgdistError, NotFoundError
from imgdist.pack import BLOCK, CHUNK_MAX, codec, records
from imgdist.pack.index import Index, IndexBuilder
from imgdist.pack.records import Chunk, DiffId, Metadata, Seal, Superblock, TarSplit
from imgdist.wire.client import OnChunk, OnHead, OnNumbers, OnPause, Told, ignore
from imgdist.wire.messages import Priority
from imgdist.wire.requests import AnyRequest, BodyRequest


class MadeLayer:
    """A layer of `blocks[i]` blocks a chunk; the last chunk is metadata, chunks named in `zero` are all zeros. What
    compresses well is a few bytes on the wire, what is `dense` all of them."""

    def __init__(
        self, blocks: Sequence[int] = (4, 64, 1, 2), seed: int = 1, zero: Sequence[int] = (), *, dense: bool = False
    ) -> None:
        source = random.Random(seed)
        words = [count * BLOCK if dense else 64 for count in blocks]  # what is repeated, in bytes
        self.chunks = [
            bytes(count * BLOCK) if i in zero else source.randbytes(words[i]) * (count * BLOCK // words[i])
            for i, count in enumerate(blocks)
        ]
        self.index_data = make_index(self.chunks)
        self.index = Index.load(self.index_data)
        self.name = self.index.pack_id.hex()
        self.encoded = [codec.encode(chunk) for chunk in self.chunks]


def make_index(chunks: Sequence[bytes]) -> bytes:
    """The sealed index stream of these chunks."""
    builder = IndexBuilder("sha256:" + "ab" * 32)
    last = len(chunks) - 1
    body: list[records.Record] = [
        Chunk(len(raw) // BLOCK, blake3(raw).digest(), zero=codec.is_zero(raw), metadata=i == last)
        for i, raw in enumerate(chunks)
    ]
    first = 1 + sum(len(raw) // BLOCK for raw in chunks[:-1])
    body += [Metadata(first, len(chunks[-1]) // BLOCK), Superblock(b"superblock")]
    body += [DiffId(b"\xdd" * 32), TarSplit(b"\xee" * 32, 1)]
    return builder.header + b"".join(builder.add(record) for record in body) + records.encode(Seal(builder.pack_id()))


class MemorySource:
    """A source of made layers. `before` runs at each request and may raise or wait; `spoil` alters bodies."""

    def __init__(self, *layers: MadeLayer, name: str = "memory", kind: str = "supernode") -> None:
        self.kind = kind
        self.layers = {layer.name: layer for layer in layers}
        self.name = name
        self.asked: list[tuple[str, tuple[int, ...], Priority]] = []
        self.chosen: list[tuple[int, ...]] = []
        self.waits: list[float] = []
        self.before: Callable[[tuple[int, ...], Priority], None] = lambda numbers, priority: None
        self.spoil: Callable[[int, bytes], bytes] = lambda number, body: body
        self.closed = threading.Event()
        self.gone: ImgdistError | None = None  # what a probe meets
        self.probed = self.renewed = 0

    def fetch(
        self,
        request: BodyRequest,
        on_chunk: OnChunk,
        on_head: OnHead = ignore,
        on_numbers: OnNumbers = ignore,
        on_pause: OnPause | None = None,
    ) -> None:
        """Chooses, where it may, the last ones: what nobody would ask for first."""
        pack, priority = request.name, request.priority
        if isinstance(request, AnyRequest):
            numbers = tuple(reversed(numbers_of(request.lacks)))[: request.count]
            self.chosen.append(numbers)
        else:
            numbers = request.numbers
            self.waits.append(request.wait_s)
        self.asked.append((pack, numbers, priority))
        if on_pause is not None:
            on_pause()
        self.before(numbers, priority)
        if pack not in self.layers:
            raise NotFoundError(f"{self.name}: no pack {pack}")
        on_head(Told(0.001))
        if isinstance(request, AnyRequest):
            on_numbers(numbers)
        for number in numbers:
            encoding, body = self.layers[pack].encoded[number]
            on_chunk(number, encoding, memoryview(self.spoil(number, bytes(body))))

    def probe(self, timeout_s: float) -> None:
        self.probed += 1
        if self.gone is not None:
            raise self.gone

    def renew(self) -> None:
        self.renewed += 1

    def close(self) -> None:
        self.closed.set()

    @property
    def asked_chunks(self) -> list[int]:
        """Every chunk number asked for, in order."""
        return [number for _, numbers, _ in self.asked for number in numbers]


class FailingSource(MemorySource):
    """Raises `error` while it is set."""

    def __init__(self, error: ImgdistError | None, *layers: MadeLayer, name: str = "failing") -> None:
        super().__init__(*layers, name=name)
        self.error = error
        self.before = self._fail

    def _fail(self, numbers: tuple[int, ...], priority: Priority) -> None:
        if self.error is not None:
            raise self.error


class FakeView:
    """Records what the view is told; a ring of `slots` buffers, each given back as soon as it was looked at. `spared`:
    threads that may carry out a miss by themselves."""

    def __init__(self, slots: int = 4, spared: int = 0) -> None:
        self._spare = threading.Semaphore(spared)
        self._ring = [mmap.mmap(-1, CHUNK_MAX) for _ in range(slots)]  # page-aligned, as O_DIRECT wants it
        self._free = list(range(slots))
        self._kept: set[int] = set()
        self._changed = threading.Condition()
        self.events: list[tuple[str, int, int, int]] = []
        self.bytes: dict[tuple[int, int], bytes] = {}

    def linger(self) -> bool:
        return self._spare.acquire(blocking=False)

    def back(self) -> None:
        self._spare.release()

    def acquire_ring(self, *, keep: bool = False) -> int | None:
        with self._changed:
            slot = self._free.pop() if self._free else None
            if slot is not None and keep:
                self._kept.add(slot)
            return slot

    def release_ring(self, slot: int) -> None:
        with self._changed:
            self._kept.remove(slot)
            self._free.append(slot)

    def ring(self, slot: int) -> memoryview:
        return memoryview(self._ring[slot])

    def ready(self, node: int, start: int, end: int, slot: int) -> None:
        self._look("ready", node, start, end, slot)

    def held(self, node: int, start: int, end: int, slot: int) -> None:
        self._look("held", node, start, end, slot)

    def _look(self, what: str, node: int, start: int, end: int, slot: int) -> None:
        self.bytes[node, start] = bytes(self._ring[slot][: end - start])
        with self._changed:
            if slot not in self._kept:
                self._free.append(slot)
        self._tell(what, node, start, end)

    def written(self, node: int, start: int, end: int) -> None:
        self._tell("written", node, start, end)

    def fail(self, node: int, start: int, end: int, error: int) -> None:
        self._tell("fail", node, start, end)

    def wait(self, event: tuple[str, int, int, int], timeout_s: float = 10) -> None:
        """Return once the view was told so."""
        with self._changed:
            assert self._changed.wait_for(lambda: event in self.events, timeout_s), f"no {event} in {self.events}"

    def _tell(self, what: str, node: int, start: int, end: int) -> None:
        with self._changed:
            self.events.append((what, node, start, end))
            self._changed.notify_all()

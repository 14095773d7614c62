"""A node without a kernel: packs, mounts and transfers that record what is done to them and fail when told to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agent.catalog import SMALL_BYTES, Catalog
from agent.mounter import Found
from imgdist.errors import ImgdistError, TemporaryError
from imgdist.pack.kinds import Kind


@dataclass
class FakePresent:
    parked: int = 0
    last_read_ns: int = 0
    blocks: int = 10

    def count(self) -> int:
        return self.blocks // 2

    def touch(self) -> None:
        self.last_read_ns = time.monotonic_ns()


class FakeStore:
    """A pack of three chunks, the last of them metadata; large (through the view) or small."""

    def __init__(self, number: int, *, small: bool = False, diff_id: str = "sha256:" + "d" * 64) -> None:
        self.pack_id = bytes([number]) * 32
        self.node, self.name = number, f"n{number}"
        self.index = SimpleNamespace(
            kind=Kind.LAYER,
            image_size=SMALL_BYTES // 2 if small else SMALL_BYTES * 2,
            diff_id=diff_id,
            implied_directories=(),
            is_metadata=lambda chunk: chunk == 2,
        )
        self.present = FakePresent()
        self.received: Counter[str] = Counter()
        self.missing = {0, 1, 2}
        self.durable = self.is_settled = False
        self.directory = Path("/nonexistent") / self.name
        self.frames: Any = None
        self.is_proven = True

    def prove(self) -> None:
        """Hash what is here: nothing is wrong."""
        self.is_proven = True

    @property
    def is_complete(self) -> bool:
        return not self.missing

    def missing_chunks(self) -> list[int]:
        return sorted(self.missing)

    def complete(self) -> None:
        assert self.is_complete
        self.durable = True


class Steps:
    """What was done, in order. `fail[step]` is raised there; `hold(step)` makes it wait for the returned event."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int]] = []
        self.fail: dict[str, Exception] = {}
        self._held: dict[str, threading.Event] = {}
        self.reached = threading.Event()

    def hold(self, step: str) -> threading.Event:
        self._held[step] = threading.Event()
        return self._held[step]

    def take(self, step: str, node: int) -> None:
        self.done.append((step, node))
        if (held := self._held.pop(step, None)) is not None:
            self.reached.set()
            assert held.wait(10)
        if step in self.fail:
            raise self.fail[step]

    def names(self) -> list[str]:
        return [step for step, _ in self.done]


@dataclass
class FakeMounter:
    steps: Steps
    left: dict[int, Found | Exception] = field(default_factory=dict)
    readers: set[int] = field(default_factory=set)
    live: threading.Event = field(default_factory=threading.Event)

    def __getattr__(self, step: str) -> Callable[[FakeStore], None]:
        return lambda store: self.steps.take(step, store.node)

    def directory(self, store: FakeStore) -> str:
        return f"/l/{store.name}"

    def is_read(self, store: FakeStore) -> bool:
        return store.node in self.readers

    def wait_live(self, timeout_s: float) -> None:
        if not self.live.wait(timeout_s):
            raise TemporaryError("no view")

    def found(self, store: FakeStore) -> Found | None:
        found = self.left.get(store.node)
        if isinstance(found, Exception):
            raise found
        return found


class FakeTransfers:
    """Everything asked for arrives at once, unless `stuck`: then it ends with that error when the layer is removed."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.layers: set[int] = set()
        self.stuck: ImgdistError | None = None
        self.filled: list[int] = []
        self.traced: list[tuple[int, int]] = []
        self.trace_goes_on: list[bool] = []
        self.told_trace = asyncio.Event()
        self.drained: Callable[[], None] = lambda: None
        self.starts = 0

    def starting(self) -> None:
        self.starts += 1

    def running_s(self) -> float:
        return time.monotonic()

    def add(self, store: FakeStore) -> None:
        self.steps.take("add", store.node)
        self.layers.add(store.node)

    def remove(self, node: int) -> None:
        self.steps.take("remove", node)
        self.layers.discard(node)

    def fetch_now(self, store: FakeStore, chunks: Iterable[int]) -> Future[None]:
        assert store.node in self.layers
        self.steps.take("fetch_now", store.node)
        future: Future[None] = Future()
        if self.stuck is not None:
            future.set_exception(self.stuck)
        else:
            store.missing -= set(chunks)
            future.set_result(None)
        return future

    def fill(self, store: FakeStore) -> None:
        self.filled.append(store.node)

    def trace(self, order: Iterable[tuple[FakeStore, int]], *, goes_on: bool = False) -> bool:
        self.traced = [(store.node, chunk) for store, chunk in order]
        self.trace_goes_on.append(goes_on)
        self.told_trace.set()
        return bool(self.traced)

    def drain(self, deadline_s: float) -> list[int]:
        self.drained()
        return []


class FakeChunks:
    """`create` takes a store's number for its index."""

    def __init__(self, *stores: FakeStore) -> None:
        self.stores = {bytes([store.node]): store for store in stores}
        self.on_disk: list[FakeStore] = []
        self.removed: list[int] = []
        self.leftovers: list[tuple[str, int]] = []
        self.full: OSError | None = None

    def recover(self) -> list[FakeStore]:
        return self.on_disk

    def renumber(self, store: FakeStore) -> None:
        store.node += 100
        store.name = f"n{store.node}"

    def create(self, index_data: bytes, early: Any = None, bodies: Any = (), index: Any = None) -> FakeStore:
        if self.full is not None:
            raise self.full
        return self.stores[index_data]

    def remove(self, store: FakeStore) -> None:
        self.removed.append(store.node)

    def clear_leftovers(self, *, dry_run: bool = False) -> list[tuple[str, int]]:
        found = self.leftovers
        if not dry_run:
            self.leftovers = []
        return found


class FakeNode:
    """A catalog over all of it."""

    def __init__(self, tasks: Any, *stores: FakeStore, fill: bool = True, idle_s: float = 0.0) -> None:
        self.steps = Steps()
        self.mounter: Any = FakeMounter(self.steps)
        self.transfers: Any = FakeTransfers(self.steps)
        self.chunks: Any = FakeChunks(*stores)
        self.catalog = Catalog(self.chunks, self.mounter, self.transfers, tasks, fill=fill, switch_idle_s=idle_s)

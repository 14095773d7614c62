"""What to fetch next on this node: demand, then what a job waits for, then traces, then fill. Pure policy.

Every method is a synchronous step of (state, event, now); `due` decides and marks in one step, so that no chunk is ever
asked for twice at once. A demand for a chunk in flight waits for it; a demand for a queued chunk makes it due at once
and the queue then skips it. The caller locks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from agent.transfer.gate import FillGate
from agent.transfer.window import Window

RUN_CHUNKS = 8
"""Chunks of one trace or fill request, at most 2 MiB raw (a guess)."""
DEMAND_SLOTS = 8
"""Requests at once that somebody waits for; a start has never more than 2 misses outstanding (a guess)."""
NOW_SLOTS = 6
"""Of the demand slots, so that a miss always finds one free."""
BULK_SLOTS = 8
"""Trace and fill requests at once; the window in bytes usually says less (a guess)."""
AHEAD_CHUNKS = 4
"""Fetched behind a miss where no trace is known. [measured: misses 901 -> 400-450, +30 % bytes; 8: 430, +59 %]"""
AHEAD_ROUND_TRIP_S = 0.002
"""Below this a chunk ahead costs more than the miss it saves: a round trip of 1 ms, and up to 1 ms until the first byte
leaves a busy server (a guess)."""
DEMAND_PAUSE_S = (0.05, 1.0)
BULK_PAUSE_S = (0.05, 10.0)
"""Between tries of a layer while no source serves it: first, at most; doubling, jittered (a guess)."""

_AHEAD_QUEUE = 256
"""Older guesses than these are stale: the reader is elsewhere by now (a guess)."""
_MISSING, _FLYING, _HERE = range(3)


class Kind(Enum):
    """Why chunks are fetched, most urgent first: a read waits, a job waits, a trace predicts, a layer fills."""

    DEMAND = "demand"
    NOW = "now"
    TRACE = "trace"
    FILL = "fill"


class Layout(Protocol):
    """Where a layer's chunks lie in its image (imgdist.pack.index.Index)."""

    @property
    def chunk_count(self) -> int:
        """How many there are."""

    def size(self, chunk: int) -> int:
        """Raw bytes."""

    def is_metadata(self, chunk: int) -> bool:
        """Whether it holds file-system metadata."""

    def chunks_between(self, start: int, end: int) -> range:
        """Those that overlap the image's bytes [start, end)."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask for these chunks of a layer, in this order, in one request."""

    node: int
    chunks: tuple[int, ...]
    kind: Kind


@dataclass(frozen=True, slots=True)
class Landed:
    """A chunk is in the image: how long a reader waited for it (None: nobody did), and whether it was the last."""

    waited_s: float | None
    completes: bool


@dataclass(slots=True)
class _Layer:
    layout: Layout
    state: bytearray
    missing: int
    traced: bool = False
    cursor: int = 0
    failures: int = 0
    failed_at: float = 0.0
    jitter: float = 1.0

    def ready_at(self, pause: tuple[float, float]) -> float:
        """When the layer may be asked for again."""
        if not self.failures:
            return 0.0
        doubled: float = pause[0] * 2.0 ** (self.failures - 1)
        return self.failed_at + min(doubled, pause[1]) * self.jitter


@dataclass(slots=True)
class _Want:
    asked_at: float
    expires_at: float


@dataclass(slots=True)
class _Flight:
    fetch: Fetch
    started: float
    bytes: int
    delivered: int


@dataclass(slots=True)
class Scheduler:
    """The queues of one node. `random` returns [0, 1).

    After `read_deadline_s` without asking again the view has answered EIO and nobody waits (infinite: it holds reads).
    """

    random: Callable[[], float]
    read_deadline_s: float = 60.0
    window: Window = field(default_factory=Window)
    gate: FillGate = field(default_factory=FillGate)
    _layers: dict[int, _Layer] = field(default_factory=dict)
    _wanted: dict[tuple[int, int], _Want] = field(default_factory=dict)
    _now: dict[tuple[int, int], None] = field(default_factory=dict)
    _ahead: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_AHEAD_QUEUE))
    _trace: deque[tuple[int, int]] = field(default_factory=deque)
    _fill: dict[int, None] = field(default_factory=dict)
    _flights: dict[Fetch, _Flight] = field(default_factory=dict)
    _busy: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    _bulk_bytes: int = 0

    # Events.

    def add(self, node: int, layout: Layout, missing: Sequence[int]) -> bool:
        """A layer whose chunks `missing` are not here. True if it is complete already."""
        state = bytearray([_HERE]) * layout.chunk_count
        for chunk in missing:
            state[chunk] = _MISSING
        self._layers[node] = _Layer(layout, state, len(missing))
        return not missing

    def remove(self, node: int) -> None:
        """Forget a layer; what is in flight for it lands nowhere."""
        self._layers.pop(node, None)
        self._fill.pop(node, None)
        self._wanted = {key: want for key, want in self._wanted.items() if key[0] != node}
        self._now = {key: None for key in self._now if key[0] != node}

    def miss(self, node: int, start: int, length: int, now: float) -> bool | None:
        """A reader waits for the image's bytes [start, start + length).

        True: its chunks are wanted now. False: all are here, tell the view. None: no such layer.
        """
        layer = self._layers.get(node)
        if layer is None:
            return None
        chunks = layer.layout.chunks_between(start, start + length)
        absent = [chunk for chunk in chunks if layer.state[chunk] != _HERE]
        for chunk in absent:
            want = self._wanted.setdefault((node, chunk), _Want(now, 0.0))
            want.expires_at = now + self.read_deadline_s
        if not absent:
            return False
        self.gate.missed(now)
        round_trip = self.window.round_trip_s
        if not layer.traced and (round_trip is None or round_trip >= AHEAD_ROUND_TRIP_S):
            end = min(chunks[-1] + 1 + AHEAD_CHUNKS, layer.layout.chunk_count)
            for chunk in range(chunks[-1] + 1, end):
                if layer.layout.is_metadata(chunk):
                    break
                if layer.state[chunk] == _MISSING:
                    self._ahead.append((node, chunk))
        return True

    def want(self, node: int, chunks: Iterable[int]) -> list[int]:
        """A job waits for these chunks; returns those that are not here yet."""
        layer = self._layers[node]
        absent = [chunk for chunk in chunks if layer.state[chunk] != _HERE]
        for chunk in absent:
            self._now[node, chunk] = None
        return absent

    def give_up(self, node: int, chunks: Iterable[int]) -> None:
        """The job no longer waits."""
        for chunk in chunks:
            self._now.pop((node, chunk), None)

    def trace(self, order: Iterable[tuple[int, int]]) -> None:
        """(node, chunk) in the order that a start is expected to touch them."""
        for node, chunk in order:
            layer = self._layers.get(node)
            if layer is not None and 0 <= chunk < layer.layout.chunk_count:
                layer.traced = True
                if layer.state[chunk] == _MISSING:
                    self._trace.append((node, chunk))

    def fill(self, node: int) -> None:
        """Complete this layer when there is nothing better to do, after those asked before."""
        if self._layers[node].missing:
            self._fill[node] = None

    def drain(self, on: bool) -> None:
        """Fill without waiting for quiet, every layer there is; or no longer."""
        self.gate.ungated = on
        if on:
            self._fill.update((node, None) for node, layer in self._layers.items() if layer.missing)

    def is_wanted(self, node: int, chunk: int) -> bool:
        """Whether a reader waits for the chunk: then answer first, write after."""
        return (node, chunk) in self._wanted

    def landed(self, node: int, chunk: int, answered_at: float) -> Landed:
        """A verified chunk is in the image and marked present; readers were answered at `answered_at`."""
        layer = self._layers.get(node)
        if layer is None or layer.state[chunk] == _HERE:
            return Landed(None, False)
        layer.state[chunk] = _HERE
        layer.missing -= 1
        layer.failures = 0
        if not layer.missing:
            self._fill.pop(node, None)
        self._now.pop((node, chunk), None)
        want = self._wanted.pop((node, chunk), None)
        return Landed(max(0.0, answered_at - want.asked_at) if want else None, not layer.missing)

    def finished(self, fetch: Fetch, now: float, round_trip_s: float | None = None) -> None:
        """A request is over, its chunks landed or not; `round_trip_s` to its answer's first byte, if it was whole."""
        flight = self._flights.pop(fetch)
        self._busy[fetch.kind] -= 1
        if fetch.kind in (Kind.TRACE, Kind.FILL):
            self._bulk_bytes -= flight.bytes
        if fetch.kind is Kind.FILL:
            self.gate.filled(now, now - flight.started)
        if round_trip_s is not None:
            self.window.answered(flight.delivered, flight.started, round_trip_s, now)
        layer = self._layers.get(fetch.node)
        if layer is None:
            return
        failed = [chunk for chunk in fetch.chunks if layer.state[chunk] == _FLYING]
        if not failed:
            return
        for chunk in failed:
            layer.state[chunk] = _MISSING
        layer.cursor = min(layer.cursor, *failed)
        layer.failures = min(layer.failures + 1, 16)
        layer.failed_at, layer.jitter = now, 0.75 + self.random() / 2
        if fetch.kind is Kind.TRACE:
            self._trace.extendleft((fetch.node, chunk) for chunk in reversed(failed))

    def in_flight(self, node: int) -> int:
        """Requests of a layer that are not finished."""
        return sum(fetch.node == node for fetch in self._flights)

    def incomplete(self) -> list[int]:
        """Layers that lack chunks."""
        return [node for node, layer in self._layers.items() if layer.missing]

    # Decisions.

    def due(self, now: float) -> list[Fetch]:
        """The requests to start now, marked as started."""
        fetches: list[Fetch] = []
        self._start_wanted(now, fetches)
        self._start_now(now, fetches)
        for queue in (self._ahead, self._trace):
            self._start_queued(queue, now, fetches)
        self._start_fill(now, fetches)
        return fetches

    def wake_at(self, now: float) -> float | None:
        """When `due` may say more without a new event; None: never."""
        times = [want.expires_at for want in self._wanted.values()]
        for node, layer in self._layers.items():
            if layer.failures and layer.missing:
                is_urgent = any(key[0] == node for queue in (self._wanted, self._now) for key in queue)
                times.append(layer.ready_at(DEMAND_PAUSE_S if is_urgent else BULK_PAUSE_S))
        if self._fill:
            opens = self.gate.opens_at(now, self._is_start_going_on(), self._busy[Kind.FILL])
            if opens is not None:
                times.append(opens)
        return min((at for at in times if at > now), default=None)

    def _start_wanted(self, now: float, fetches: list[Fetch]) -> None:
        for key, want in list(self._wanted.items()):
            if want.expires_at <= now:
                del self._wanted[key]
                continue
            if self._busy[Kind.DEMAND] + self._busy[Kind.NOW] >= DEMAND_SLOTS:
                return
            layer = self._layers[key[0]]
            if layer.state[key[1]] == _MISSING and layer.ready_at(DEMAND_PAUSE_S) <= now:
                self._start(key[0], (key[1],), Kind.DEMAND, now, fetches)

    def _start_now(self, now: float, fetches: list[Fetch]) -> None:
        runs: dict[int, list[int]] = {}
        for node, chunk in self._now:
            layer = self._layers[node]
            if layer.state[chunk] == _MISSING and layer.ready_at(DEMAND_PAUSE_S) <= now:
                runs.setdefault(node, []).append(chunk)
        for node, chunks in runs.items():
            for i in range(0, len(chunks), RUN_CHUNKS):
                slots = self._busy[Kind.DEMAND] + self._busy[Kind.NOW]
                if self._busy[Kind.NOW] >= NOW_SLOTS or slots >= DEMAND_SLOTS:
                    return
                self._start(node, tuple(chunks[i : i + RUN_CHUNKS]), Kind.NOW, now, fetches)

    def _start_queued(self, queue: deque[tuple[int, int]], now: float, fetches: list[Fetch]) -> None:
        while queue and self._has_room():
            node = queue[0][0]
            layer = self._layers.get(node)
            if layer is not None and layer.ready_at(BULK_PAUSE_S) > now:
                return
            run: list[int] = []
            while queue and queue[0][0] == node and len(run) < RUN_CHUNKS:
                _, chunk = queue.popleft()
                if layer is not None and layer.state[chunk] == _MISSING and chunk not in run:
                    run.append(chunk)
            if run:
                self._start(node, tuple(run), Kind.TRACE, now, fetches)

    def _start_fill(self, now: float, fetches: list[Fetch]) -> None:
        for node in list(self._fill):
            layer = self._layers[node]
            if layer.ready_at(BULK_PAUSE_S) > now:
                continue
            while self._has_room() and (run := self._next_run(layer)):
                if not self.gate.is_open(now, self._is_start_going_on(), self._busy[Kind.FILL]):
                    return
                self._start(node, run, Kind.FILL, now, fetches)

    def _next_run(self, layer: _Layer) -> tuple[int, ...]:
        """The next missing chunks of a layer, as a run of neighbours with at most the present ones left out."""
        first = layer.state.find(_MISSING, layer.cursor)
        if first < 0:
            return ()
        layer.cursor = first
        near = range(first, min(first + 2 * RUN_CHUNKS, len(layer.state)))
        return tuple([chunk for chunk in near if layer.state[chunk] == _MISSING][:RUN_CHUNKS])

    def _start(self, node: int, chunks: tuple[int, ...], kind: Kind, now: float, fetches: list[Fetch]) -> None:
        layer = self._layers[node]
        for chunk in chunks:
            layer.state[chunk] = _FLYING
        fetch = Fetch(node, chunks, kind)
        size = self.window.estimate(sum(layer.layout.size(chunk) for chunk in chunks))
        self._flights[fetch] = _Flight(fetch, now, size, self.window.delivered)
        self._busy[kind] += 1
        if kind in (Kind.TRACE, Kind.FILL):
            self._bulk_bytes += size
        fetches.append(fetch)

    def _has_room(self) -> bool:
        in_flight = self._busy[Kind.TRACE] + self._busy[Kind.FILL]
        return in_flight < BULK_SLOTS and self._bulk_bytes < self.window.size_bytes

    def _is_start_going_on(self) -> bool:
        return bool(self._wanted or self._now or self._ahead or self._trace or self._busy[Kind.TRACE])

"""What to fetch next on this node: demand, then what a job waits for, then traces, then fill. Pure policy.

Every method is a synchronous step of (state, event, now); `due` decides and marks in one step, so that no chunk is ever
asked for twice at once. A demand for a chunk in flight waits for it; a demand for a queued chunk makes it due at once
and the queue then skips it. The caller locks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from agent.transfer.backoff import BULK_PAUSE_S, DEMAND_PAUSE_S, Backoff, Rest
from agent.transfer.gate import FillGate
from agent.transfer.layerstate import FLYING, HERE, MISSING, RESTING, LayerState, Layout
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
TRACE_TRIES = 3
"""Of a trace's chunk; then fill or a reader gets it (a guess)."""

_AHEAD_QUEUE = 256
"""Older guesses than these are stale: the reader is elsewhere by now (a guess)."""


class Kind(Enum):
    """Why chunks are fetched, most urgent first: a read waits, a job waits, a trace predicts, a layer fills."""

    DEMAND = "demand"
    NOW = "now"
    TRACE = "trace"
    FILL = "fill"


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
    _layers: dict[int, LayerState] = field(default_factory=dict)
    _wanted: dict[tuple[int, int], _Want] = field(default_factory=dict)
    _now: dict[tuple[int, int], None] = field(default_factory=dict)
    _ahead: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_AHEAD_QUEUE))
    _trace: deque[tuple[int, int]] = field(default_factory=deque)
    _parked: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # the trace of layers that back off
    _rest: Rest = field(default_factory=Rest)
    _fill: dict[int, None] = field(default_factory=dict)
    _flights: dict[Fetch, _Flight] = field(default_factory=dict)
    _busy: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    _bulk_bytes: int = 0

    # Events.

    def add(self, node: int, layout: Layout, missing: Sequence[int]) -> bool:
        """A layer whose chunks `missing` are not here. True if it is complete already."""
        state = bytearray([HERE]) * layout.chunk_count
        for chunk in missing:
            state[chunk] = MISSING
        self._layers[node] = LayerState(layout, state, len(missing))
        return not missing

    def remove(self, node: int) -> None:
        """Forget a layer; what is in flight for it lands nowhere."""
        self._layers.pop(node, None)
        self._fill.pop(node, None)
        self._parked.pop(node, None)
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
        absent = [chunk for chunk in chunks if layer.state[chunk] != HERE]
        for chunk in absent:
            want = self._wanted.setdefault((node, chunk), _Want(now, 0.0))
            want.expires_at = now + self.read_deadline_s
            self._hurry(node, chunk)
        if not absent:
            return False
        self.gate.read(now)
        round_trip = self.window.round_trip_s
        if not layer.traced and (round_trip is None or round_trip >= AHEAD_ROUND_TRIP_S):
            end = min(chunks[-1] + 1 + AHEAD_CHUNKS, layer.layout.chunk_count)
            for chunk in range(chunks[-1] + 1, end):
                if layer.layout.is_metadata(chunk):
                    break
                if layer.state[chunk] == MISSING:
                    self._ahead.append((node, chunk))
        return True

    def touched(self, now: float) -> None:
        """A reader read what nobody had before, here already or not: something starts."""
        self.gate.read(now)

    def want(self, node: int, chunks: Iterable[int]) -> list[int]:
        """A job waits for these chunks; returns those that are not here yet."""
        layer = self._layers[node]
        absent = [chunk for chunk in chunks if layer.state[chunk] != HERE]
        for chunk in absent:
            self._now[node, chunk] = None
            self._hurry(node, chunk)
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
                if layer.state[chunk] == MISSING:
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
        if layer is None or layer.state[chunk] == HERE:
            return Landed(None, False)
        layer.came(chunk)
        if not layer.missing:
            self._fill.pop(node, None)
        self._now.pop((node, chunk), None)
        want = self._wanted.pop((node, chunk), None)
        return Landed(max(0.0, answered_at - want.asked_at) if want else None, not layer.missing)

    def finished(self, fetch: Fetch, now: float, round_trip_s: float | None = None, bad: Collection[int] = ()) -> None:
        """A request is over, its chunks landed or not; `round_trip_s` to its answer's first byte, if it was whole.

        Chunks that came wrong (`bad`) rest, each by itself; where no chunk of several came, the layer rests, too.
        """
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
        failed = [chunk for chunk in fetch.chunks if layer.state[chunk] == FLYING]
        if not failed:
            return
        layer.cursor = min(layer.cursor, *failed)
        none_came = len(failed) == len(fetch.chunks)
        if not bad or (none_came and len(failed) > 1):
            layer.backoff.failed(now, self.random())
        for chunk in failed:
            if chunk in bad:
                self._lay_down(fetch.node, chunk, now)
            else:
                layer.state[chunk] = MISSING
        if fetch.kind is Kind.TRACE:
            self._trace_again(fetch.node, [chunk for chunk in failed if chunk not in bad])

    def lost(self, node: int, chunks: Iterable[int]) -> None:
        """The image has these chunks no more: they are missing again."""
        layer = self._layers[node]
        for chunk in chunks:
            if layer.state[chunk] == HERE:
                layer.missing += 1
                layer.wake(chunk)

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
        self._wake(now)
        self._start_wanted(now, fetches)
        self._start_now(now, fetches)
        for queue in (self._ahead, self._trace):
            self._start_queued(queue, now, fetches)
        self._start_fill(now, fetches)
        return fetches

    def wake_at(self, now: float) -> float | None:
        """When `due` may say more without a new event; None: never."""
        times = [want.expires_at for want in self._wanted.values()]
        urgent = {node for queue in (self._wanted, self._now) for node, _ in queue}
        for node, layer in self._layers.items():
            if layer.backoff.failures and layer.missing:
                times.append(layer.backoff.ready_at(DEMAND_PAUSE_S if node in urgent else BULK_PAUSE_S))
        for at in (self._rest.next_at(), self._gate_opens_at(now)):
            if at is not None:
                times.append(at)
        return min((at for at in times if at > now), default=None)

    def _gate_opens_at(self, now: float) -> float | None:
        if not self._fill:
            return None
        return self.gate.opens_at(now, self._is_start_going_on(now), self._busy[Kind.FILL])

    def _lay_down(self, node: int, chunk: int, now: float) -> None:
        """A chunk came wrong: let it rest."""
        layer = self._layers[node]
        layer.state[chunk] = RESTING
        backoff = layer.bad.setdefault(chunk, Backoff())
        backoff.failed(now, self.random())
        self._rest.put(backoff.ready_at(BULK_PAUSE_S), node, chunk)
        if (node, chunk) in self._wanted or (node, chunk) in self._now:
            self._hurry(node, chunk)

    def _hurry(self, node: int, chunk: int) -> None:
        """Somebody waits for a chunk: if it rests, then no longer than that allows."""
        layer = self._layers[node]
        if layer.state[chunk] == RESTING:
            self._rest.put(layer.bad[chunk].ready_at(DEMAND_PAUSE_S), node, chunk)

    def _wake(self, now: float) -> None:
        """Chunks and the traces of layers whose rest is over may start again."""
        while (key := self._rest.pop(now)) is not None:
            node, chunk = key
            layer = self._layers.get(node)
            if layer is not None and layer.state[chunk] == RESTING:
                is_urgent = key in self._wanted or key in self._now
                if layer.bad[chunk].ready_at(DEMAND_PAUSE_S if is_urgent else BULK_PAUSE_S) <= now:
                    layer.wake(chunk)
        for node in [node for node in self._parked if self._layers[node].backoff.ready_at(BULK_PAUSE_S) <= now]:
            self._trace.extendleft(reversed(self._parked.pop(node)))

    def _trace_again(self, node: int, chunks: list[int]) -> None:
        """Chunks that a trace names did not come: back to their place, unless they failed too often."""
        tries = self._layers[node].trace_tries
        for chunk in chunks:
            tries[chunk] = tries.get(chunk, 0) + 1
        self._trace.extendleft((node, chunk) for chunk in reversed(chunks) if tries[chunk] < TRACE_TRIES)

    def _start_wanted(self, now: float, fetches: list[Fetch]) -> None:
        for key, want in list(self._wanted.items()):
            if want.expires_at <= now:
                del self._wanted[key]
                continue
            if self._busy[Kind.DEMAND] + self._busy[Kind.NOW] >= DEMAND_SLOTS:
                return
            layer = self._layers[key[0]]
            if layer.startable(key[1], now, DEMAND_PAUSE_S):
                self._start(key[0], (key[1],), Kind.DEMAND, now, fetches)

    def _start_now(self, now: float, fetches: list[Fetch]) -> None:
        runs: dict[int, list[int]] = {}
        for node, chunk in self._now:
            layer = self._layers[node]
            if layer.startable(chunk, now, DEMAND_PAUSE_S):
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
            if layer is not None and layer.backoff.ready_at(BULK_PAUSE_S) > now:
                self._step_over(queue, node)
                continue
            run: list[int] = []
            while queue and queue[0][0] == node and len(run) < RUN_CHUNKS:
                _, chunk = queue.popleft()
                if layer is not None and layer.state[chunk] == MISSING and chunk not in run:
                    run.append(chunk)
            if run:
                self._start(node, tuple(run), Kind.TRACE, now, fetches)

    def _step_over(self, queue: deque[tuple[int, int]], node: int) -> None:
        """The next entries are of a layer that backs off: a trace's wait beside for it, guesses are dropped."""
        while queue and queue[0][0] == node:
            entry = queue.popleft()
            if queue is self._trace:
                self._parked.setdefault(node, []).append(entry)

    def _start_fill(self, now: float, fetches: list[Fetch]) -> None:
        if not self._fill or not self._has_room():
            return
        starting = self._is_start_going_on(now)
        for node in list(self._fill):
            layer = self._layers[node]
            if layer.backoff.ready_at(BULK_PAUSE_S) > now:
                continue
            while self._has_room() and (run := layer.next_run(RUN_CHUNKS)):
                if not self.gate.is_open(now, starting, self._busy[Kind.FILL]):
                    return
                # Beside a start one chunk at a time: a run of eight keeps a miss waiting 24 ms at 200 Mbit/s.
                self._start(node, run[:1] if self.gate.is_low else run, Kind.FILL, now, fetches)

    def _start(self, node: int, chunks: tuple[int, ...], kind: Kind, now: float, fetches: list[Fetch]) -> None:
        layer = self._layers[node]
        for chunk in chunks:
            layer.state[chunk] = FLYING
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

    def _is_start_going_on(self, now: float) -> bool:
        """Whether there is more urgent work than fill that is under way or could be."""
        if self._ahead or self._trace or any(self._busy[kind] for kind in (Kind.DEMAND, Kind.NOW, Kind.TRACE)):
            return True
        urgent = (key for queue in (self._wanted, self._now) for key in queue)
        return any(self._is_on_its_way(node, chunk, now) for node, chunk in urgent)

    def _is_on_its_way(self, node: int, chunk: int, now: float) -> bool:
        layer = self._layers[node]
        return layer.state[chunk] == FLYING or layer.startable(chunk, now, DEMAND_PAUSE_S)

"""Chunks that nobody waits for yet: guesses behind a miss, what a trace predicts, then the rest of each layer. Pure;
the caller locks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from agent.swarm.policy import Ask
from agent.transfer.backoff import BULK_PAUSE_S, DEMAND_PAUSE_S
from agent.transfer.fetch import Fetch, Kind
from agent.transfer.flights import Flights
from agent.transfer.gate import FillGate
from agent.transfer.layerstate import FLYING, MISSING
from agent.transfer.lead import Lead
from agent.transfer.urgent import Urgent

TRACE_TRIES = 3
"""Of a trace's chunk; then fill or a reader gets it (a guess)."""
TRACE_CHUNKS = 64
"""The next of a trace in one layer that are spread over sources at once. Of these a supernode chooses, so that nodes
which start together get different ones first: eight nodes, eight chunks each (a guess)."""

FULL_S = 5.0
"""After a write that found the disk full; then one more is tried (a guess)."""
_AHEAD_QUEUE = 256
"""Older guesses than these are stale: the reader is elsewhere by now (a guess)."""

_Queue = deque[tuple[int, int]]


@dataclass(slots=True)
class Bulk:
    """Starts traces and fill as far as the window and the gate allow. `urgent` says whether something starts."""

    flights: Flights
    urgent: Urgent
    gate: FillGate
    lead: Lead = field(default_factory=Lead)
    _ahead: _Queue = field(default_factory=lambda: deque(maxlen=_AHEAD_QUEUE))
    _trace: _Queue = field(default_factory=deque)
    _parked: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # the trace of layers that back off
    _fill: dict[int, float] = field(default_factory=dict)  # layers to complete, and from when on
    _suspended_until: float = float("-inf")

    def guess(self, node: int, chunk: int) -> None:
        """A reader is likely to want the chunk next."""
        self._ahead.append((node, chunk))

    def trace(self, order: Sequence[tuple[int, int]], *, goes_on: bool = False) -> None:
        """A start is expected to touch these chunks: after those told before, unless readers leave those be. `goes_on`:
        some of them were told before, in the order that they have here."""
        if goes_on:
            told = set(order)
            self._trace = deque(entry for entry in self._trace if entry not in told)
        elif not self._trace and not self._parked:
            self.lead.begin()
        if goes_on or self.lead.is_left:
            self._trace.extend(order)
        else:
            self.lead.renew()
            self._trace.extendleft(reversed(order))
        for node, chunk in order:
            self.lead.named(node, chunk, self.flights.layers[node].layout.size(chunk))

    def trace_again(self, node: int, chunks: Iterable[int]) -> None:
        """Chunks that a trace names did not come: back to their place, unless they failed too often."""
        tries = self.flights.layers[node].trace_tries
        left: list[tuple[int, int]] = []
        for chunk in chunks:
            tries[chunk] = tries.get(chunk, 0) + 1
            if tries[chunk] < TRACE_TRIES:
                left.append((node, chunk))
        self._trace.extendleft(reversed(left))

    def fill(self, node: int, begins_at: float) -> None:
        """Complete this layer when there is nothing better to do, after those asked before."""
        self._fill.setdefault(node, begins_at)

    def fill_now(self, nodes: Iterable[int]) -> None:
        """Complete these layers without delay."""
        self._fill.update((node, 0.0) for node in nodes)

    def filled(self, node: int) -> None:
        """A layer is whole, or gone."""
        self._fill.pop(node, None)

    def remove(self, node: int) -> None:
        """Forget a layer; its entries in the queues are stepped over."""
        self.filled(node)
        self._parked.pop(node, None)
        self.lead.removed(node)

    def suspend(self, now: float) -> None:
        """The disk takes no more: start nothing for a while."""
        self._suspended_until = now + FULL_S

    @property
    def has_work(self) -> bool:
        """Whether anything is to be fetched that does not wait for a fill request to end."""
        return bool(self._ahead or self._trace or (self._fill and not self.flights.policy.is_full))

    def start(self, now: float, fetches: list[Fetch]) -> None:
        """Start what may start."""
        if now < self._suspended_until:
            return
        if self._parked:
            self._unpark(now)
        if self._ahead:
            self._start_queued(self._ahead, now, fetches)
        if self._trace and self.lead.is_left:
            self._start_queued(self._trace, now, fetches)
        if self._fill:
            self._start_fill(now, fetches)

    def wake_times(self, now: float) -> Iterator[float | None]:
        """When time alone may let more start."""
        if self.has_work or self._parked:
            yield self._suspended_until
        yield self.flights.pace.ready_at
        if self._ahead or self._trace:
            yield self.flights.line.until
        if self._fill:
            if max(self._fill.values()) > now:
                yield from self._fill.values()
            yield from map(self.flights.fill_at, self.flights.bulk_nodes() & self._fill.keys())
            yield self.gate.opens_at(now, self._is_start_going_on(now), self.flights.busy[Kind.FILL])

    def _unpark(self, now: float) -> None:
        layers = self.flights.layers
        for node in [node for node in self._parked if layers[node].backoff.ready_at(BULK_PAUSE_S) <= now]:
            self._trace.extendleft(reversed(self._parked.pop(node)))

    def _start_queued(self, queue: _Queue, now: float, fetches: list[Fetch]) -> None:
        while queue and self.flights.has_trace_room(now):
            node, chunks = self._next_of(queue, now)
            if not chunks:
                continue
            before = len(fetches)
            for ask in self.flights.asks(node, chunks, now):
                if not self.flights.has_trace_room(now):
                    break
                fetches.append(self.flights.start(node, self.flights.trace_ask(ask), Kind.TRACE, now))
            if len(fetches) == before:
                return  # its sources have enough to do, and other layers' are the same

    def _next_of(self, queue: _Queue, now: float) -> tuple[int, Sequence[int]]:
        """The layer that is next and its missing chunks near the head; takes off what is no longer missing there."""
        node, first = queue[0]
        layer = self.flights.layers.get(node)
        if layer is not None and layer.backoff.ready_at(BULK_PAUSE_S) > now:
            self._step_over(queue, node)
            return node, ()
        if layer is None or layer.state[first] != MISSING:
            queue.popleft()
            return node, ()
        chunks: dict[int, None] = {}
        for other, chunk in queue:
            if other != node or len(chunks) == TRACE_CHUNKS:
                break
            if layer.state[chunk] == MISSING:
                chunks[chunk] = None
        return node, tuple(chunks)

    def _step_over(self, queue: _Queue, node: int) -> None:
        """The next entries are of a layer that backs off: a trace's wait beside for it, guesses are dropped."""
        while queue and queue[0][0] == node:
            entry = queue.popleft()
            if queue is self._trace:
                self._parked.setdefault(node, []).append(entry)

    def _start_fill(self, now: float, fetches: list[Fetch]) -> None:
        if not self.flights.has_fill_room(now):
            return
        starting = self._is_start_going_on(now)
        if len(self._fill) > 1 and self.flights.policy.has_company:
            self._start_asks(self._fresh(now), self.flights.unseen_ask, starting, now, fetches)
        self._start_asks(self._fresh(now), self.flights.fill_ask, starting, now, fetches)
        if next(self._fresh(now), None) is None:  # a second request for a chunk would take the place of another's first
            late = (node for node in self._ready(now) if self._is_late(node, now))
            self._start_asks(late, self.flights.second_ask, starting, now, fetches)

    def _fresh(self, now: float) -> Iterator[int]:
        """Layers that may be filled now and of which something is not on its way; mostly no more than the first are
        looked at."""
        return (node for node in self._ready(now) if self.flights.layers[node].lacks)

    def _ready(self, now: float) -> Iterator[int]:
        """Layers that may be filled now."""
        return (node for node, begins_at in self._fill.items() if begins_at <= now and self._is_rested(node, now))

    def _start_asks(
        self,
        nodes: Iterable[int],
        ask_of: Callable[[int, float], Ask | None],
        starting: bool,
        now: float,
        fetches: list[Fetch],
    ) -> None:
        """Start what `ask_of` these layers, one after the other, gives."""
        may_start: bool | None = None  # not known: a request started since it was looked at
        for node in nodes:
            while True:
                # Asked before the policy: what it costs would be paid with each miss.
                if may_start is None:
                    may_start = self._may_fill(now, starting)
                if not may_start:
                    return
                ask = ask_of(node, now)
                if ask is None:
                    break
                # Beside a start one chunk at a time: a run of eight keeps a miss waiting 24 ms at 200 Mbit/s.
                if self.gate.is_low(now):
                    ask = replace(ask, chunks=ask.chunks[:1], count=min(ask.count, 1))
                fetches.append(self.flights.start(node, ask, Kind.FILL, now))
                may_start = None

    def _may_fill(self, now: float, starting: bool) -> bool:
        """Whether one more fill request may start, whatever its layer."""
        return self.flights.has_fill_room(now) and self.gate.is_open(now, starting, self.flights.busy[Kind.FILL])

    def _is_rested(self, node: int, now: float) -> bool:
        return self.flights.layers[node].backoff.ready_at(BULK_PAUSE_S) <= now

    def _is_late(self, node: int, now: float) -> bool:
        """Whether the last chunks of a layer, all in flight, are to be asked of others, too."""
        at = self.flights.fill_at(node)
        return at is not None and at <= now

    def _is_start_going_on(self, now: float) -> bool:
        """Whether there is more urgent work than fill that is under way or could be."""
        if self._ahead or (self._trace and self.lead.is_left) or self.flights.is_start_left():
            return True
        return any(self._is_on_its_way(node, chunk, now) for node, chunk in self.urgent)

    def _is_on_its_way(self, node: int, chunk: int, now: float) -> bool:
        layer = self.flights.layers[node]
        return layer.state[chunk] == FLYING or layer.startable(chunk, now, DEMAND_PAUSE_S)

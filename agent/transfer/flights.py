"""The requests of a node that are under way: what they ask for, of whom, and how many bytes they will bring. Pure.

Starting one marks its chunks, in the same step, so that no chunk is asked for twice unless that is meant: a hedge, or
the last chunks of a layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from agent.swarm.bitset import bits_of, pick, without
from agent.swarm.policy import Ask, Policy
from agent.transfer.fetch import RUN_CHUNKS, Fetch, Kind
from agent.transfer.layerstate import FLYING, MISSING, LayerState
from agent.transfer.line import Line
from agent.transfer.pace import Pace
from agent.transfer.window import Window
from imgdist.pack import CHUNK_MAX

BULK_SLOTS = 8
"""Trace and fill requests at once; the window in bytes usually says less (a guess)."""
SOURCES_MAX = 6
"""Asked in turn for what a reader waits for: six peers that do not answer take 40 s of its 60, all of it if one of them
sends this node elsewhere first; then they rank last."""
ENDGAME_S = 0.5
"""A layer's last chunks are asked of a second source if the first takes longer, and longer than all that is on its way
to the node should: a link that is busy brings nothing sooner by a second copy (a guess)."""
SLOW_CHUNK_S = 0.05
"""Where a chunk takes longer, a crowd's links have no room for guesses: about 20 Mbit/s (a guess)."""
PASSED_ON = 16
"""Links that a chunk passes one behind the other while the last node of the line waits for it (a guess). Of a longer
line, whoever waited in vain asks again, and is sent to any that has it by then."""
PASSED_ON_S = (1.0, 8.0)
"""The least and the most that is waited for that; the least is of a busy machine, not of a link (guesses)."""
HELD_CHUNKS = 4
"""On a slow link whoever has what is missed may be silent for so many chunks: it may be sending others (a guess)."""
PASSED_ON_FIRST_S = 4.0
"""While nothing is known of the link: who comes back too early takes a supernode's link from all (a guess)."""


@dataclass(slots=True, eq=False)
class Flight:
    """A request under way: its bytes as estimated when it started, and what the node had received by then. `chunks` are
    those it is answerable for; of an `any_of` request none before its answer begins. `source` was asked at `asked_at`.
    `is_helped`: it is silent, another one was asked for the same. It may be silent for `waits_s`, as what is asked of
    it is on its way to it."""

    fetch: Fetch
    started: float
    size_bytes: int
    delivered: int
    chunks: tuple[int, ...]
    source: Hashable | None
    asked_at: float
    unnamed: int
    bulk_bytes: int = 0
    is_helped: bool = False
    waits_s: float = 0.0


@dataclass(slots=True)
class Flights:
    """`alone`: only supernodes may be asked, and each request names all of them, to be tried in turn."""

    policy: Policy
    alone: bool
    window: Window = field(default_factory=Window)
    pace: Pace = field(default_factory=Pace)
    line: Line = field(default_factory=Line)
    layers: dict[int, LayerState] = field(default_factory=dict)
    busy: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    bulk_bytes: int = 0
    hedges: int = 0
    _flights: dict[int, Flight] = field(default_factory=dict)  # by the identity of their Fetch
    _extra: Counter[tuple[int, int]] = field(default_factory=Counter)  # requests for a chunk beyond the first

    def __iter__(self) -> Iterator[Flight]:
        """Every request under way."""
        return iter(self._flights.values())

    def asks(self, node: int, chunks: Sequence[int], now: float, *, in_order: bool = True) -> Iterator[Ask]:
        """How to ask for missing chunks that are wanted, in this order or all of them, as far as that may begin now. To
        be started one by one, or not at all."""
        copies = self.layers[node].copies
        in_turn = chunks if self.alone else [chunk for chunk in chunks if copies >> chunk & 1]
        for i in range(0, len(in_turn), RUN_CHUNKS):
            yield Ask(None, tuple(in_turn[i : i + RUN_CHUNKS]))
        rest = [] if self.alone else [chunk for chunk in chunks if not copies >> chunk & 1]
        if in_order and self._is_in_slow_line(now):
            return
        for ask in self.policy.spread(node, rest, now, in_order=in_order) if rest else ():
            if self._is_new(node, ask):
                yield ask

    def fill_ask(self, node: int, now: float) -> Ask | None:
        """How to ask for some of a layer's missing chunks."""
        layer = self.layers[node]
        if self.alone:
            run = layer.next_run(RUN_CHUNKS)
            return Ask(None, run) if run else None
        if copies := layer.lacks & layer.copies:
            return Ask(None, tuple(pick(copies, RUN_CHUNKS, float)))
        ask = self.policy.fill(node, layer.lacks, now) if layer.lacks else None
        return ask if ask is not None and self._is_new(node, ask) else None

    def second_ask(self, node: int, now: float) -> Ask | None:
        """How to ask for the last chunks of a layer, all in flight, a second time, where the first takes long."""
        late = {chunk: sources for chunk, (at, sources) in self._last(node).items() if at + self._late_s <= now}
        return self.policy.fill(node, bits_of(late), now, late) if late else None

    def unseen_ask(self, node: int, now: float) -> Ask | None:
        """How to ask for what no neighbour has of a layer."""
        layer = self.layers[node]
        lacks = without(layer.lacks, layer.copies)
        ask = self.policy.unseen(node, lacks, now) if lacks and not self.alone else None
        return ask if ask is not None and self._is_new(node, ask) else None

    def fill_at(self, node: int) -> float | None:
        """When time alone makes chunks of a layer ones that are asked for a second time."""
        return None if self.alone else min((at + self._late_s for at, _ in self._last(node).values()), default=None)

    def start(self, node: int, ask: Ask, kind: Kind, now: float, *, is_hedge: bool = False) -> Fetch:
        """Mark a request as started. It names one source if the policy picked that, else all in turn."""
        layer = self.layers[node]
        picked = ask.source is not None
        turns = self.line.turns if kind is Kind.DEMAND and self.is_in_slow_crowd(now) else None
        sources = [ask.source] if picked else self.policy.urgent(node, ask.chunks, now, turns=turns)[:SOURCES_MAX]
        unnamed = min(ask.count, ask.any_of.bit_count() - layer.asked_any) if ask.any_of else 0
        before, waits_s = self._first(node, ask.chunks, now) if kind is Kind.DEMAND and not picked else (None, 0.0)
        if before is not None:
            sources = [before, *(source for source in sources if source != before)]
        fetch = Fetch(node, ask.chunks, kind, ask.any_of, unnamed, is_hedge, picked, before, tuple(sources))
        for chunk in ask.chunks:
            self._take(layer, node, chunk)
        layer.asked_any += unnamed
        sizes = [layer.layout.size(chunk) for chunk in ask.chunks or [ask.any_of.bit_length() - 1]]
        size = self.window.estimate(sum(sizes) * max(1, unnamed))
        source = sources[0] if sources else None
        flight = Flight(fetch, now, size, self.window.delivered, ask.chunks, source, now, unnamed, waits_s=waits_s)
        self._flights[id(fetch)] = flight
        self.busy[kind] += 1
        self.hedges += is_hedge
        if not kind.is_urgent:
            flight.bulk_bytes = size
            self.bulk_bytes += size
            self.pace.take(size, now)
        if source is not None:
            self.policy.started(source, ask.chunks or unnamed, size, kind.is_urgent, now, flight.waits_s)
            if is_hedge and kind is Kind.DEMAND:
                self.policy.hedged()
        return fetch

    def named(self, fetch: Fetch, chunks: Sequence[int]) -> None:
        """The source of an `any_of` request says which chunks it sends."""
        flight, layer = self._flights[id(fetch)], self.layers.get(fetch.node)
        if layer is None:
            return
        layer.asked_any -= flight.unnamed
        flight.unnamed = 0
        flight.chunks = tuple(chunk for chunk in chunks if layer.state[chunk] in (MISSING, FLYING))
        for chunk in flight.chunks:
            self._take(layer, fetch.node, chunk)
        if not fetch.kind.is_urgent:
            size = self.window.estimate(sum(layer.layout.size(chunk) for chunk in chunks))
            self.bulk_bytes += size - flight.bulk_bytes
            flight.bulk_bytes = size

    def began(self, fetch: Fetch) -> None:
        """Only from now on bytes tell of the link: the answer was waited for."""
        self._flights[id(fetch)].delivered = self.window.delivered

    def turned(self, fetch: Fetch, source: Hashable, now: float, waits_s: float) -> None:
        """What a request's source did not serve is asked of another one, which may wait so long for it."""
        flight, urgent = self._flights[id(fetch)], fetch.kind.is_urgent
        if flight.source is not None:
            self.policy.ended(flight.source, flight.size_bytes, urgent, now)
        flight.source, flight.asked_at, flight.waits_s = source, now, waits_s
        self.policy.started(source, fetch.chunks or fetch.count, flight.size_bytes, urgent, now, waits_s)

    def end(self, fetch: Fetch, now: float, round_trip_s: float | None) -> tuple[Flight, list[int]]:
        """A request is over. Also returns its chunks that did not come and that no other request may bring yet."""
        flight = self._flights.pop(id(fetch))
        self.busy[fetch.kind] -= 1
        self.hedges -= fetch.is_hedge
        self.bulk_bytes -= flight.bulk_bytes
        if flight.source is not None:
            self.policy.ended(flight.source, flight.size_bytes, fetch.kind.is_urgent, now)
        if round_trip_s is not None:
            waited = flight.waits_s > 0.0
            self.window.answered(flight.delivered, flight.started, round_trip_s, now, flight.source, waited=waited)
        alone = [chunk for chunk in flight.chunks if not self._is_asked_elsewhere(fetch.node, chunk)]
        layer = self.layers.get(fetch.node)
        if layer is None:
            return flight, []
        layer.asked_any -= flight.unnamed
        return flight, [chunk for chunk in alone if layer.state[chunk] == FLYING]

    def sources_of(self, node: int, chunk: int) -> list[Hashable]:
        """Whom a chunk is asked of at the moment."""
        asked = (flight.source for flight in self if flight.fetch.node == node and chunk in flight.chunks)
        return [source for source in asked if source is not None]

    @property
    def link_s(self) -> float:
        """How long this node's link takes for all that is on its way: nobody is late before."""
        return sum(flight.size_bytes for flight in self) / self.window.rate_bytes_per_s

    @property
    def passed_on_s(self) -> float:
        """How long to wait for chunks that are on their way to somebody: links like this node's pass them on one to the
        other."""
        chunk_s = self._chunk_s
        return min(max(PASSED_ON_S[0], PASSED_ON * chunk_s), PASSED_ON_S[1]) if chunk_s else PASSED_ON_FIRST_S

    def _is_in_slow_line(self, now: float) -> bool:
        """Whether this node stays with the one before it in a line, on links on which a guess would hold up a miss:
        there the misses of the first one are prophecy enough."""
        return self._before(now) is not None and self._chunk_s >= SLOW_CHUNK_S

    def is_in_slow_crowd(self, now: float) -> bool:
        """Whether this node was served in a line lately, on links of which each is needed for one node."""
        return self.line.is_crowd(now) and self._chunk_s >= SLOW_CHUNK_S

    @property
    def _chunk_s(self) -> float:
        """How long this node's link takes for a chunk; 0.0: not known."""
        return self.window.estimate(CHUNK_MAX) / self.window.rate_bytes_per_s

    def is_helped(self, fetch: Fetch) -> bool:
        """Whether another source had to be asked for the same, as this one's was silent."""
        return self._flights[id(fetch)].is_helped

    def _before(self, now: float) -> Hashable | None:
        source = self.line.before(now)
        return source if source is not None and self.policy.is_sound(source, now) else None

    def _first(self, node: int, chunks: Sequence[int], now: float) -> tuple[Hashable | None, float]:
        """Whom in a line to ask for a miss first, and for how long that one may wait for it: the one before this node.
        On slow links, where each is needed for one node: one that has these chunks, if it stands between the two, or is
        ahead of this node and was stayed with."""
        before = self._before(now)
        if before is None:
            return None, 0.0
        if self._chunk_s < SLOW_CHUNK_S:
            return (before, self.passed_on_s) if self.line.stands_before(before) else (None, 0.0)
        holders = self.policy.holders(node, chunks, now)
        first = self.line.next_to(before, holders, now)
        if first is None:
            return None, 0.0
        return first, HELD_CHUNKS * self._chunk_s if first in holders else self.passed_on_s

    def awaited(self) -> Iterator[tuple[float, Flight]]:
        """Requests that somebody waits for, each the only one for its chunks so far, and when their sources will have
        been silent for too long."""
        if self.alone or not (self.busy[Kind.DEMAND] or self.busy[Kind.NOW]):
            return
        for flight in list(self):
            if flight.fetch.kind.is_urgent and not flight.is_helped and not flight.fetch.is_hedge:
                late_at = self.policy.late_at(flight.source, flight.asked_at)
                if late_at is not None:
                    yield max(late_at, flight.asked_at + max(self.link_s, flight.waits_s)), flight

    def is_start_left(self) -> bool:
        """Whether a request that is not fill's has still to bring something. One whose chunks others brought meanwhile
        does nothing but wait for the time-out of a silent source: it holds up nobody."""
        busy = self.busy
        if not (busy[Kind.DEMAND] or busy[Kind.NOW] or busy[Kind.TRACE]):
            return False
        return any(self._is_left(flight) for flight in self if flight.fetch.kind is not Kind.FILL)

    def bulk_nodes(self) -> set[int]:
        """Layers of which something is under way that nobody waits for."""
        return {flight.fetch.node for flight in self if flight.bulk_bytes}

    def in_flight(self, node: int) -> int:
        """Requests of a layer that are not over."""
        return sum(flight.fetch.node == node for flight in self)

    def has_room(self, now: float) -> bool:
        """Whether one more trace or fill request may start."""
        in_flight = self.busy[Kind.TRACE] + self.busy[Kind.FILL]
        return in_flight < BULK_SLOTS and self.bulk_bytes < self.window.size_bytes and self.pace.ready_at <= now

    def has_trace_room(self, now: float) -> bool:
        """Whether one more request for what is foretold may start."""
        return self.has_room(now) and self.bulk_bytes < self.window.ahead_bytes

    def trace_ask(self, ask: Ask) -> Ask:
        """As much of it as one request for what is foretold should bring: there are to be two in flight."""
        most = max(1, self.window.ahead_bytes // max(1, 2 * self.window.estimate(CHUNK_MAX)))
        return replace(ask, chunks=ask.chunks[:most], count=min(ask.count, most))

    def has_fill_room(self, now: float) -> bool:
        """Whether one more fill request may start, as far as its source does not matter."""
        return self.has_room(now) and (self.alone or not self.policy.is_full)

    @property
    def _late_s(self) -> float:
        return max(ENDGAME_S, self.link_s)

    def _last(self, node: int) -> dict[int, tuple[float, list[Hashable]]]:
        """A layer's last chunks, once each is in flight: since when and from whom, if from one source so far. Without
        a seal none are the last."""
        layer = self.layers[node]
        if layer.lacks or not layer.sealed or not 0 < layer.absent <= self.policy.limits.endgame:
            return {}
        return {
            chunk: (flight.started, [flight.source])
            for flight in self
            if flight.fetch.node == node and flight.source is not None
            for chunk in flight.chunks
            if layer.state[chunk] == FLYING and (node, chunk) not in self._extra
        }

    def asked_once(self, flight: Flight) -> tuple[int, ...]:
        """What a request is still to bring and no other one may bring."""
        node, layer = flight.fetch.node, self.layers[flight.fetch.node]
        return tuple(
            chunk for chunk in flight.chunks if layer.state[chunk] == FLYING and (node, chunk) not in self._extra
        )

    def _is_left(self, flight: Flight) -> bool:
        layer = self.layers.get(flight.fetch.node)
        return bool(flight.unnamed) or (
            layer is not None and any(layer.state[chunk] == FLYING for chunk in flight.chunks)
        )

    def _is_new(self, node: int, ask: Ask) -> bool:
        """Whether what a source may choose from is more than others were left to choose already, who have not said yet
        what they send."""
        asked = self.layers[node].asked_any
        return not (ask.any_of and asked) or ask.any_of.bit_count() > max(asked, self.policy.limits.few)

    def _take(self, layer: LayerState, node: int, chunk: int) -> None:
        if layer.state[chunk] == FLYING:
            self._extra[node, chunk] += 1
        else:
            layer.put(chunk, FLYING)

    def _is_asked_elsewhere(self, node: int, chunk: int) -> bool:
        """Whether a chunk of a request that is over is still asked for by another one."""
        others = self._extra.pop((node, chunk), 0)
        if others > 1:
            self._extra[node, chunk] = others - 1
        return others > 0

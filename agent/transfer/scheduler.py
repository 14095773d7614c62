"""What to fetch next on this node: demand, then what a job waits for, then traces, then fill. Pure policy.

Every method is a synchronous step of (state, event, now); `due` decides and marks in one step, so that no chunk is
asked for twice at once, but where that is meant. A demand for a chunk in flight waits for it; a demand for a queued
chunk makes it due at once and the queue then skips it. From whom is the policy's to say (agent/swarm/policy.py). The
caller locks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence

from agent.swarm.bitset import bits_of
from agent.swarm.policy import Policy
from agent.transfer.backoff import BULK_PAUSE_S, DEMAND_PAUSE_S, Backoff, Rest
from agent.transfer.bulk import Bulk
from agent.transfer.fetch import Fetch, Kind, Landed
from agent.transfer.flights import Flights
from agent.transfer.gate import FillGate
from agent.transfer.layerstate import FLYING, HERE, MISSING, RESTING, LayerState, Layout
from agent.transfer.line import Line
from agent.transfer.pace import Pace
from agent.transfer.urgent import Urgent
from agent.transfer.window import Window
from imgdist.errors import NotFoundError
from imgdist.pack import BLOCK

AHEAD_CHUNKS = 4
"""Fetched behind a miss where no trace is known. [measured: misses 901 -> 400-450, +30 % bytes; 8: 430, +59 %]"""
AHEAD_ROUND_TRIP_S = 0.002
"""Below this a chunk ahead costs more than the miss it saves: a round trip of 1 ms, and up to 1 ms until the first byte
leaves a busy server (a guess)."""
AHEAD_BYTES = 64 * 1024
"""Of a chunk on the wire. While these take longer than the round trip, the link is what a start waits for, and chunks
ahead take a third of it (a guess)."""

_NEVER = float("inf")


class Scheduler:
    """The queues of one node. `random` returns [0, 1).

    After `read_deadline_s` without asking again the view has answered EIO and nobody waits (infinite: it holds reads).
    `swarm`: other agents may be sources, so the policy picks one for each request that is not a reader's; otherwise
    every request names all sources, to be tried in turn.
    """

    def __init__(
        self,
        random: Callable[[], float],
        read_deadline_s: float = 60.0,
        *,
        policy: Policy | None = None,
        swarm: bool = False,
        gate: FillGate | None = None,
        pace: Pace | None = None,
        line: Line | None = None,
    ) -> None:
        self._random = random
        self.policy = policy or Policy(random)
        self.gate = gate or FillGate()
        self.flights = Flights(self.policy, alone=not swarm, pace=pace or Pace(), line=line or Line())
        self._layers = self.flights.layers
        self._urgent = Urgent(self.flights, read_deadline_s)
        self._bulk = Bulk(self.flights, self._urgent, self.gate)
        self._rest = Rest()
        self._backing_off: set[int] = set()

    @property
    def window(self) -> Window:
        """How much may be in flight."""
        return self.flights.window

    def running_s(self, now: float) -> float:
        """`now`, less the time in which a reader waited."""
        return now - self._urgent.stalled_s(now)

    # Events.

    def add(self, node: int, layout: Layout, missing: Sequence[int], *, sealed: bool = True) -> bool:
        """A layer whose chunks `missing` are not here. True if it is complete already.

        If it is not `sealed`, more chunks may follow (`grow`), and until its `seal` it is never complete.
        """
        layer = self._layers[node] = LayerState(layout, sealed=sealed)
        layer.grow(missing, layout.chunk_count)
        return layer.is_whole

    def grow(self, node: int, missing: Sequence[int], count: int) -> None:
        """A layer's table has `count` chunks by now; of the new ones `missing` are not here."""
        self._layers[node].grow(missing, count)

    def seal(self, node: int) -> bool:
        """No chunks will follow. True if the layer is complete already."""
        layer = self._layers[node]
        layer.sealed = True
        return layer.is_whole

    def copyable(self, node: int, chunks: Iterable[int]) -> None:
        """Other layers on this disk have these chunks: no source need be chosen for them."""
        layer = self._layers.get(node)
        if layer is not None and not self.flights.alone:
            layer.copies |= bits_of(chunks)

    def remove(self, node: int) -> None:
        """Forget a layer; what is in flight for it lands nowhere."""
        if self._layers.pop(node, None) is not None:
            self._backing_off.discard(node)
            self._bulk.remove(node)
            self._urgent.remove(node)

    def miss(self, node: int, start: int, length: int, now: float) -> bool | None:
        """A reader waits for the image's bytes [start, start + length).

        True: its chunks are wanted now. False: all are here, tell the view. None: no such layer.
        """
        layer = self._layers.get(node)
        if layer is None:
            return None
        chunks = layer.layout.chunks_between(start, start + length)
        absent = [chunk for chunk in chunks if layer.state[chunk] != HERE]
        if not absent:
            return False
        for chunk in absent:
            self._urgent.read(node, chunk, now)
            self._hurry(node, chunk)
        self.gate.missed(now)
        if self._is_far and not (layer.traced and self._bulk.lead.is_left):
            self._guess_behind(node, layer, chunks[-1] + 1)
        return True

    def touched(self, touches: Iterable[tuple[int, int, int]], now: float) -> None:
        """(node, first block, blocks) that nobody had read before, here already or not: something starts."""
        self.gate.read(now)
        for node, first, count in touches:
            layer = self._layers.get(node)
            if layer is not None and layer.traced:
                for chunk in layer.layout.chunks_between(first * BLOCK, (first + count) * BLOCK):
                    self._bulk.lead.touched(node, chunk)

    def want(self, node: int, chunks: Iterable[int]) -> list[int]:
        """A job waits for these chunks; returns those that are not here yet. NotFoundError for one that a layer without
        a seal has not got yet."""
        layer = self._layers[node]
        chunks = tuple(chunks)
        if (last := max(chunks, default=-1)) >= len(layer.state):
            raise NotFoundError(f"chunk {last} of layer {node} is not known yet: it has {len(layer.state)}")
        absent = [chunk for chunk in chunks if layer.state[chunk] != HERE]
        for chunk in absent:
            self._urgent.want(node, chunk)
            self._hurry(node, chunk)
        return absent

    def give_up(self, node: int, chunks: Iterable[int]) -> None:
        """The job no longer waits."""
        for chunk in chunks:
            self._urgent.give_up(node, chunk)

    def trace(self, order: Iterable[tuple[int, int]], *, goes_on: bool = False) -> bool:
        """(node, chunk) in the order that a start is expected to touch them; False if nothing of it is to be fetched.
        `goes_on`: some of it was told before; what is left of that takes its place in this order."""
        missing: list[tuple[int, int]] = []
        for node, chunk in order:
            layer = self._layers.get(node)
            if layer is not None and 0 <= chunk < len(layer.state):
                layer.traced = True
                if layer.state[chunk] == MISSING:
                    missing.append((node, chunk))
        if missing:
            self._bulk.trace(missing, goes_on=goes_on)
        return bool(missing)

    def fill(self, node: int, now: float = 0.0) -> None:
        """Complete this layer when there is nothing better to do, after those asked before."""
        if not self._layers[node].is_whole:
            self._bulk.fill(node, self.flights.pace.begins_at(now, self._random()))

    def drain(self, on: bool) -> None:
        """Fill without waiting for quiet, every layer there is; or no longer."""
        self.gate.ungated = on
        if on:
            self._bulk.fill_now(self.incomplete())

    def is_wanted(self, node: int, chunk: int) -> bool:
        """Whether a reader waits for the chunk: then answer first, write after."""
        return self._urgent.is_wanted(node, chunk)

    def expects(self, node: int, chunk: int) -> bool:
        """Whether the chunk is on its way."""
        layer = self._layers.get(node)
        return layer is not None and chunk < len(layer.state) and layer.state[chunk] == FLYING

    def named(self, fetch: Fetch, chunks: Sequence[int]) -> None:
        """The source of an `any_of` request says which chunks it sends."""
        self.flights.named(fetch, chunks)

    def redirected(self, fetch: Fetch) -> None:
        """A source knows who passes these chunks on: to ask a second time would take its link from others."""
        self._urgent.redirected(fetch)

    def turned(self, fetch: Fetch, source: Hashable, now: float, waits_s: float) -> None:
        """What a request's source did not serve is asked of another one, which may wait so long for it."""
        self.flights.turned(fetch, source, now, waits_s)

    def landed(self, node: int, chunk: int, answered_at: float) -> Landed:
        """A verified chunk is in the image and marked present; readers were answered at `answered_at`."""
        layer = self._layers.get(node)
        if layer is None or layer.state[chunk] == HERE:
            return Landed(None, False)
        layer.came(chunk)
        if layer.traced:
            self._bulk.lead.landed(node, chunk)
        self._backing_off.discard(node)
        if layer.is_whole:
            self._bulk.filled(node)
        return Landed(self._urgent.landed(node, chunk, answered_at), layer.is_whole)

    def is_urgent(self, node: int, chunk: int) -> bool:
        """Whether a reader or a job waits for the chunk."""
        return (node, chunk) in self._urgent

    def passed(self, node: int, chunk: int, answered_at: float) -> float | None:
        """A verified chunk was given to those who wait for it, and is not in the image: how long a reader waited."""
        layer = self._layers.get(node)
        if layer is None:
            return None
        if layer.state[chunk] != HERE:
            layer.wake(chunk)
        return self._urgent.landed(node, chunk, answered_at)

    def disk_full(self, now: float) -> None:
        """What nobody waits for is not fetched for a while."""
        self._bulk.suspend(now)

    def finished(
        self,
        fetch: Fetch,
        now: float,
        round_trip_s: float | None = None,
        bad: Collection[int] = (),
        *,
        goes_on: bool = False,
    ) -> None:
        """A request is over, its chunks landed or not; `round_trip_s` to its answer's first byte, if it was whole.

        Chunks that came wrong (`bad`) rest, each by itself; where no chunk of several came, the layer rests, too. With
        `goes_on` it does not: the policy knows what was wrong, and has others to ask.
        """
        flight, failed = self.flights.end(fetch, now, round_trip_s)
        if fetch.kind is Kind.FILL:
            self.gate.filled(now, now - flight.started)
        layer = self._layers.get(fetch.node)
        if layer is None:
            return
        none_came = len(failed) == len(flight.chunks)
        is_empty = none_came and (failed or fetch.any_of) and round_trip_s is None
        if (failed or is_empty) and not goes_on and (not bad or (none_came and len(failed) > 1)):
            if not layer.sealed:
                layer.backoff.failures = 0  # what is not there yet will be in a moment
            layer.backoff.failed(now, self._random())
            self._backing_off.add(fetch.node)
        for chunk in failed:
            if chunk in bad:
                self._lay_down(fetch.node, chunk, now)
            else:
                layer.wake(chunk)
        if fetch.kind is Kind.TRACE:
            self._bulk.trace_again(fetch.node, [chunk for chunk in failed if chunk not in bad])

    def lost(self, node: int, chunks: Iterable[int]) -> None:
        """The image has these chunks no more: they are missing again."""
        layer = self._layers[node]
        for chunk in chunks:
            if layer.state[chunk] == HERE:
                layer.absent += 1
                layer.wake(chunk)

    def troubled(self, now: float) -> list[Hashable]:
        """Sources to look at while somebody waits: those in trouble. None, if nobody does."""
        return self.policy.troubled(now) if self._urgent.has_work else []

    def revived(self, source: Hashable, now: float) -> None:
        """A source that was away is back: what somebody waits for is asked for at once."""
        self.policy.revived(source, now)
        self._urgent.revived(source, now)
        for node in {node for node, _ in self._urgent}:
            self._layers[node].backoff.failures = 0

    def in_flight(self, node: int) -> int:
        """Requests of a layer that are not finished."""
        return self.flights.in_flight(node)

    def incomplete(self) -> list[int]:
        """Layers that lack chunks, those without a seal left out: when they are whole is not ours to say."""
        return [node for node, layer in self._layers.items() if layer.sealed and not layer.is_whole]

    # Decisions.

    def due(self, now: float) -> list[Fetch]:
        """The requests to start now, marked as started."""
        fetches: list[Fetch] = []
        self._wake(now)
        self._urgent.start(now, fetches)
        self._bulk.start(now, fetches)
        return fetches

    def due_to_readers(self, now: float) -> list[Fetch]:
        """Those of them that readers wait for, as far as that is known without looking at all the rest."""
        fetches: list[Fetch] = []
        self._urgent.start_wanted(now, fetches)
        return fetches

    @property
    def has_use_for_news(self) -> bool:
        """Whether `due` may start more when others have more than before."""
        return self._urgent.has_work or self._bulk.has_work

    def wake_at(self, now: float) -> float | None:
        """When `due` may say more without a new event; None: never."""
        best = _NEVER
        for at in self._wake_times(now):
            if at is not None and now < at < best:
                best = at
        return best if best < _NEVER else None

    def _wake_times(self, now: float) -> Iterator[float | None]:
        yield from self._urgent.wake_times()
        yield from self._bulk.wake_times(now)
        if self._urgent.has_work:
            yield self.policy.troubled_at(now)
        yield self._rest.next_at()
        if self._backing_off:
            urgent = {node for node, _ in self._urgent}
            for node in self._backing_off:
                yield self._layers[node].backoff.ready_at(DEMAND_PAUSE_S if node in urgent else BULK_PAUSE_S)
        if not self.flights.alone and self.has_use_for_news:
            yield self.policy.next_at(now)

    @property
    def _is_far(self) -> bool:
        round_trip, rate = self.window.round_trip_s, self.window.rate_bytes_per_s
        if round_trip is None:  # in a crowd all answers may be waited for
            return self.flights.alone
        return round_trip >= max(AHEAD_ROUND_TRIP_S, AHEAD_BYTES / rate)

    def _guess_behind(self, node: int, layer: LayerState, first: int) -> None:
        for chunk in range(first, min(first + AHEAD_CHUNKS, len(layer.state))):
            if layer.layout.is_metadata(chunk):
                break
            if layer.state[chunk] == MISSING:
                self._bulk.guess(node, chunk)

    def _lay_down(self, node: int, chunk: int, now: float) -> None:
        """A chunk came wrong: let it rest."""
        layer = self._layers[node]
        layer.put(chunk, RESTING)
        backoff = layer.bad.setdefault(chunk, Backoff())
        backoff.failed(now, self._random())
        self._rest.put(backoff.ready_at(BULK_PAUSE_S), node, chunk)
        if (node, chunk) in self._urgent:
            self._hurry(node, chunk)

    def _hurry(self, node: int, chunk: int) -> None:
        """Somebody waits for a chunk: if it rests, then no longer than that allows."""
        layer = self._layers[node]
        if layer.state[chunk] == RESTING:
            self._rest.put(layer.bad[chunk].ready_at(DEMAND_PAUSE_S), node, chunk)

    def _wake(self, now: float) -> None:
        """Chunks whose rest is over may start again."""
        while (key := self._rest.pop(now)) is not None:
            node, chunk = key
            layer = self._layers.get(node)
            if layer is not None and layer.state[chunk] == RESTING:
                pause = DEMAND_PAUSE_S if key in self._urgent else BULK_PAUSE_S
                if layer.bad[chunk].ready_at(pause) <= now:
                    layer.wake(chunk)

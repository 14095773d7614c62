"""Chunks that somebody waits for: readers first, then jobs, in the order of asking. Pure; the caller locks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from agent.swarm.policy import Ask
from agent.transfer.backoff import DEMAND_PAUSE_S
from agent.transfer.fetch import Fetch, Kind
from agent.transfer.flights import Flights
from agent.transfer.layerstate import FLYING
from agent.transfer.stall import Stall

DEMAND_SLOTS = 8
"""Requests at once that somebody waits for; a start has never more than 2 misses outstanding (a guess)."""
NOW_SLOTS = 6
"""Of the demand slots, so that a miss always finds one free."""
HEDGE_SLOTS = 4
"""Second requests at once, beside the demand slots: those may all hang at one dead source (a guess)."""
NOW_CHUNKS = 64
"""Of what a job waits for in one layer, so many are spread over sources at once: about the slots' worth (a guess)."""


@dataclass(slots=True)
class _Want:
    asked_at: float
    expires_at: float


@dataclass(slots=True)
class Urgent:
    """After `read_deadline_s` without asking again the view has answered EIO and nobody waits."""

    flights: Flights
    read_deadline_s: float
    stall: Stall = field(default_factory=Stall)
    _wanted: dict[tuple[int, int], _Want] = field(default_factory=dict)
    _now: dict[tuple[int, int], None] = field(default_factory=dict)
    _hedge_at: dict[tuple[int, int], float] = field(default_factory=dict)  # wanted chunks in flight: when they are late

    def read(self, node: int, chunk: int, now: float) -> None:
        """A reader waits for the chunk."""
        want = self._wanted.get((node, chunk))
        if want is None:
            want = self._wanted[node, chunk] = _Want(now, 0.0)
            if self.flights.layers[node].state[chunk] == FLYING:
                self._plan_hedge(node, chunk, now)
        want.expires_at = now + self.read_deadline_s
        self.stall.look(now, waits=True)

    def want(self, node: int, chunk: int) -> None:
        """A job waits for the chunk."""
        self._now[node, chunk] = None

    def give_up(self, node: int, chunk: int) -> None:
        """The job no longer waits."""
        self._now.pop((node, chunk), None)

    def stalled_s(self, now: float) -> float:
        """How long readers waited until now."""
        self.stall.look(now, waits=bool(self._wanted))
        return self.stall.seconds(now)

    def revived(self, source: Hashable, now: float) -> None:
        """A source is back: what readers wait for at others, which may still be away, is asked a second time."""
        for node, chunk in self._wanted:
            is_flying = self.flights.layers[node].state[chunk] == FLYING
            if is_flying and source not in self.flights.sources_of(node, chunk):
                self._hedge_at[node, chunk] = now

    def remove(self, node: int) -> None:
        """Forget a layer."""
        self._wanted = {key: want for key, want in self._wanted.items() if key[0] != node}
        self._now = {key: None for key in self._now if key[0] != node}
        self._hedge_at = {key: at for key, at in self._hedge_at.items() if key[0] != node}

    def is_wanted(self, node: int, chunk: int) -> bool:
        """Whether a reader waits for the chunk."""
        return (node, chunk) in self._wanted

    def landed(self, node: int, chunk: int, answered_at: float) -> float | None:
        """The chunk is here; how long a reader waited."""
        key = (node, chunk)
        self._now.pop(key, None)
        self._hedge_at.pop(key, None)
        want = self._wanted.pop(key, None)
        self.stall.look(answered_at, waits=bool(self._wanted))
        return max(0.0, answered_at - want.asked_at) if want else None

    def redirected(self, fetch: Fetch) -> None:
        """Who passes the chunks on is known: only silence makes them late."""
        for chunk in fetch.chunks:
            self._hedge_at.pop((fetch.node, chunk), None)

    @property
    def has_work(self) -> bool:
        """Whether anybody waits."""
        return bool(self._wanted or self._now)

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._wanted or key in self._now

    def __iter__(self) -> Iterator[tuple[int, int]]:
        yield from self._wanted
        yield from self._now

    def start(self, now: float, fetches: list[Fetch]) -> None:
        """Start what may start."""
        self.start_wanted(now, fetches)
        self.stall.look(now, waits=bool(self._wanted))
        if self._hedge_at:
            self._start_hedges(now, fetches)
        self._help(now, fetches)
        if self._now:
            self._start_now(now, fetches)

    def start_wanted(self, now: float, fetches: list[Fetch]) -> None:
        """Start what readers wait for."""
        flights = self.flights
        for key, want in list(self._wanted.items()):
            if want.expires_at <= now:
                del self._wanted[key]
                self._hedge_at.pop(key, None)
                continue
            if not self._has_slot():
                return
            node, chunk = key
            if flights.layers[node].startable(chunk, now, DEMAND_PAUSE_S):
                fetch = flights.start(node, Ask(None, (chunk,)), Kind.DEMAND, now)
                fetches.append(fetch)
                if fetch.before is None and not flights.is_in_slow_crowd(now):
                    self._plan_hedge(node, chunk, now)

    def wake_times(self) -> Iterator[float]:
        """When a reader has given up, or what somebody waits for is late."""
        for want in self._wanted.values():
            yield want.expires_at
        yield from self._hedge_at.values()
        for late_at, _ in self.flights.awaited():
            yield late_at

    def _plan_hedge(self, node: int, chunk: int, now: float) -> None:
        if not self.flights.alone and self.flights.policy.has_choice:
            at = self.flights.policy.hedge_at(now, now)
            if at is not None:
                self._hedge_at[node, chunk] = max(at, now + self.flights.link_s)

    def _start_hedges(self, now: float, fetches: list[Fetch]) -> None:
        flights = self.flights
        for key in [key for key, at in self._hedge_at.items() if at <= now]:
            del self._hedge_at[key]
            node, chunk = key
            if flights.hedges >= HEDGE_SLOTS or flights.layers[node].state[chunk] != FLYING:
                continue
            other = flights.policy.second(node, (chunk,), now, flights.sources_of(node, chunk))
            if other is not None:
                fetches.append(flights.start(node, Ask(other, (chunk,)), Kind.DEMAND, now, is_hedge=True))

    def _help(self, now: float, fetches: list[Fetch]) -> None:
        """What somebody waits for at a source that is silent for too long is asked of another one, once, whatever the
        budget of second requests: readers would wait for a time-out, a mount for its metadata."""
        flights = self.flights
        for late_at, flight in flights.awaited():
            node = flight.fetch.node
            if late_at > now or node not in flights.layers:
                continue
            chunks = flights.asked_once(flight)
            if flights.hedges >= HEDGE_SLOTS:
                return
            other = flights.policy.second(node, chunks, now, [flight.source]) if chunks else None
            if other is not None:
                flight.is_helped = True
                fetches.append(flights.start(node, Ask(other, chunks), flight.fetch.kind, now, is_hedge=True))

    def _start_now(self, now: float, fetches: list[Fetch]) -> None:
        wanted: dict[int, list[int]] = {}
        for node, chunk in self._now:
            if self.flights.layers[node].startable(chunk, now, DEMAND_PAUSE_S):
                wanted.setdefault(node, []).append(chunk)
        for node, chunks in wanted.items():
            for ask in self.flights.asks(node, chunks[:NOW_CHUNKS], now, in_order=False):
                if self.flights.busy[Kind.NOW] >= NOW_SLOTS or not self._has_slot():
                    return
                fetches.append(self.flights.start(node, ask, Kind.NOW, now))

    def _has_slot(self) -> bool:
        busy = self.flights.busy
        return busy[Kind.DEMAND] + busy[Kind.NOW] - self.flights.hedges < DEMAND_SLOTS

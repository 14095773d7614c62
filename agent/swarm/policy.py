"""From whom to take chunks: one node's view of its neighbours and supernodes, for all layers. Pure policy.

Every method is a synchronous step of (state, event, now); the caller locks. What to fetch and when is the scheduler's
(agent/transfer/scheduler.py). Rules, in the order in which they matter: demand goes to who answers first; fill takes
what the fewest neighbours have; what nobody near has comes from the supernode, which picks what it has sent least
(`any_of`), so that nodes that start together get different chunks and can help each other; a busy source is left alone;
the last chunks are asked of two. A quarantined source is asked only for what nobody else has, never not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence

from agent.swarm.asks import Ask, Limits
from agent.swarm.bitset import bits_of
from agent.swarm.choice import Choice
from agent.swarm.hedging import Hedge
from agent.swarm.holdings import Holding, Table
from agent.swarm.neighbours import SILENCE_S, Neighbour, SourceKind, SourceRow
from agent.swarm.quarantine import Suspicion
from agent.swarm.totals import Totals

__all__ = ["Ask", "Holding", "Limits", "Policy", "SourceKind", "SourceRow"]


Layer = Hashable
Source = Hashable

_NOTORIOUS = 1024
"""Liars and failing ones that left and are remembered, should they come again (a guess)."""


class Policy:
    """One node's. `random` returns [0, 1). Events about sources that are not (or no longer) joined are ignored."""

    def __init__(self, random: Callable[[], float], limits: Limits | None = None) -> None:
        self._random = random
        self.limits = limits or Limits()
        self._all: dict[Source, Neighbour] = {}
        self._supernodes: list[Neighbour] = []
        self._tables: dict[Layer, Table] = {}
        self._watched: dict[Source, Neighbour] = {}  # asked for something, or failed: few of many
        self._notorious: dict[Source, Neighbour] = {}
        self._suspicion = Suspicion()
        self._hedge = Hedge(self.limits.hedge_quantile, self.limits.hedge_floor_s, self.limits.hedge_share)
        self._totals = Totals(self.limits)
        self._choice = Choice(random, self.limits, self._supernodes, self._totals)
        self._latest = 0.0

    # Who is there, and what they have.

    def join(self, source: Source, kind: SourceKind, *, near: bool = False, now: float = 0.0) -> None:
        """A source may be asked from now on. Again: nothing changes."""
        if source in self._all:
            return
        neighbour = self._all[source] = Neighbour(source, kind, near)
        neighbour.serving_since = now
        if (before := self._notorious.pop(source, None)) is not None:
            neighbour.comes_again(before)
        if kind is SourceKind.SUPERNODE:
            self._supernodes.append(neighbour)

    def leave(self, source: Source) -> None:
        """It is gone, with what it had; its lies are remembered, and that it always failed."""
        neighbour = self._all.pop(source, None)
        self._watched.pop(source, None)
        if neighbour is None:
            return
        self._totals.left(neighbour)
        if neighbour in self._supernodes:
            self._supernodes.remove(neighbour)
        for layer in list(self._tables):
            self.closed(source, layer)
        if neighbour.is_notorious:
            self._notorious[source] = neighbour
            while len(self._notorious) > _NOTORIOUS:
                del self._notorious[next(iter(self._notorious))]

    def opened(self, source: Source, layer: Layer, have: int | Holding) -> None:
        """It has the set `have` of a layer. A Holding is kept: its owner may change it (the simulation)."""
        neighbour = self._all.get(source)
        if neighbour is not None:
            holding = have if isinstance(have, Holding) else Holding(have)
            self._tables.setdefault(layer, Table()).put(neighbour, holding)

    def got(self, source: Source, layer: Layer, chunks: int) -> None:
        """It has this set as well."""
        neighbour = self._all.get(source)
        if neighbour is not None:
            self._tables.setdefault(layer, Table()).add(neighbour, chunks)

    def lost(self, source: Source, layer: Layer, chunks: Iterable[int]) -> bool:
        """It lacks one of these at least, though it said to have them. False: it never said so (a supernode)."""
        table = self._tables.get(layer)
        return table is not None and table.remove(source, bits_of(chunks))

    def denied(self, source: Source, now: float) -> bool:
        """Asked for what it told to have it said that it has it not. True: it is in quarantine from now on."""
        neighbour = self._all.get(source)
        return neighbour is not None and neighbour.denied(now)

    def closed(self, source: Source, layer: Layer) -> None:
        """It no longer serves a layer."""
        table = self._tables.get(layer)
        if table is not None:
            table.drop(source)
            if not table.pairs:
                del self._tables[layer]

    # What happens.

    def started(
        self,
        source: Source,
        chunks_or_count: Sequence[int] | int,
        size_bytes: int,
        urgent: bool,
        now: float,
        waits_s: float = 0.0,
    ) -> None:
        """A request went out; `size_bytes` estimates its bodies. Urgent: a reader or a job waits for it. `waits_s`: so
        long it may wait there for what is on its way to the source."""
        self._latest = now
        if urgent:
            self._hedge.asked()
        neighbour = self._all.get(source)
        if neighbour is not None:
            self._watched[source] = neighbour
            self._totals.started(neighbour, size_bytes, urgent, now, waits_s)

    def hedged(self) -> None:
        """The request just started is a second one for a chunk in flight (see `hedge_at`)."""
        self._hedge.hedged()

    def answered(
        self, source: Source, round_trip_s: float, queue_bytes: int | None, now: float, urgent: bool = True
    ) -> None:
        """The first byte of an answer. What fill's answers take says nothing of when to hedge: they queue."""
        if urgent:
            self._hedge.answered(round_trip_s)
        neighbour = self._all.get(source)
        if neighbour is not None:
            neighbour.answered(round_trip_s, queue_bytes, now)

    def came(self, source: Source, size_bytes: int, now: float, chunks: int = 1) -> None:
        """So many verified chunks came. Lies are forgiven slowly: a source that lies now and then stays suspect."""
        self._suspicion.cleared()
        self._totals.came(size_bytes, chunks)
        neighbour = self._all.get(source)
        if neighbour is not None:
            neighbour.came(size_bytes, now)

    def ended(self, source: Source, size_bytes: int, urgent: bool, now: float) -> None:
        """A request is over, however; `size_bytes` as when it started."""
        neighbour = self._all.get(source)
        if neighbour is not None:
            self._totals.ended(neighbour, size_bytes, urgent, now, self._all.values())

    def failed(self, source: Source, now: float, retry_after_s: float | None = None) -> None:
        """A source could not serve."""
        neighbour = self._all.get(source)
        if neighbour is not None:
            self._watched[source] = neighbour
            neighbour.failed(now, retry_after_s)

    def busy(self, source: Source, now: float, retry_after_s: float | None = None, *, for_fill: bool = False) -> None:
        """A source has too much to send, to anybody or `for_fill`: leave it alone for longer and longer, unless it is
        about to serve us. What it says counts as far as that may take: nobody keeps this node waiting for hours."""
        neighbour = self._all.get(source)
        if neighbour is None:
            return
        first, most = self.limits.busy_s
        pause = min(first * 4.0**neighbour.busy_times, most) * (0.5 + self._random())
        neighbour.busy(now + max(pause, min(retry_after_s or 0.0, most)), for_fill=for_fill)

    def waits(self, source: Source, layer: Layer, now: float, retry_after_s: float) -> None:
        """A source has nothing of a layer for us just now: others got it, or it is not there yet. It may serve other
        layers meanwhile."""
        neighbour = self._all.get(source)
        if neighbour is not None:
            neighbour.waits = {other: until for other, until in neighbour.waits.items() if until > now}
            neighbour.waits[layer] = now + min(retry_after_s, self.limits.busy_s[1]) * (0.5 + self._random())

    def lied(self, source: Source, layer: Layer, chunk: int, now: float) -> bool:
        """Bytes of a source were not the chunk's, or no protocol. True: the source is in quarantine from now on."""
        self._suspicion.lied(source)
        neighbour = self._all.get(source)
        return neighbour is not None and neighbour.lied(layer, chunk, now)

    @property
    def suspects_itself(self) -> bool:
        """Several sources in a row sent wrong bytes: rather this machine's memory or its copy of an index is bad."""
        return self._suspicion.is_raised

    # Decisions.

    def urgent(
        self,
        layer: Layer,
        chunks: Collection[int],
        now: float,
        without: Collection[Source] = (),
        turns: Callable[[Iterable[Source], float], Mapping[Source, int]] | None = None,
    ) -> list[Source]:
        """Whom to ask for all of these chunks, in turn, each source once.

        First who has them, by round trip and queue, or as `turns` says; then supernodes; then who has some of them.
        Behind those come sources that failed lately, are silent or on trial, that lied about one of the chunks, that
        are in quarantine, that are not known to have any.
        """
        if len(self._all) == 1 and not without:  # one supernode and nobody else: most nodes, each miss
            return list(self._all)
        wanted = bits_of(chunks)
        table = self._tables.get(layer)
        turn_of = turns(self._all, now) if turns is not None else {}

        def rank(neighbour: Neighbour) -> tuple[bool, bool, bool, bool, int, float]:
            has = table.of(neighbour.source) & wanted if table is not None else 0
            is_supernode = neighbour.kind is SourceKind.SUPERNODE
            return (
                not has and not is_supernode,
                neighbour.conviction.until > now,
                neighbour.conviction.about(layer, chunks, now),
                neighbour.failing_until > now or neighbour.late_at <= now or neighbour.is_on_trial,
                1 if is_supernode else 0 if has == wanted else 2,
                turn_of[neighbour.source] if turns is not None else neighbour.wait_s(now),
            )

        known = [neighbour for neighbour in self._all.values() if neighbour.source not in without]
        return [neighbour.source for neighbour in sorted(known, key=rank)]

    def holders(self, layer: Layer, chunks: Collection[int], now: float) -> list[Source]:
        """Neighbours that have all of these chunks, and that nothing speaks against."""
        table, wanted = self._tables.get(layer), bits_of(chunks)
        if table is None:
            return []
        return [
            source
            for source, neighbour in self._all.items()
            if table.of(source) & wanted == wanted
            and self.is_in_order(source, now)
            and not neighbour.conviction.about(layer, chunks, now)
        ]

    def second(self, layer: Layer, chunks: Collection[int], now: float, without: Collection[Source]) -> Source | None:
        """Whom to ask a second time for chunks that are asked of others; None: nobody else is known to have any."""
        table, wanted = self._tables.get(layer), bits_of(chunks)
        for source in self.urgent(layer, chunks, now, without):
            has = table.of(source) & wanted if table is not None else 0
            if has or self._all[source].kind is SourceKind.SUPERNODE:
                return source
        return None

    def hedge_at(self, asked_at: float, now: float) -> float | None:
        """When to ask a second source for what was asked for at `asked_at`; None: not at all, too many were."""
        at = self._hedge.at(asked_at)
        return None if at is None else max(at, now)

    def late_at(self, source: Source, asked_at: float) -> float | None:
        """When a source that was asked will have been silent for so long that somebody who waits should not go on to;
        None: it is not asked for anything. What comes of one that is not joined is not known here: it has as long from
        `asked_at` on."""
        neighbour = self._all.get(source)
        if neighbour is None:
            return asked_at + SILENCE_S
        return neighbour.silent_for_readers_at if neighbour.late_at < float("inf") else None

    def is_in_order(self, source: Source, now: float) -> bool:
        """Whether nothing speaks against going where another one sends this node: a source that is silent, failed or
        is in quarantine ranks last, and must not come first that way. Of one that is not joined nothing is known."""
        neighbour = self._all.get(source)
        return neighbour is None or max(neighbour.failing_until, neighbour.conviction.until) <= now < neighbour.late_at

    def is_sound(self, source: Source, now: float) -> bool:
        """As `is_in_order`, but for silence: what it serves now does not show in what waits there unhurried."""
        neighbour = self._all.get(source)
        return neighbour is None or max(neighbour.failing_until, neighbour.conviction.until) <= now

    def spread(self, layer: Layer, chunks: Sequence[int], now: float, *, in_order: bool = True) -> list[Ask]:
        """Requests that may start now for wanted chunks, the first of them first; what is left out must wait.

        A chunk goes to the neighbour that has it and would be done first. What no neighbour has, the supernode chooses
        from: nodes that start together then get different chunks first. While there is no neighbour it chooses, too,
        unless the chunks are wanted `in_order`.
        """
        return self._choice.spread(self._tables.get(layer), layer, chunks, now, in_order)

    def unseen(self, layer: Layer, lacks: int, now: float) -> Ask | None:
        """One request that may start now for chunks that no neighbour has, among neighbours: those come before what
        neighbours have of any layer, so that the supernode's link never waits for that."""
        table = self._tables.get(layer)
        return None if table is None else self._choice.unseen(table, layer, lacks, now)

    @property
    def has_choice(self) -> bool:
        """Whether there is more than one source."""
        return len(self._all) > 1

    @property
    def has_company(self) -> bool:
        """Whether any neighbour serves a layer."""
        return bool(self._tables)

    @property
    def is_full(self) -> bool:
        """Whether no fill request may start before another one is over."""
        if self._tables:
            return self._totals.outstanding >= self._totals.outstanding_most
        return all(n.outstanding >= self.limits.alone_at(n.round_trip_s) for n in self._supernodes)

    def fill(
        self, layer: Layer, lacks: int, now: float, flying: Mapping[int, Collection[Source]] | None = None
    ) -> Ask | None:
        """One request that may start now, of the set `lacks`: chunks that are neither here nor in flight.

        None: wait for an event, or for `next_at`. Near the end (`limits.endgame` chunks are not here) the caller puts
        those in flight into `lacks`, too, and says in `flying` at whom they are: they are asked of a second source.
        """
        return self._choice.fill(self._tables.get(layer), layer, lacks, now, flying or {})

    def next_at(self, now: float) -> float | None:
        """When a decision may change by time alone: a pause or a quarantine ends."""
        times = [
            at
            for n in self._all.values()
            for at in (n.busy_until, n.fill_busy_until, n.failing_until, n.conviction.until, *n.waits.values())
            if at > now
        ]
        return min(times, default=None)

    def troubled(self, now: float) -> list[Source]:
        """Sources that failed since they last served, or are silent: supernodes first, then who failed least."""
        for source in [source for source, n in self._watched.items() if n.is_at_ease]:
            del self._watched[source]
        found = [n for n in self._watched.values() if n.failures or n.late_at <= now]
        return [n.source for n in sorted(found, key=lambda n: (n.kind is SourceKind.PEER, n.failures))]

    def troubled_at(self, now: float) -> float | None:
        """When silence makes one more of them; None: not by time alone."""
        times = [at for n in self._watched.values() if now < (at := n.late_at) < float("inf")]
        return min(times, default=None)

    def revived(self, source: Source, now: float) -> None:
        """A source that was away is back: what failed before says nothing of it now."""
        neighbour = self._all.get(source)
        if neighbour is not None:
            neighbour.revived(now)

    def rows(self) -> list[SourceRow]:
        """Every source, for `imgdist peers`; as things were at the last request."""
        return [neighbour.row(self._latest, self._totals.is_slow(neighbour)) for neighbour in self._all.values()]

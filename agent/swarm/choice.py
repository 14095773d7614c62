"""Bulk requests: of whom to ask which chunks for fill, and for a window of wanted chunks. Pure.

In each of the two, sources come in tiers: who may serve now; behind them, for chunks that nobody else has, those in
quarantine. A failing or busy source is left alone until its pause is over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

from agent.swarm.asks import Ask, Limits
from agent.swarm.bitset import bits_of, few, pick, without
from agent.swarm.holdings import Table
from agent.swarm.neighbours import Neighbour, SourceKind
from agent.swarm.totals import Totals

_DEAD = 3
"""Failures in a row after which a source counts for nothing where a quarantined one could be asked (a guess)."""
_SEGMENT = 4
"""Runs among which a supernode chooses one (a guess)."""
_MANY = 4
"""Neighbours enough to keep the supernode busy without a node's second request (a guess)."""
_TRIED = 6
"""Neighbours that are compared: of two the better is nearly as good as of all (Mitzenmacher, 2001)."""
_NEAR = 0.5
"""Of two sources with as many requests the near one is asked; before a near one that is busy an idle one (a guess)."""
_QUEUE_S = 0.05
"""A queue of this length makes a source as unattractive as one more request of ours there."""


class Choice:
    """Decisions of one node over the sources that Policy keeps."""

    def __init__(
        self, random: Callable[[], float], limits: Limits, supernodes: Sequence[Neighbour], totals: Totals
    ) -> None:
        self._random = random
        self._limits = limits
        self._totals = totals
        self._supernodes = supernodes

    def fill(
        self, table: Table | None, layer: Hashable, lacks: int, now: float, flying: Mapping[int, Collection[Hashable]]
    ) -> Ask | None:
        """See Policy.fill."""
        if self._totals.outstanding >= (self._totals.outstanding_most if table is not None else self._limits.bulk):
            return None
        fresh = without(lacks, bits_of(flying)) if flying else lacks
        ask = None
        if fresh:
            ask = self._rarest(table, layer, fresh, now) or self._last_resort(table, layer, fresh, now)
        if ask is None and flying:
            ask = self._second(table, layer, lacks, now, flying)
        return ask

    def unseen(self, table: Table, layer: Hashable, lacks: int, now: float) -> Ask | None:
        """See Policy.unseen."""
        supernode = self._supernode(now)
        if supernode is None or not self._has_supernode_room(supernode, table):
            return None
        nobodys = without(lacks, table.rarity(now).union)
        return self._any(supernode, layer, nobodys, now) if nobodys else None

    def spread(
        self, table: Table | None, layer: Hashable, chunks: Sequence[int], now: float, in_order: bool
    ) -> list[Ask]:
        """See Policy.spread."""
        pairs = table.pairs if table is not None else ()
        able = [(n, holding.bits) for n, holding in pairs if n.shut_until <= now and n.silent_at > now]
        plans: dict[Hashable, list[int]] = {}
        orphans: list[int] = []
        for chunk in chunks:
            best, least, is_held = None, float("inf"), False
            for n, bits in able:
                if not bits >> chunk & 1 or n.conviction.about(layer, (chunk,), now):
                    continue
                is_held = True
                planned = len(plans.get(n.source, ()))
                if planned >= self._room(n):
                    continue
                wait = n.wait_s(now) + planned * self._totals.chunk_bytes / (n.rate or 1e9)
                if wait < least:
                    best, least = n, wait
            if best is not None:
                plans.setdefault(best.source, []).append(chunk)
            elif not is_held:
                orphans.append(chunk)
        asks = [Ask(source, tuple(run)) for source, plan in plans.items() for run in _parts(plan, self._limits.run)]
        room = max(0, self._limits.bulk - self._totals.outstanding)
        if orphans and len(asks) < room:
            asks += self._orphans(table, layer, orphans, now, room - len(asks), in_order)
        return asks[:room]

    def _orphans(
        self, table: Table | None, layer: Hashable, orphans: list[int], now: float, room: int, in_order: bool
    ) -> list[Ask]:
        """Requests for chunks that no neighbour can give. Alone, a node may take them in order; among others it lets
        the supernode choose, from sets that do not overlap: what it chose is known only when it answers."""
        supernode = self._supernode(now, for_fill=False)
        if supernode is None:
            last = self._last_resort(table, layer, bits_of(orphans), now)
            return [last] if last is not None else []
        room = min(room, self._limits.bulk - supernode.outstanding)
        run = self._limits.run
        if table is None and in_order:
            return [Ask(supernode.source, tuple(part)) for part in _parts(orphans, run)[:room]]
        if supernode.waits.get(layer, 0.0) > now:
            return []
        room = max(0, min(room, self._limits.per_source - supernode.outstanding))
        segments = _parts(orphans, run * _SEGMENT)[:room]
        return [Ask(supernode.source, any_of=bits_of(part), count=min(run, len(part))) for part in segments]

    def _rarest(self, table: Table | None, layer: Hashable, fresh: int, now: float) -> Ask | None:
        """What nobody near has from a supernode, else the rarest of what the least busy useful peer has."""
        if table is not None:
            if (ask := self.unseen(table, layer, fresh, now)) is not None:
                return ask
            if (found := self._least_busy(table, layer, fresh, now)) is not None:
                return Ask(found[0].source, self._run(found[0], table, found[1], now))
        supernode = self._supernode(now)
        if supernode is None or not self._has_supernode_room(supernode, table):
            return None
        return self._any(supernode, layer, fresh, now, alone=table is None)

    def _least_busy(self, table: Table, layer: Hashable, wanted: int, now: float) -> tuple[Neighbour, int] | None:
        """The peer with the fewest requests and the shortest queue, of a few, and what it has of the set.

        From a random place on, so that nodes which see the same do not all ask the same one.
        """
        count, per_source = len(table.pairs), self._limits.per_source
        best, least, tried = None, float("inf"), 0
        best_possible = -_NEAR if table.has_near else 0.0
        start = int(self._random() * count)
        for neighbour, holding in table.ring[start : start + count]:
            if neighbour.fill_shut_until > now:
                continue
            score: float = neighbour.outstanding
            if score and (score >= per_source or self._is_late_or_slow(neighbour, now)):
                continue
            if not neighbour.is_proven and neighbour.is_on_trial:
                continue
            if neighbour.near:
                score -= _NEAR
            if score < least and neighbour.queue_bytes:
                score += neighbour.queue_s(now) / _QUEUE_S
            if score < least and (useful := holding.bits & wanted):
                if neighbour.conviction.total:
                    useful = without(useful, neighbour.conviction.chunks(layer, now))
                if useful:
                    best, least = (neighbour, useful), score
            tried += 1
            if best is not None and (tried >= _TRIED or least <= best_possible):
                break
        return best

    def _is_late_or_slow(self, neighbour: Neighbour, now: float) -> bool:
        """Whether a source that is asked already should not be asked for more."""
        rate = neighbour.rate
        return neighbour.silent_at <= now or (rate is not None and rate < self._totals.slow_rate)

    def _run(self, neighbour: Neighbour, table: Table, useful: int, now: float) -> tuple[int, ...]:
        """As many as one request should have: the rarest of the set, and where those are too few any.

        To go on by rarity would double what a decision costs and gain nothing [simulated, 300 nodes: T/T* 1.14]. Mostly
        a neighbour has only a few that are of use, and which of them are rare makes no difference.
        """
        most = self._run_length(neighbour)
        if (all_ := few(useful, most)) is not None:
            return tuple(all_)
        rarest = table.rarity(now).rarest(useful)
        chosen = pick(rarest, most, self._random)
        if len(chosen) < most:
            chosen += pick(useful ^ rarest, most - len(chosen), self._random)
        return tuple(chosen)

    def _run_length(self, neighbour: Neighbour) -> int:
        limits = self._limits
        if not neighbour.is_proven and neighbour.is_stained:
            return 1
        if neighbour.rate is None:
            return max(1, limits.run // 4)
        seconds = limits.run_s if neighbour.kind is SourceKind.PEER else limits.any_s
        return max(1, min(limits.run, int(neighbour.rate * seconds / self._totals.chunk_bytes)))

    def _any(self, supernode: Neighbour, layer: Hashable, among: int, now: float, *, alone: bool = False) -> Ask | None:
        """Let the supernode choose; not twice at once among a few, for it may choose the same again. Who is alone with
        it sees to that in each layer by itself (agent/transfer/flights.py), or all its layers would end together."""
        if supernode.waits.get(layer, 0.0) > now:
            return None
        if supernode.conviction.total:
            among = without(among, supernode.conviction.chunks(layer, now))
        count = self._run_length(supernode)
        if supernode.outstanding and not alone and among.bit_count() <= self._limits.few:
            return None
        return Ask(supernode.source, any_of=among, count=count) if among else None

    def _last_resort(self, table: Table | None, layer: Hashable, fresh: int, now: float) -> Ask | None:
        """Chunks that nobody has but sources in quarantine, or that lied about just these: better asked than never."""
        sources = [(n, fresh) for n in self._supernodes]
        if table is not None:
            sources += [(n, holding.bits) for n, holding in table.pairs]
        if all(n.conviction.is_clean for n, _ in sources):
            return None
        left = fresh
        for n, bits in sources:
            if n.conviction.until <= now and n.failures < _DEAD:
                left = without(left, without(bits, n.conviction.chunks(layer, now)))
        for n, bits in sorted(sources, key=lambda pair: pair[0].conviction.until):
            if left & bits and n.resting_until <= now and self._has_room(n):
                return Ask(n.source, tuple(pick(left & bits, self._run_length(n), self._random)))
        return None

    def _second(
        self, table: Table | None, layer: Hashable, lacks: int, now: float, flying: Mapping[int, Collection[Hashable]]
    ) -> Ask | None:
        """Chunks in flight at one source, from another; from one that has proven itself, where there is one."""
        once = [chunk for chunk, sources in flying.items() if len(sources) == 1 and lacks >> chunk & 1]
        others = [(n, holding.bits) for n, holding in table.pairs] if table is not None else []
        others += [(n, lacks) for n in self._supernodes]
        for neighbour, has in sorted(others, key=lambda pair: not pair[0].is_proven):
            if neighbour.fill_shut_until > now or not self._has_room(neighbour):
                continue
            run = [
                chunk
                for chunk in once
                if has >> chunk & 1
                and neighbour.source not in flying[chunk]
                and not neighbour.conviction.about(layer, (chunk,), now)
            ]
            if run:
                return Ask(neighbour.source, tuple(run[: self._run_length(neighbour)]))
        return None

    def _supernode(self, now: float, *, for_fill: bool = True) -> Neighbour | None:
        """The supernode that would answer first, of those that may be asked."""
        able = [n for n in self._supernodes if (n.fill_shut_until if for_fill else n.shut_until) <= now]
        return able[0] if len(able) == 1 else min(able, key=lambda n: n.wait_s(now), default=None)

    def _room(self, neighbour: Neighbour) -> int:
        """Chunks of a window that it may be asked for now."""
        if not neighbour.is_proven:
            return 0 if neighbour.is_on_trial else self._run_length(neighbour)
        return self._limits.run * (self._limits.per_source - neighbour.outstanding - neighbour.urgent)

    def _has_room(self, neighbour: Neighbour) -> bool:
        """Whether one more fill request may go there."""
        totals = self._totals
        if neighbour.outstanding >= self._limits.per_source or totals.outstanding >= totals.outstanding_most:
            return False
        return not neighbour.is_on_trial

    def _has_supernode_room(self, supernode: Neighbour, table: Table | None) -> bool:
        """Many at once where it is the only source; among many nodes one, for the others are to get something, too
        [simulated, 300 nodes: T/T* 1.155 with two, 1.138 with one]."""
        limits = self._limits
        if table is None:
            return (
                supernode.outstanding < limits.alone_at(supernode.round_trip_s)
                and self._totals.outstanding < limits.bulk
            )
        return self._has_room(supernode) and not (supernode.outstanding and len(table.pairs) >= _MANY)


def _parts(chunks: Sequence[int], size: int) -> list[Sequence[int]]:
    return [chunks[i : i + size] for i in range(0, len(chunks), size)]

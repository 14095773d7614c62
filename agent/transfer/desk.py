"""What requests under way ask and tell: the side of the transfers that `Landing` sees."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from agent.layerstore import LayerStore
from agent.space.disk import is_full
from agent.swarm.bitset import bits_of
from agent.transfer.attempts import Attempts
from agent.transfer.fetch import Fetch, Kind
from agent.transfer.figures import Figures
from agent.transfer.job import Job
from agent.transfer.overflow import Overflow
from agent.transfer.scheduler import Scheduler
from agent.transfer.sources import ChunkSource, Sources
from agent.transfer.waiters import Waiters
from imgdist.errors import ImgdistError, NotYetError, RedirectedError, TemporaryError
from imgdist.wire.client import Told

_log = logging.getLogger("imgdist.agent")

NOT_YET_S = 0.05
"""How long a source is not asked for more of a layer of which it has nothing yet, if it does not say (a guess)."""

OnHere = Callable[[int, int], None]
"""Told (node, chunk) of every chunk that became present; called in any thread, must not wait or call back."""


class Desk:
    """Passes events on to the scheduler and its policy, under the transfers' lock. `pump` hands out what is due then,
    `catch_up` what was put off; `complete` is told of a layer whose last chunk landed, `lost` of a pack (hex) that a
    supernode does not have, `refused` of a layer's chunk that the disk did not take."""

    def __init__(
        self,
        lock: threading.RLock,
        scheduler: Scheduler,
        sources: Sources,
        waiters: Waiters,
        attempts: Attempts,
        figures: Figures,
        clock: Callable[[], float],
        me: Callable[[], str],
        *,
        pump: Callable[[], None],
        catch_up: Callable[[], None],
        complete: Callable[[Job], None],
        lost: Callable[[str], None] = lambda pack_id: None,
        refused: Callable[[OSError, str], None] = lambda error, name: None,
    ) -> None:
        self._lock = lock
        self._scheduler = scheduler
        self._policy = scheduler.policy
        self._sources = sources
        self._waiters = waiters
        self._attempts = attempts
        self._figures = figures
        self._clock = clock
        self._me = me
        self._pump = pump
        self.pauses = catch_up
        """Called by threads that are about to wait for an answer."""
        self._complete = complete
        self._lost = lost
        self._refused = refused
        self.overflow = Overflow()
        self.listeners: list[OnHere] = []

    def turned(self, fetch: Fetch, source: ChunkSource, wait_s: float) -> None:
        """What the source before did not serve is asked of this one now, which may wait so long for it."""
        with self._lock:
            self._scheduler.turned(fetch, source, self._clock(), wait_s)

    def named(self, fetch: Fetch, chunks: Sequence[int]) -> None:
        """A source chose these chunks for an `any_of` request."""
        with self._lock:
            self._scheduler.named(fetch, chunks)
            self._pump()

    def began(self, fetch: Fetch) -> None:
        """An answer begins that was waited for: what came meanwhile says nothing of how long its chunks take."""
        with self._lock:
            self._scheduler.flights.began(fetch)

    def answered(self, job: Job, fetch: Fetch, source: ChunkSource, told: Told) -> None:
        """The first chunk of an answer is here."""
        with self._lock:
            now = self._clock()
            self._policy.answered(source, told.round_trip_s, told.queue_bytes, now, fetch.kind.is_urgent)
            if told.have:  # whatever it says: a set of chunks takes as much memory as its largest number says
                count = job.store.index.chunk_count
                self._policy.got(source, job.node, bits_of(chunk for chunk in told.have if chunk < count))

    def tried(self, job: Job, chunks: Sequence[int], source: ChunkSource, error: ImgdistError) -> None:
        """A source did not give these chunks; of those that a reader waits for it is remembered."""
        _log.debug("%s", error)
        with self._lock:
            waited_for = [chunk for chunk in chunks if self._scheduler.is_wanted(job.node, chunk)]
            self._attempts.failed(job.node, waited_for, f"{source.kind} {source.name}", str(error), self._clock())

    def receivers(self, fetch: Fetch, source: ChunkSource, error: RedirectedError) -> list[ChunkSource]:
        """A busy source says who else has the chunks, or is getting them. A peer must not send this node to whom it
        likes, only to other neighbours: who gets them from that peer, or stands between the two in the line. One that
        does so without need is left alone like one that is busy."""
        with self._lock:
            is_peer, me = source.kind == "peer", self._me()
            free = not is_peer or error.from_here
            nearer = [at for at in error.addresses if free or (source.name < at and (at < me or not me))]
            found = self._sources.at(nearer, self._clock(), strangers=not is_peer)
            comes_back = error.from_here and fetch.kind.is_urgent
            if is_peer and (fetch.kind is Kind.FILL or not (found or comes_back)):
                self._policy.busy(source, self._clock(), error.retry_after_s)
            self._scheduler.redirected(fetch)
            return found

    def misled(self, source: ChunkSource) -> None:
        """Whom it named does not get the chunks from it: it is left alone like one that is busy."""
        with self._lock:
            self._policy.busy(source, self._clock())

    def wait_s(self) -> float:
        """How long to wait for chunks that are on their way to whom a busy source named."""
        with self._lock:
            return self._scheduler.flights.passed_on_s

    def is_before(self, source: ChunkSource) -> bool:
        """Whether this node may wait for what that one waits for: never both for each other."""
        return source.kind == "supernode" or self._scheduler.flights.line.stands_before(source)

    def passed_on(self, fetch: Fetch, source: ChunkSource) -> None:
        """It served what it may have had to wait for: the next miss goes there first, unless another had to help."""
        flights = self._scheduler.flights
        with self._lock:
            now = self._clock()
            if flights.is_helped(fetch):
                flights.line.shun(source, now)
            elif flights.line.stands_before(source) or flights.is_in_slow_crowd(now):
                flights.line.served(source, now)

    def not_passed_on(self, source: ChunkSource, *, lacked: bool) -> None:
        """It did not: it `lacked` that, or it failed or sent this node elsewhere."""
        line = self._scheduler.flights.line
        with self._lock:
            if lacked:
                line.lacked(source, self._clock())
            else:
                line.left(source)

    def source_waits(self, job: Job, source: ChunkSource, error: NotYetError) -> None:
        """A source has nothing of the layer for us just now. Only a supernode should say so; a peer that does is left
        alone for longer and longer, as if it were busy."""
        with self._lock:
            if source.kind == "peer":
                self._policy.busy(source, self._clock(), error.retry_after_s)
                return
            self._policy.waits(source, job.node, self._clock(), error.retry_after_s or NOT_YET_S)

    def source_failed(self, fetch: Fetch, source: ChunkSource, error: TemporaryError) -> None:
        """A source could not serve."""
        with self._lock:
            now = self._clock()
            if error.retry_after_s is None:
                self._policy.failed(source, now)
                self._sources.forsake(source)
            else:
                self._policy.busy(source, now, error.retry_after_s, for_fill=fetch.kind is Kind.FILL)

    def source_lacks(self, job: Job, source: ChunkSource, chunks: Sequence[int]) -> bool:
        """A source says it does not have one of these. True if it will not be asked for them again."""
        if source.kind == "supernode" and isinstance(job.store, LayerStore):
            self._lost(job.name)
        with self._lock:
            told = self._policy.lost(source, job.node, chunks)
            if told and self._policy.denied(source, self._clock()):
                _log.warning("%s %s lacks what it told to have: it is asked last for a while", source.kind, source.name)
            return told

    def holds(self, job: Job, source: ChunkSource, chunks: Sequence[int]) -> bool:
        """Whether a source said that it has these."""
        with self._lock:
            return source in self._policy.holders(job.node, chunks, self._clock())

    def source_lied(self, job: Job, source: ChunkSource, chunk: int, reason: str) -> None:
        """A source sent what it must not instead of this chunk."""
        self._figures.rejected(source.kind, reason)
        with self._lock:
            suspected = self._policy.suspects_itself
            if self._policy.lied(source, job.node, chunk, self._clock()):
                _log.warning("%s %s sent wrong bytes: it is asked last for a while", source.kind, source.name)
            self._sources.forsake(source)
            suspects = self._policy.suspects_itself and not suspected
        if suspects:
            _log.error(
                "several sources in a row sent wrong bytes: suspect this machine's memory, or its copy of an index"
            )

    def is_wanted(self, node: int, chunk: int) -> bool:
        """Whether a reader waits for the chunk. Without the lock: one that comes just now hears of it from `landed`."""
        return self._scheduler.is_wanted(node, chunk)

    @property
    def is_alone(self) -> bool:
        """Whether no other agent was ever met."""
        return not self._sources.has_met_agents

    def landed(
        self,
        job: Job,
        fetch: Fetch,
        chunks: Sequence[int],
        source: ChunkSource | None,
        body_bytes: int,
        answered_at: float,
    ) -> list[int]:
        """Verified chunks are in the image (`source` None: copied on this disk), `body_bytes` of them together. Returns
        those that readers waited for."""
        raw_bytes = sum(map(job.store.index.size, chunks))
        kind, count = (source.kind, body_bytes) if source else ("dedup", raw_bytes)
        self._figures.landed(kind, count)
        job.store.received[kind] += count
        with self._lock:
            self.overflow.drop(job.node, chunks)
            if source is not None:
                self._policy.came(source, body_bytes, self._clock(), len(chunks))
                self._scheduler.window.received(body_bytes, raw_bytes)
            landed = [self._scheduler.landed(job.node, chunk, answered_at) for chunk in chunks]
            for chunk in chunks:
                self._attempts.came(job.node, chunk)
                for other, other_chunk in job.twins.get(chunk, ()):
                    self._scheduler.copyable(other.node, [other_chunk])
                self._waiters.landed(job.node, chunk)
        for on_here in self.listeners:
            for chunk in chunks:
                on_here(job.node, chunk)
        if any(one.completes for one in landed):
            self._complete(job)
        waits = {chunk: one.waited_s for chunk, one in zip(chunks, landed, strict=True) if one.waited_s is not None}
        for waited_s in waits.values():
            self._figures.waited(waited_s)
            if fetch.is_hedge:
                self._figures.hedge_won()
        return list(waits)

    def shared(self, size_bytes: int) -> None:
        """A chunk has its blocks on the disk together with the pack that it was copied from."""
        self._figures.shared(size_bytes)

    def kept(self, job: Job, chunk: int) -> bytes | None:
        """The bytes of a chunk that the disk did not take before, if they are still in memory."""
        if not self.overflow.size_bytes:  # without the lock: as a rule there are none
            return None
        with self._lock:
            return self.overflow.find(job.node, chunk)

    def refused(
        self, job: Job, chunk: int, raw: memoryview, answered_at: float | None, error: OSError, *, told: bool
    ) -> bool:
        """The disk did not take a verified chunk. Who waits for it gets it from memory, where it is kept for a while;
        nobody counts it as here. Fill and traces wait, for a full disk refuses them all. `told`: the view is about to
        answer who waits; False if the chunk is to be tried again."""
        self._figures.refused(len(raw))
        self._refused(error, job.name)
        with self._lock:
            wanted = self._scheduler.is_urgent(job.node, chunk)
            if is_full(error):
                self._scheduler.disk_full(self._clock())
            if wanted:
                self.overflow.keep(job.node, chunk, raw)
            if not (told if wanted else is_full(error)):
                return False
            waited_s = self._scheduler.passed(job.node, chunk, answered_at or self._clock())
            self._waiters.landed(job.node, chunk)
        if waited_s is not None:
            self._figures.waited(waited_s)
        return True

    def repeated(self, job: Job, source: ChunkSource, chunk: int, body_bytes: int) -> None:
        """A chunk came that another source had brought already."""
        self._figures.repeated(source.kind, body_bytes)
        with self._lock:
            self._policy.came(source, body_bytes, self._clock())
            self._scheduler.window.received(body_bytes, job.store.index.size(chunk))

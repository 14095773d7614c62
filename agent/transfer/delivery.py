"""What becomes of verified bytes: who waits is answered, the image gets them, everybody hears that they are here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.layerstore import LayerStore
from agent.transfer.desk import Desk
from agent.transfer.fetch import Fetch, Kind
from agent.transfer.job import Job
from agent.transfer.run import Run
from agent.transfer.sources import ChunkSource
from agent.transfer.view import View


class Delivery:
    """Used by many threads, each for a request of its own. Raises OSError where the disk refuses what nobody can be
    given otherwise."""

    def __init__(self, desk: Desk, view: View, clock: Callable[[], float]) -> None:
        self._desk = desk
        self._view = view
        self._clock = clock

    def is_wanted(self, job: Job, fetch: Fetch, chunk: int) -> bool:
        """Whether a reader waits for the chunk: then answer first, write after."""
        return fetch.kind is Kind.DEMAND or self._desk.is_wanted(job.node, chunk)

    def buffer(self, job: Job, fetch: Fetch, chunk: int) -> int | None:
        """Where to put the bytes of a chunk that a reader waits for, so that the view answers from there; None if
        nobody waits, or none is free. To be given to `one`, or back with `give_up`."""
        return self._view.acquire_ring(keep=True) if self.is_wanted(job, fetch, chunk) else None

    def memory(self, slot: int, size: int) -> memoryview:
        """Of a `buffer`, the beginning."""
        return self._view.ring(slot)[:size]

    def give_up(self, slot: int) -> None:
        """What is in a `buffer` is nothing to hand over."""
        self._view.release_ring(slot)

    def keep(self, job: Job, chunk: int, encoding: int, body: memoryview) -> None:
        """Keep a body as it came, for other agents; before anybody hears that the chunk is here."""
        frames = job.store.frames
        if frames is not None and not self._desk.is_alone:
            frames.append(chunk, encoding, body)

    def run(self, job: Job, fetch: Fetch, run: Run, source: ChunkSource) -> None:
        """Chunks that nobody waited for when they came, their bodies kept."""
        fresh = {chunk: body_bytes for chunk, _, body_bytes in run if not job.store.has(chunk)}
        try:
            job.store.write(run.chunks[0], run.raw, direct=True)
        except OSError:  # it may take some of them, and who waits by now is to be given the others
            for chunk, raw, body_bytes in run:
                self.one(job, fetch, chunk, raw, source, body_bytes)
            return
        for chunk, _, body_bytes in run:
            if chunk not in fresh:  # another source was faster
                self._desk.repeated(job, source, chunk, body_bytes)
        if fresh:
            self._here(job, fetch, list(fresh), source, sum(fresh.values()), self._clock())

    def one(
        self,
        job: Job,
        fetch: Fetch,
        chunk: int,
        raw: memoryview,
        source: ChunkSource | None,
        body_bytes: int,
        *,
        slot: int | None = None,
        twin: tuple[LayerStore, int] | None = None,
        keep: Callable[[], None] = lambda: None,
    ) -> None:
        """A chunk that a source sent, or that is copied from its `twin`; `keep` is called once it is in the image. With
        a `slot`, `raw` is in that `buffer`."""
        if slot is None:
            slot = self.buffer(job, fetch, chunk)
            if slot is not None:
                self.memory(slot, len(raw))[:] = raw
        answered_at = None
        try:
            if slot is not None:
                start = job.store.index.start(chunk)
                self._view.ready(job.node, start, start + len(raw), slot)
                answered_at = self._clock()
            if not self._write(job, fetch, chunk, raw, answered_at, twin):
                return
        finally:
            if slot is not None:
                self._view.release_ring(slot)
        keep()
        self._here(job, fetch, (chunk,), source, body_bytes, answered_at or self._clock())

    def _write(
        self,
        job: Job,
        fetch: Fetch,
        chunk: int,
        raw: memoryview,
        answered_at: float | None,
        twin: tuple[LayerStore, int] | None,
    ) -> bool:
        """Put a chunk into the image; False if the disk refused it, and who waits has it all the same."""
        # Buffered where a reader is about to come back for the neighbouring blocks, past the page cache otherwise.
        try:
            if twin is not None and job.store.share(chunk, *twin):
                self._desk.shared(len(raw))
            else:
                job.store.write(chunk, raw, direct=not fetch.kind.is_urgent)
        except OSError as error:
            start = job.store.index.start(chunk)
            slot = self._view.acquire_ring()
            passed = self._desk.refused(job, chunk, raw, answered_at, error, told=slot is not None)
            if slot is not None:
                # Only then: a read that parks too late for this is told to us as a miss, and is asked for again.
                self._view.ring(slot)[: len(raw)] = raw
                self._view.held(job.node, start, start + len(raw), slot)
            if not passed:
                raise
            return False
        return True

    def _here(
        self,
        job: Job,
        fetch: Fetch,
        chunks: Sequence[int],
        source: ChunkSource | None,
        body_bytes: int,
        answered_at: float,
    ) -> None:
        index = job.store.index
        for chunk in self._desk.landed(job, fetch, chunks, source, body_bytes, answered_at):
            # Only then: each read that the view parks is told to us as a miss, so nobody else is waiting for this.
            self._view.written(job.node, index.start(chunk), index.start(chunk) + index.size(chunk))

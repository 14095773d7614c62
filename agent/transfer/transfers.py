"""The transfers of one node, put together: events in (layers, misses, jobs, traces, fill, sources), chunks out.

`Scheduler` decides what and when, `Policy` from whom, under one lock; `Engine` hands what they decide to threads, which
run `Landing`.
"""

from __future__ import annotations

import errno
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import cast

from prometheus_client import REGISTRY, CollectorRegistry

from agent.earlystore import EarlyStore
from agent.layerstore import LayerStore
from agent.swarm.policy import Policy, SourceKind, SourceRow
from agent.transfer.attempts import Attempts
from agent.transfer.crew import Task
from agent.transfer.desk import Desk, OnHere
from agent.transfer.engine import Engine
from agent.transfer.fetch import Fetch
from agent.transfer.figures import Figures
from agent.transfer.gate import FillGate
from agent.transfer.job import Job, Outcome
from agent.transfer.landing import Landing
from agent.transfer.lapses import Lapses
from agent.transfer.line import Line
from agent.transfer.pace import Pace
from agent.transfer.scheduler import Scheduler
from agent.transfer.sources import ChunkSource, Sources
from agent.transfer.urgent import DEMAND_SLOTS, HEDGE_SLOTS
from agent.transfer.view import View
from agent.transfer.waiters import Waiter, Waiters
from agent.transfer.wholes import Wholes
from imgdist.errors import NotFoundError, TemporaryError

_log = logging.getLogger("imgdist.agent")

NOW_DEADLINE_S = 60.0
"""As a reader's."""

Twins = Callable[[LayerStore], Iterable[tuple[int, LayerStore, int]]]


class Transfers:
    """Fetches the chunks of layers, verified, into their stores. Every method may be called from any thread.

    `supernodes` have every chunk; other agents join and leave, if this is a member of a `swarm`. `connect(address)`
    makes a source of an agent that a supernode names (None: it must not be asked). `me()` is where others reach this
    agent, "" if nobody does. `twins` says where else on this disk a layer's chunks are (ChunkStore.twins).
    `on_layer_complete(store)` is called in a bulk thread once the image is whole and durable, also for a layer that is
    whole when it is added; `on_pack_lost(pack id)` in any thread, when a supernode does not have a sealed pack;
    `on_disk_refused(error, layer)` when the disk did not take a chunk. `read_deadline_s` is the view's. `gate` says
    when fill may run, `pace` how soon and how fast.
    """

    def __init__(
        self,
        view: View,
        supernodes: Sequence[ChunkSource],
        *,
        twins: Twins = lambda store: (),
        on_layer_complete: Callable[[LayerStore], None] = lambda store: None,
        on_pack_lost: Callable[[str], None] = lambda pack_id: None,
        on_disk_refused: Callable[[OSError, str], None] = lambda error, name: None,
        read_deadline_s: float = 60.0,
        gate: FillGate | None = None,
        pace: Pace | None = None,
        swarm: bool = False,
        connect: Callable[[str], ChunkSource | None] = lambda address: None,
        me: Callable[[], str] = lambda: "",
        registry: CollectorRegistry = REGISTRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._view = view
        self._twins = twins
        self._figures = Figures(registry)
        self._clock = clock
        self._scheduler = Scheduler(
            random.random,
            read_deadline_s,
            policy=Policy(random.random),
            swarm=swarm,
            gate=gate,
            pace=pace,
            line=Line(me, lambda source: cast(ChunkSource, source).name),
        )
        self._policy = self._scheduler.policy
        self._sources = Sources(self._policy, connect)
        self._jobs: dict[int, Job] = {}
        self._waiters = Waiters(self._scheduler.give_up)
        self._lock = threading.RLock()
        attempts = self._attempts = Attempts()
        self._lapses = Lapses(self._lock, self._scheduler, attempts, self._figures, clock, self._sources.name)
        self._engine = Engine(
            self._lock,
            self._scheduler,
            self._waiters,
            self._figures,
            clock,
            jobs=self._jobs,
            carry_out=self._carry_out,
            demand_threads=DEMAND_SLOTS + (HEDGE_SLOTS if swarm or len(supernodes) > 1 else 0),
        )
        self._pump = self._engine.pump
        self._wholes = Wholes(self._lock, self._scheduler, self._jobs, self._engine, clock, on_layer_complete)
        self._desk = Desk(
            self._lock,
            self._scheduler,
            self._sources,
            self._waiters,
            attempts,
            self._figures,
            clock,
            me,
            pump=self._pump,
            catch_up=self._engine.catch_up,
            complete=self._wholes.complete,
            lost=on_pack_lost,
            refused=on_disk_refused,
        )
        self._landing = Landing(self._desk, view, clock)
        for source in supernodes:
            self._sources.join(source, SourceKind.SUPERNODE, clock())
        self._engine.start()

    # Layers.

    def add(self, store: LayerStore) -> None:
        """Begin to serve a layer, before the view learns of it. Adding it again changes nothing, except that what its
        store has lost since is missing again."""
        node = store.node
        found = list(self._twins(store))
        copies = [chunk for chunk, other, other_chunk in found if _is_present(other, other_chunk)]
        missing = store.missing_chunks()
        with self._lock:
            if node in self._jobs:
                self._wholes.find_lost(self._jobs[node], missing)
                return
            job = self._jobs[node] = Job(store, node, store.pack_id.hex())
            for chunk, other, other_chunk in found:
                job.add_twin(chunk, other, other_chunk)
                other_job = self._jobs.get(other.node)
                if other_job is not None:
                    other_job.add_twin(other_chunk, store, chunk)
            is_whole = self._scheduler.add(node, store.index, missing)
            self._scheduler.copyable(node, copies)
            if is_whole:
                self._wholes.complete(job)

    def add_early(self, store: EarlyStore) -> None:
        """Begin to take the chunks of a layer that has no seal yet, as fill: `grow` says which. Nobody reads it, and it
        is never complete; `remove` ends that."""
        with self._lock:
            self._jobs[store.node] = Job(store, store.node, store.name)
            self._scheduler.add(store.node, store.index, (), sealed=False)
            self._scheduler.fill(store.node, self._clock())

    def grow(
        self, store: EarlyStore, wanted: Sequence[int], copies: Iterable[tuple[int, LayerStore, int]] = ()
    ) -> None:
        """More chunks of a layer without a seal are known; `wanted` are those to be fetched, of which `copies` (as
        `twins` says it) are on this disk."""
        copies = list(copies)
        present = [chunk for chunk, other, other_chunk in copies if _is_present(other, other_chunk)]
        with self._lock:
            job = self._jobs.get(store.node)
            if job is None:
                return
            for chunk, other, other_chunk in copies:
                job.add_twin(chunk, other, other_chunk)
            self._scheduler.grow(store.node, wanted, store.index.chunk_count)
            self._scheduler.copyable(store.node, present)
            self._pump()

    def remove(self, node: int) -> None:
        """Stop serving a layer; returns when nothing of it is in flight any more (at most a few time-outs)."""
        with self._lock:
            if self._jobs.pop(node, None) is None:
                return
            self._scheduler.remove(node)
            self._attempts.removed(node)
            self._desk.overflow.forget(node)
            self._waiters.fail(lambda waiter: waiter.node == node, NotFoundError(f"layer {node} was removed"))
            self._engine.changed.wait_for(lambda: not self._scheduler.in_flight(node))

    def expects(self, node: int, chunk: int) -> bool:
        """Whether a chunk is on its way. Without the lock: for a moment it may be wrong."""
        return self._scheduler.expects(node, chunk)

    def running_s(self) -> float:
        """Seconds of a clock that stands still while a reader waits: what a start takes of it, no link makes longer."""
        with self._lock:
            return self._scheduler.running_s(self._clock())

    # Events.

    def miss(self, node: int, start: int, length: int) -> None:
        """The view: a reader waits for the image's bytes [start, start + length). Where the view can spare this thread,
        it fetches them itself, and is not back before."""
        lingers = self._view.linger()
        try:
            task = self._miss(node, start, length, lingers=lingers)
            if task is not None:
                task()
        finally:
            if lingers:
                self._view.back()

    def _miss(self, node: int, start: int, length: int, *, lingers: bool) -> Task | None:
        """What is left to be done for a reader, if the thread `lingers`."""
        task = None
        with self._lock:
            wanted = self._scheduler.miss(node, start, length, self._clock())
            if wanted is False:
                # After a failed sync the store finds lost bytes at any time, and tells whoever asked it, not us.
                job = self._jobs[node]
                if self._wholes.find_lost(job, job.store.index.chunks_between(start, start + length)):
                    wanted = self._scheduler.miss(node, start, length, self._clock())
            if wanted and lingers:
                task = self._engine.pump_for_reader()
            elif wanted:
                self._pump()
        if wanted is None:
            _log.warning("the view asks for layer %d, which is not here", node)
            self._view.fail(node, start, start + length, errno.EIO)
        elif not wanted:
            self._view.written(node, start, start + length)
        return task

    def lapsed(self, node: int, start: int, length: int, waited_s: float) -> None:
        """The view: the read of the image's bytes [start, start + length) got EIO after `waited_s`."""
        with self._lock:
            job = self._jobs.get(node)
        if job is not None:
            self._lapses.lapsed(job, start, length, waited_s)

    def touched(self, touches: Sequence[tuple[int, int, int]]) -> None:
        """The view: (node, first block, blocks) were read for the first time. Fill waits until that is over; what a
        trace predicts may go on."""
        if touches:
            with self._lock:
                self._scheduler.touched(touches, self._clock())
                self._pump()

    def starting(self) -> None:
        """A layer is asked for, by a pull or for a container: something starts, and fill waits until that is over."""
        with self._lock:
            self._scheduler.touched((), self._clock())

    def fetch_now(
        self, store: LayerStore | EarlyStore, chunks: Iterable[int], deadline_s: float = NOW_DEADLINE_S
    ) -> Future[None]:
        """Fetch chunks that a job waits for, nearly as urgent as a miss, in runs.

        The future ends when all are in the image; with TemporaryError at the deadline, NotFoundError if the layer is
        removed. Cancelling it withdraws what is not yet in flight. Raises NotFoundError for a layer that was not added,
        and for a chunk that is not known (`grow`) yet.
        """
        future: Future[None] = Future()
        with self._lock:
            if store.node not in self._jobs:
                raise NotFoundError(f"layer {store.name} (node {store.node}): add it before fetching its chunks")
            absent = self._scheduler.want(store.node, chunks)
            if not absent:
                future.set_result(None)
                return future
            self._waiters.add(Waiter(store.node, set(absent), self._clock() + deadline_s, future))
            future.add_done_callback(self._withdrawn)
            self._pump()
        return future

    def trace(self, order: Iterable[tuple[LayerStore, int]], *, goes_on: bool = False) -> bool:
        """(layer, chunk) in the order that a start will touch them, to be fetched ahead of it; others are left out.
        False if that leaves nothing. `goes_on`: some of it was told before, when fewer of its layers were here."""
        entries = [(store.node, chunk) for store, chunk in order]
        with self._lock:
            is_left = self._scheduler.trace(entries, goes_on=goes_on)
            self._pump()
        return is_left

    def fill(self, store: LayerStore) -> None:
        """Complete a layer in the background, after those asked before, while nothing starts on the node."""
        with self._lock:
            if store.node in self._jobs:
                self._scheduler.fill(store.node, self._clock())
                self._pump()

    def drain(self, deadline_s: float) -> list[int]:
        """Fill every layer at full speed for at most `deadline_s`; returns the nodes that are not complete."""
        with self._lock:
            self._scheduler.drain(True)
            self._pump()
            engine, scheduler = self._engine, self._scheduler
            engine.changed.wait_for(lambda: engine.is_stopping or not scheduler.incomplete(), deadline_s)
            self._scheduler.drain(False)
            return self._scheduler.incomplete()

    def stop(self) -> None:
        """Cut what is in flight, end all threads and close the sources."""
        with self._lock:
            if self._engine.is_stopping:
                return
            self._engine.end()
            self._waiters.fail(lambda waiter: True, TemporaryError("the agent is stopping"))
        self._sources.close()
        self._engine.join()

    # Sources.

    def join(self, peer: ChunkSource, *, near: bool = False) -> None:
        """An agent may be asked for chunks from now on, of what it says to have. Its close is ours from here."""
        with self._lock:
            self._sources.join(peer, SourceKind.PEER, self._clock(), near=near)

    def leave(self, peer: ChunkSource) -> None:
        """An agent is gone; requests to it are cut."""
        with self._lock:
            self._sources.leave(peer)
            self._pump()
        peer.close()

    def opened(self, peer: ChunkSource, node: int, have: int) -> None:
        """An agent has the set `have` (bit i: chunk i) of a layer, and will say what it gets."""
        with self._lock:
            self._policy.opened(peer, node, have)
            self._pump()

    def got_all(self, news: Iterable[tuple[ChunkSource, int, int]]) -> None:
        """(agent, node, chunks): it has this set of the layer as well. What may start now is looked at once for all
        of them."""
        with self._lock:
            for peer, node, chunks in news:
                self._policy.got(peer, node, chunks)
            if self._scheduler.has_use_for_news:
                self._pump()

    def closed(self, peer: ChunkSource, node: int) -> None:
        """An agent serves a layer no longer."""
        with self._lock:
            self._policy.closed(peer, node)

    def listen(self, on_here: OnHere) -> None:
        """Tell `on_here` of every chunk that becomes present."""
        self._desk.listeners.append(on_here)

    def sources_rows(self) -> list[SourceRow]:
        """What is known of each source, by its name."""
        with self._lock:
            return [replace(row, source=self._sources.name(row.source)) for row in self._policy.rows()]

    # What threads do.

    def _carry_out(self, job: Job, fetch: Fetch) -> Outcome:
        return self._landing.run(job, fetch)

    def _withdrawn(self, future: Future[None]) -> None:
        """A job's future ended; if the job itself cancelled it, what only it wanted is not fetched."""
        if future.cancelled():
            with self._lock:
                self._waiters.fail(lambda waiter: waiter.future is future, None)


def _is_present(store: LayerStore, chunk: int) -> bool:
    with store.use() as usable:
        return usable and store.has(chunk)

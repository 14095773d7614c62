"""The threads of a node's transfers: they carry out what is due; a ticker looks again when time alone changes that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial

from agent.transfer.crew import Crew, Task
from agent.transfer.fetch import Fetch
from agent.transfer.figures import Figures
from agent.transfer.flights import BULK_SLOTS
from agent.transfer.job import Job, Outcome
from agent.transfer.prober import Prober
from agent.transfer.scheduler import Scheduler
from agent.transfer.waiters import Waiters

BULK_NICE = 5
"""Niceness of bulk threads. More would let them be preempted for long while they hold the GIL (a guess)."""


class Engine:
    """`carry_out(job, fetch)` is called in a thread, without the lock, for each request of `jobs` that is due."""

    def __init__(
        self,
        lock: threading.RLock,
        scheduler: Scheduler,
        waiters: Waiters,
        figures: Figures,
        clock: Callable[[], float],
        *,
        jobs: Mapping[int, Job],
        carry_out: Callable[[Job, Fetch], Outcome],
        demand_threads: int,
    ) -> None:
        self._lock = lock
        self._scheduler = scheduler
        self._waiters = waiters
        self._figures = figures
        self._clock = clock
        self._jobs = jobs
        self._carry_out = carry_out
        self.changed = threading.Condition(lock)
        """A request ended, a layer became whole, or we stop."""
        self.is_stopping = False
        self._earlier = threading.Condition(lock)  # the ticker must wake before `_tick_at`
        self._tick_at = float("inf")
        self._is_behind = False
        self._prober = Prober(lock, scheduler, clock, self.pump)
        self._demand = Crew("demand", demand_threads)
        self.bulk = Crew("bulk", BULK_SLOTS, BULK_NICE)
        self._ticker = threading.Thread(target=self._tick, name="transfer-tick", daemon=True)

    def start(self) -> None:
        """Begin to look at the time."""
        self._ticker.start()

    def pump(self) -> None:
        """Hand out what is due and see that the ticker calls again in time; the lock is held."""
        self._is_behind = False
        if self.is_stopping:
            return
        now = self._clock()
        self._prober.start_due(now)
        for fetch in self._scheduler.due(now):
            self._hand_out(fetch)
        if self._wake_at(now) < self._tick_at:
            self._earlier.notify()

    def pump_for_reader(self) -> Task | None:
        """Hand out what readers wait for, but for one request, which is the caller's to carry out, without the lock.
        Whatever else is due is left to `catch_up`: that request is on its way sooner. The lock is held."""
        fetches = [] if self.is_stopping else self._scheduler.due_to_readers(self._clock())
        if not fetches:
            self.pump()
            return None
        self._is_behind = True
        for fetch in fetches[1:]:
            self._hand_out(fetch)
        return self._task(fetches[0], self._demand)

    def catch_up(self) -> None:
        """Hand out what was left when a reader's request began; for threads that are about to wait."""
        if self._is_behind:  # without the lock: whoever left it comes by here, or ends
            with self._lock:
                self.pump()

    def _hand_out(self, fetch: Fetch) -> None:
        crew = self._demand if fetch.kind.is_urgent else self.bulk
        if fetch.is_hedge:
            self._figures.hedge_asked()
        crew.start(self._task(fetch, crew))

    def _task(self, fetch: Fetch, crew: Crew) -> Task:
        return partial(self._run, self._jobs[fetch.node], fetch, crew)

    def end(self) -> None:
        """Hand out nothing more; the lock is held."""
        self.is_stopping = True
        self.changed.notify_all()
        self._earlier.notify()

    def join(self) -> None:
        """Wait for the threads, after `end` and once what is in flight was cut."""
        self._ticker.join()
        self._prober.stop()
        self._demand.stop()
        self.bulk.stop()

    def _run(self, job: Job, fetch: Fetch, crew: Crew) -> None:
        outcome = Outcome()
        try:
            outcome = self._carry_out(job, fetch)
        finally:
            with self._lock:
                goes_on = fetch.picked and outcome.explained
                self._scheduler.finished(fetch, self._clock(), outcome.round_trip_s, outcome.bad, goes_on=goes_on)
                crew.ends()
                self.pump()
                self.changed.notify_all()

    def _wake_at(self, now: float) -> float:
        wake_at = self._scheduler.wake_at(now)
        times = [*self._waiters.deadlines, *self._prober.wake_times()]
        return min(times if wake_at is None else [wake_at, *times], default=float("inf"))

    def _tick(self) -> None:
        with self._lock:
            while not self.is_stopping:
                now = self._clock()
                self._waiters.expire(now)
                self._tick_at = float("inf")
                self.pump()
                self._tick_at = self._wake_at(now)
                self._earlier.wait(None if self._tick_at == float("inf") else max(0.001, self._tick_at - now))

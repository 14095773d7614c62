"""Says of each read that failed at its deadline what was tried for it, and on whom."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable

from agent.transfer.attempts import Attempts
from agent.transfer.figures import Figures
from agent.transfer.job import Job
from agent.transfer.scheduler import Scheduler
from imgdist.loglimit import LogLimit, left_out

_log = logging.getLogger("imgdist.agent")


class Lapses:
    """`name` is a source's, for people. Called on the view link's thread."""

    def __init__(
        self,
        lock: threading.RLock,
        scheduler: Scheduler,
        attempts: Attempts,
        figures: Figures,
        clock: Callable[[], float],
        name: Callable[[Hashable], str],
    ) -> None:
        self._lock = lock
        self._scheduler = scheduler
        self._attempts = attempts
        self._figures = figures
        self._clock = clock
        self._name = name
        self._limit = LogLimit()

    def lapsed(self, job: Job, start: int, length: int, waited_s: float) -> None:
        """A read of `length` bytes at `start` got EIO after `waited_s`."""
        self._figures.waited(waited_s)
        now = self._clock()
        omitted = self._limit.admit(job.node, now)
        if omitted is None:
            return
        with self._lock:
            tried = self._tried(job, start, length, now)
        _log.error(
            "layer %s: %d bytes at %d: no bytes after %.1f s, EIO; %s%s",
            job.name, length, start, waited_s, tried, left_out(omitted),
        )  # fmt: skip

    def _tried(self, job: Job, start: int, length: int, now: float) -> str:
        """Of the first chunk that is missing."""
        for chunk in job.store.index.chunks_between(start, start + length):
            if not job.store.has(chunk):
                told = self._attempts.tell(job.node, chunk, now)
                asked = self._scheduler.flights.sources_of(job.node, chunk)
                told += [f"{self._name(source)} is asked and silent" for source in asked]
                return f"chunk {chunk}: {'; '.join(told) or 'no source is known'}"
        return "it came at that moment"

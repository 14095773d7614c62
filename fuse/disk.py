"""Threads that may wait for the disk, so that nobody else in the view does.

A hit whose pages are not cached is read here. Device threads and the port's thread only take what they get without
waiting (Layer.read_now): a disk that stalls holds up its own reads, not misses, cached hits or other layers.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger("imgdist.view")

THREADS = 4
"""Reads at the disk at once; they start by need. Measured on 2 shared cores against eight device threads that wait for
the disk themselves: cached hits alike (4 KiB p50 12 us and 28 us on the machine's good and bad minutes, 1 MiB 2.4-3.0
GB/s by one reader, 3-6 by four); resident 16-17 MiB instead of 22; not cached 4 KiB 120-170 us instead of 85-130 and
10,000 instead of 16-20,000 a second, 1 MiB alike. But eight stalled reads stopped all layers there, and any stalled
read that the agent's thread came upon stopped the misses; here neither. Eight disk threads were no faster than four."""

Job = Callable[[], None]


class Disk:
    """A queue and its threads. The queue is bounded by its users: each job is a parked read (slots.PARKED_MAX)."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished = self._started = 0

    def put(self, job: Job) -> None:
        """Run `job` on one of the threads. It must not raise: a fault ends the process, and the next view answers."""
        with self._lock:
            self._unfinished += 1
            starting = self._started < min(self._unfinished, THREADS)
            self._started += starting
            name = f"disk-{self._started}"
        self._jobs.put(job)
        if starting:
            threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self._jobs.get()()
            except Exception:
                log.exception("a disk thread cannot go on; the next view answers what is left")
                os._exit(1)
            with self._lock:
                self._unfinished -= 1

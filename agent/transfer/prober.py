"""Looks after sources in trouble while somebody waits: see `probing`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

from agent.transfer.probing import TIMEOUT_S, Probing
from agent.transfer.scheduler import Scheduler
from agent.transfer.sources import ChunkSource
from imgdist.errors import ImgdistError

_log = logging.getLogger("imgdist.agent")


class Prober:
    """Threads that live as long as a probe. `start_due` and `wake_times` are called under the transfers' lock; `pump`
    hands out what is due."""

    def __init__(
        self, lock: threading.RLock, scheduler: Scheduler, clock: Callable[[], float], pump: Callable[[], None]
    ) -> None:
        self._lock = lock
        self._scheduler = scheduler
        self._clock = clock
        self._pump = pump
        self._probing = Probing()
        self._threads: set[threading.Thread] = set()

    def start_due(self, now: float) -> None:
        """Begin the probes whose time has come."""
        for source in self._probing.due(self._scheduler.troubled(now), now):
            thread = threading.Thread(target=partial(self._probe, cast(ChunkSource, source)), name="probe", daemon=True)
            self._threads.add(thread)
            thread.start()

    def wake_times(self) -> Iterator[float]:
        """When the next ones are due."""
        return self._probing.wake_times()

    def stop(self) -> None:
        """Wait for those under way; the sources are closed and none is begun any more."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _probe(self, source: ChunkSource) -> None:
        answered = True
        try:
            source.probe(TIMEOUT_S)
        except ImgdistError as error:
            _log.debug("%s %s gives no sign of life: %s", source.kind, source.name, error)
            answered = False
        except Exception:  # no memory, say: this source is looked at again
            _log.exception("%s %s cannot be probed", source.kind, source.name)
            answered = False
        with self._lock:
            self._threads.discard(threading.current_thread())
            now = self._clock()
            is_back = self._probing.ended(source, answered, now)
            if is_back:
                _log.info("%s %s answers again", source.kind, source.name)
                source.renew()
                self._scheduler.revived(source, now)
            self._pump()

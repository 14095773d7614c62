"""What becomes of a layer whose last chunk has landed, or that has lost some since."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from agent.layerstore import LayerStore
from agent.transfer.engine import Engine
from agent.transfer.job import Job
from agent.transfer.scheduler import Scheduler
from imgdist.errors import ImgdistError, TemporaryError

_log = logging.getLogger("imgdist.agent")


class Wholes:
    """Makes whole layers durable, and has filled again what a failing disk took from them."""

    def __init__(
        self,
        lock: threading.RLock,
        scheduler: Scheduler,
        jobs: Mapping[int, Job],
        engine: Engine,
        clock: Callable[[], float],
        on_complete: Callable[[LayerStore], None],
    ) -> None:
        """`on_complete(store)` is called in a bulk thread once the image is whole and durable."""
        self._lock = lock
        self._scheduler = scheduler
        self._jobs = jobs
        self._engine = engine
        self._clock = clock
        self._on_complete = on_complete

    def complete(self, job: Job) -> None:
        """All of a layer is in its image."""
        self._engine.bulk.start(partial(self._complete, job))

    def find_lost(self, job: Job, chunks: Iterable[int]) -> bool:
        """Of these chunks, have those asked for again that the store lost; whether there are any. The lock is held."""
        lost = [chunk for chunk in chunks if not job.store.has(chunk)]
        self._scheduler.lost(job.node, lost)
        return bool(lost)

    def _complete(self, job: Job) -> None:
        store = job.store
        assert isinstance(store, LayerStore)  # without a seal none is whole
        try:
            with store.use() as usable:
                if not usable:
                    return
                store.complete()
        except OSError as error:
            _log.error("pack %s is whole, but cannot be made durable: %s", job.name, error)
            return
        except TemporaryError:  # the store is being closed
            return
        except ImgdistError as error:
            _log.error("pack %s is whole no more and is filled again: %s", job.name, error)
            self._fill_again(job, store)
            return
        job.twins.clear()
        with self._lock:
            self._engine.changed.notify_all()
        self._on_complete(store)

    def _fill_again(self, job: Job, store: LayerStore) -> None:
        missing = store.missing_chunks()
        with self._lock:
            if self._jobs.get(job.node) is job:
                self.find_lost(job, missing)
                self._scheduler.fill(job.node, self._clock())
                self._engine.pump()

"""Jobs that wait for chunks: who waits for which, and until when. The caller locks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from imgdist.errors import ImgdistError, TemporaryError


@dataclass(slots=True, eq=False)
class Waiter:
    """A job that waits for chunks of a layer."""

    node: int
    chunks: set[int]
    deadline: float
    future: Future[None]


class Waiters:
    """Ends the futures of jobs. `give_up(node, chunks)` is told of chunks that nobody waits for any more."""

    def __init__(self, give_up: Callable[[int, Iterable[int]], None]) -> None:
        self._give_up = give_up
        self._waiters: list[Waiter] = []

    def add(self, waiter: Waiter) -> None:
        """One more."""
        self._waiters.append(waiter)

    def landed(self, node: int, chunk: int) -> None:
        """A chunk is here: jobs that waited for nothing else go on."""
        for waiter in [w for w in self._waiters if w.node == node and chunk in w.chunks]:
            waiter.chunks.discard(chunk)
            if not waiter.chunks:
                self._waiters.remove(waiter)
                _settle(waiter.future, None)

    @property
    def deadlines(self) -> list[float]:
        """Of every job."""
        return [waiter.deadline for waiter in self._waiters]

    def expire(self, now: float) -> None:
        """End jobs whose deadline is over."""
        self.fail(lambda waiter: waiter.deadline <= now, TemporaryError("no source served the chunks in time"))

    def fail(self, is_gone: Callable[[Waiter], bool], error: ImgdistError | None) -> None:
        """Take jobs off that no longer wait, and what only they wanted; their futures end with the error, if any."""
        gone = [waiter for waiter in self._waiters if is_gone(waiter)]
        self._waiters = [waiter for waiter in self._waiters if waiter not in gone]
        for waiter in gone:
            others = {chunk for other in self._waiters if other.node == waiter.node for chunk in other.chunks}
            self._give_up(waiter.node, waiter.chunks - others)
            if error is not None:
                _settle(waiter.future, error)


def _settle(future: Future[None], error: ImgdistError | None) -> None:
    """End a future that its owner may be cancelling at this moment."""
    with contextlib.suppress(Exception):
        if future.set_running_or_notify_cancel():
            future.set_exception(error) if error else future.set_result(None)

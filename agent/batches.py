"""Work that waits for the kernel, done in a thread for many callers at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batches(Generic[T, R]):
    """What is asked for while a thread is at work is done together in the next rounds.

    The layers of an image are opened side by side: a thread each means that all of them, and the event loop that
    answers containerd meanwhile, wait for the GIL in turn at every system call. One caller alone waits no longer than
    in a thread of its own; a caller that is cancelled leaves its work to be done. All calls come from the event loop.
    """

    def __init__(
        self, threads: Executor, work: Callable[[Sequence[T]], Sequence[R | BaseException]], at_once: int
    ) -> None:
        """`work` runs in one of the `threads`, never twice at a time, for at most `at_once` items, in order of asking:
        a busy time begins with rounds of one, two, four. It returns an outcome for each: the result, or the error that
        is raised to who asked."""
        self._threads = threads
        self._work = work
        self._at_once = at_once
        self._size = 1
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._is_running = False

    async def do(self, item: T) -> R:
        """The result for `item`, or what it failed with."""
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if not self._is_running:
            self._start()
        return await done

    def _start(self) -> None:
        round_, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
        self._is_running = bool(round_)
        self._size = min(2 * self._size, self._at_once) if round_ else 1
        if round_:
            loop, items = asyncio.get_running_loop(), [item for item, _ in round_]
            working = loop.run_in_executor(self._threads, self._outcomes, items)
            working.add_done_callback(lambda ended: self._ended([done for _, done in round_], ended))

    def _outcomes(self, items: Sequence[T]) -> Sequence[R | BaseException]:
        try:
            return self._work(items)
        except Exception as error:
            return [error] * len(items)

    def _ended(self, waiting: Sequence[asyncio.Future[R]], ended: asyncio.Future[Sequence[R | BaseException]]) -> None:
        if ended.cancelled():  # the threads are ended, and begin nothing more
            for done in [*waiting, *(done for _, done in self._waiting)]:
                done.cancel()
            self._waiting = []
            return
        self._start()
        for done, outcome in zip(waiting, ended.result(), strict=True):
            if done.done():
                continue  # cancelled
            if isinstance(outcome, BaseException):
                done.set_exception(outcome)
            else:
                done.set_result(outcome)


def each(act: Callable[[T], R], items: Sequence[T]) -> list[R | BaseException]:
    """The outcome of `act` for each item."""
    return [outcome(act, item) for item in items]


def outcome(act: Callable[[T], R], item: T) -> R | BaseException:
    """What `act` returns for the item, or the error that it raises."""
    try:
        return act(item)
    except Exception as error:
        return error

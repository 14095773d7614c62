"""Work that several callers wait for, run by the daemon."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from imgdist.errors import TemporaryError

T = TypeVar("T")


class SharedWork(Generic[T]):
    """One run of `work` in the daemon's task group, whose outcome any number of callers may await.

    A caller that is cancelled leaves the work running. An error of the work is raised in each caller and never in the
    task group, which it would end; when the daemon stops, callers are cancelled.
    """

    def __init__(self, tasks: asyncio.TaskGroup, work: Coroutine[Any, Any, T]) -> None:
        """Start it. TemporaryError if the daemon is stopping."""
        self._outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._ended_at = math.inf
        running = self._run(work)
        try:
            tasks.create_task(running)
        except RuntimeError:  # the group is closed
            running.close()
            work.close()
            raise TemporaryError("the agent is stopping") from None

    async def wait(self) -> T:
        """The result, or the error that the work ended with."""
        return await asyncio.shield(self._outcome)

    async def settled(self) -> None:
        """Until the work has ended, however it did."""
        await asyncio.wait((self._outcome,))

    @property
    def result(self) -> T | None:
        """The result of work that has ended well, else None."""
        ended_well = self._outcome.done() and not self._outcome.cancelled() and self._outcome.exception() is None
        return self._outcome.result() if ended_well else None

    @property
    def failed(self) -> bool:
        """Whether the work has ended without a result."""
        return self._outcome.done() and (self._outcome.cancelled() or self._outcome.exception() is not None)

    @property
    def error(self) -> BaseException | None:
        """The error of work that has ended with one."""
        ended = self._outcome.done() and not self._outcome.cancelled()
        return self._outcome.exception() if ended else None

    def ended_before(self, when: float) -> bool:
        """Whether the work had ended, however it did, by that time of the event loop's clock (seconds)."""
        return self._ended_at < when

    async def _run(self, work: Coroutine[Any, Any, T]) -> None:
        try:
            result = await work
        except asyncio.CancelledError:
            self._outcome.cancel()
            raise
        except Exception as error:
            self._outcome.set_exception(error)
            self._outcome.exception()  # retrieved: the caller may be gone already
        else:
            self._outcome.set_result(result)
        finally:
            self._ended_at = asyncio.get_running_loop().time()

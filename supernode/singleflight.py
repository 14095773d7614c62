"""One call for many who want the same thing at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Callers with the same key share the running call.

    A thousand nodes that resolve one tag together would otherwise each find the cache empty and ask the registry.
    If the first caller fails, those that wait get its error; if it is cancelled, one of them calls anew.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, asyncio.Future[T]] = {}

    async def do(self, key: Hashable, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call()`, or of the call with the same key that is under way."""
        while flight := self._flights.get(key):
            await asyncio.wait((flight,))  # unlike `await flight`, leaves it running when this caller is cancelled
            if not flight.cancelled():
                return flight.result()
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        try:
            result = await call()
        except asyncio.CancelledError:
            flight.cancel()
            raise
        except Exception as error:
            flight.set_exception(error)
            flight.exception()  # seen: there may be nobody who waits
            raise
        else:
            flight.set_result(result)
            return result
        finally:
            del self._flights[key]

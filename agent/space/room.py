"""A write that finds the disk full is tried again once there is room."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from typing import TypeVar

from agent.space.disk import is_full

_T = TypeVar("_T")

MakeRoom = Callable[[int], Awaitable[bool]]
"""Free so many bytes; whether anything went, or there is room by now."""


async def no_room(size_bytes: int) -> bool:
    """A `MakeRoom` where nothing can be freed."""
    return False


async def with_room(work: Callable[[], Awaitable[_T]], *reliefs: Callable[[], Awaitable[bool]]) -> _T:
    """The result of `work()`; when it finds the disk full, the reliefs are tried one after the other, and the work
    again after each that freed something. Raises what the work raised last."""
    left = list(reliefs)
    while True:
        try:
            return await work()
        except (OSError, sqlite3.Error) as error:
            if not is_full(error):
                raise
            while left:
                if await left.pop(0)():
                    break
            else:
                raise

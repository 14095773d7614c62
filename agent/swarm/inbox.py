"""What all neighbours send, read together a few times a second instead of one wake-up of the event loop for each.

Every connection is in one epoll of its own, and that is in the event loop's: who speaks first after silence is heard at
once, what comes in the next `TICK_S` is read at the end of it, all of it in one go.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable

TICK_S = 0.1
"""A tenth of the wake-ups that sixteen nodes cause each other; news are half as old as they get until they are told."""
READ_MAX = 256 * 1024
"""Bytes of one neighbour in one go: all that it may say of its layers (4 MiB) is here after 2 s."""

Receive = Callable[[memoryview], None]
"""Called with what came, valid during the call only; with nothing at the end."""


class Inbox:
    """Made on the event loop. `collected` is called after each round, when all that had come was handed out."""

    def __init__(self, collected: Callable[[], None], tick_s: float = TICK_S) -> None:
        self._collected = collected
        self._tick_s = tick_s
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._receivers: dict[int, Receive] = {}
        self._buffer = memoryview(bytearray(READ_MAX))
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._epoll, self._begin)

    def add(self, fd: int, receive: Receive) -> None:
        """Read this non-blocking socket from now on."""
        if not self._epoll.closed:
            self._receivers[fd] = receive
            self._epoll.register(fd, select.EPOLLIN)

    def drop(self, fd: int) -> None:
        """Read it no more; to be called before it is closed, again is no harm."""
        if self._receivers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Read nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        else:
            self._loop.remove_reader(self._epoll)
        self._receivers.clear()
        self._epoll.close()

    def _begin(self) -> None:
        """Somebody speaks after silence."""
        self._loop.remove_reader(self._epoll)
        self._round()

    def _round(self) -> None:
        """Hand out what has come; wait for more by the clock, or where nothing has come for the next one who speaks."""
        if not (ready := self._epoll.poll(0)):
            self._timer = None
            self._loop.add_reader(self._epoll, self._begin)
            return
        self._timer = self._loop.call_later(self._tick_s, self._round)
        for fd, _ in ready:
            if fd in self._receivers:  # not dropped on account of what another one said
                self._read(fd)
        self._collected()

    def _read(self, fd: int) -> None:
        receive = self._receivers[fd]
        try:
            count = os.readv(fd, (self._buffer,))
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self.drop(fd)
        receive(self._buffer[:count])

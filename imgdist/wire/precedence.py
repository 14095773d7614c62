"""Who goes first at a chunk server: fill stands back for what is urgent."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imgdist.wire.pieces import LOOK_S, Pieces

LINGER_S = 0.01
"""A start is a chain of single misses: the next one comes about so long after an answer was handed to the kernel (4 ms
on a link of 200 Mbit/s, the way back, the reader's own work; a guess)."""
SHARE_S = 0.04
"""Meanwhile one piece of fill may go so often, whoever's, so that it never dies (a guess); on a slow link less often
(imgdist/wire/pieces.py)."""
LATELY_S = 2.0
"""For so long after what was urgent (a guess: most pauses of a start's readers, where a start takes minutes)."""
NAP_S = 0.25
"""Between looks at most: it may be calm, or the server stopping."""
CALM_S = 5.0
"""Without urgent requests for so long fill goes by whole chunks, as pieces cost twice the CPU. The first miss of a
start then waits for the chunks under way (a guess: longer than a start's pauses)."""


class Precedence:
    """Urgent requests never wait; fills ask before each piece. Thread-safe.

    On a slow link what is urgent goes on long after the kernel has it: 57 ms of a chunk at 12 Mbit/s.
    """

    def __init__(
        self,
        is_sending: Callable[[], bool] = lambda: False,
        pieces: Pieces | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`is_sending` says whether urgent answers that were handed to the kernel are still on their way."""
        self._is_sending, self._clock, self._sleep = is_sending, clock, sleep
        self._pieces = pieces or Pieces()
        self._lock = threading.Lock()
        self._urgent = 0
        self._quiet_at = float("-inf")
        self._share_at = float("-inf")

    @property
    def is_calm(self) -> bool:
        """Whether nothing urgent has been served for a while."""
        return not self._urgent and self._clock() >= self._quiet_at + CALM_S

    @property
    def is_narrow(self) -> bool:
        """Whether fill has only its share of a slow link: one answer at a time is enough for that."""
        return self._pieces.is_slow and (self._urgent > 0 or self._clock() < self._quiet_at + LATELY_S)

    @contextmanager
    def urgent(self) -> Iterator[None]:
        """Something urgent is served in the block."""
        with self._lock:
            now = self._clock()
            if not self._urgent and now >= self._quiet_at:
                self._share_at = now + SHARE_S
            self._urgent += 1
        try:
            yield
        finally:
            with self._lock:
                self._urgent -= 1
                self._quiet_at = self._clock() + LINGER_S

    @contextmanager
    def idle(self) -> Iterator[None]:
        """What is urgent has nothing to send in the block, which is within one of `urgent`."""
        with self._lock:
            self._urgent -= 1
        try:
            yield
        finally:
            with self._lock:
                self._urgent += 1

    def stand_back(self, sock: socket.socket) -> None:
        """Return when fill may send a piece: nothing urgent is or was just served, or its low share is due; and nobody
        else's piece is on its way, as the first thing urgent would have to wait for all of them."""
        while not self.is_calm and (wait_s := self._wait_s(sock)) > 0:
            self._sleep(min(wait_s, NAP_S))

    def _wait_s(self, sock: socket.socket) -> float:
        with self._lock:
            now = self._clock()
            quiet_at = self._quiet_at
            if self._urgent or (now >= quiet_at and self._is_sending()):
                quiet_at = now + LINGER_S  # while it lasts, look again then
            is_quiet = now >= quiet_at
            pieces = self._pieces
            bounds_itself = is_quiet and pieces.is_of(sock) and pieces.took_s is not None and not pieces.is_slow
            if not bounds_itself and pieces.is_on_its_way(now):
                return LOOK_S
            if now < (slow_until := min(pieces.slow_until, quiet_at + LATELY_S)):
                return slow_until - now
            if not is_quiet and now < self._share_at:
                return min(self._share_at, quiet_at) - now
            if not is_quiet:
                self._share_at = now + SHARE_S
            pieces.send(sock, now)
            return 0.0

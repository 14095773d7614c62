"""Who goes first at a chunk server: fill stands back for what is urgent."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imgdist.wire.outstanding import round_trip_s
from imgdist.wire.uplink import unacknowledged

LINGER_S = 0.01
"""A start is a chain of single misses: the next one comes about so long after an answer was handed to the kernel (4 ms
on a link of 200 Mbit/s, the way back, the reader's own work; a guess)."""
SHARE_S = 0.04
"""Meanwhile one piece of fill may go so often, whoever's, so that it never dies (a guess)..."""
SHARE = 0.1
"""...but no more than so much of the link's time, by what the piece before took [measured, 16 starts on 5 Mbit/s: a
piece each 0.04 s is two thirds of such a link]."""
SLOW_S = 0.01
"""Of a link on which a piece takes so long, the way itself left out, fill has no larger share while it is not calm: the
next miss would wait for it (a guess)."""
LOOK_S = 0.002
"""Between looks whether a piece has arrived (a guess)."""
STALLED_S = 1.0
"""What takes longer waits for its reader, not for the link (a guess)."""
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
        left: Callable[[socket.socket], int] = unacknowledged,
        distance: Callable[[socket.socket], float] = round_trip_s,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`is_sending` says whether urgent answers that were handed to the kernel are still on their way, `left` how
        many bytes of a socket are, `distance` how long they take on an idle link."""
        self._is_sending, self._left, self._distance = is_sending, left, distance
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._urgent = 0
        self._quiet_at = float("-inf")
        self._share_at = float("-inf")
        self._slow_until = float("-inf")
        self._is_slow: bool | None = None  # not known
        self._piece: tuple[socket.socket, float] | None = None  # of fill, on its way since

    @property
    def is_calm(self) -> bool:
        """Whether nothing urgent has been served for a while."""
        return not self._urgent and self._clock() >= self._quiet_at + CALM_S

    @property
    def is_narrow(self) -> bool:
        """Whether fill has only its share of a slow link: one answer at a time is enough for that."""
        return self._is_slow is True and not self.is_calm

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
            self._sleep(wait_s)

    def _wait_s(self, sock: socket.socket) -> float:
        with self._lock:
            now = self._clock()
            quiet_at = self._quiet_at
            if self._urgent or (now >= quiet_at and self._is_sending()):
                quiet_at = now + LINGER_S  # while it lasts, look again then
            is_quiet = now >= quiet_at
            is_own = self._piece is not None and self._piece[0] is sock
            if self._is_on_its_way(now) and not (is_quiet and is_own and self._is_slow is False):
                return LOOK_S
            if now < self._slow_until:
                return self._slow_until - now
            if not is_quiet and now < self._share_at:
                return min(self._share_at, quiet_at) - now
            if not is_quiet:
                self._share_at = now + SHARE_S
            self._piece = sock, now
            return 0.0

    def _is_on_its_way(self, now: float) -> bool:
        """Whether the piece before has not arrived; how long it took says when the next one may go."""
        if self._piece is None:
            return False
        sock, since = self._piece
        if now < since + STALLED_S and self._left(sock):
            return True
        self._piece = None
        took_s = max(0.0, now - since - self._distance(sock))
        if now < since + STALLED_S:
            self._is_slow = took_s >= SLOW_S
            self._slow_until = now + took_s * (1 / SHARE - 1) if self._is_slow else now
        return False

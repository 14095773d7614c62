"""Who goes first at a chunk server: fill stands back for what is urgent, and keeps the queue of its link short."""

from __future__ import annotations

import errno
import fcntl
import socket
import termios
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from struct import Struct

LINGER_S = 0.01
"""A start is a chain of single misses: the next one comes about so long after an answer was handed to the kernel (4 ms
on a link of 200 Mbit/s, the way back, the reader's own work; a guess)."""
SHARE_S = 0.04
"""Meanwhile one piece of fill may go so often, whoever's, so that it never dies (a guess)."""
OUTSTANDING_LEAST = 16 * 1024
OUTSTANDING_MOST = 4 * 1024 * 1024
"""Bytes of one filling connection on their way: four connections at the least are 5 ms of a 200 Mbit/s link; the most
is 1 Gbit/s x 32 ms each."""
DELAY_S = 0.002
"""How long a queue fill may cause: LEDBAT's rule (RFC 6817), whose 100 ms would cost twenty misses (a guess)."""
POLL_S = 0.001
"""Between looks at what is outstanding: 25 KB of a 200 Mbit/s link, less than the least."""

# tcpi_snd_mss in bytes, tcpi_rtt and tcpi_min_rtt in microseconds (struct tcp_info, linux/tcp.h).
_INFO = Struct("=16xI48xI76xI")


class Precedence:
    """Urgent requests never wait; fills ask before each piece. Thread-safe."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._urgent = 0
        self._quiet_at = float("-inf")
        self._share_at = float("-inf")

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

    def stand_back(self) -> None:
        """Return when fill may send a piece: nothing urgent is or was just served, or its low share is due."""
        while (wait_s := self._wait_s()) > 0:
            self._sleep(wait_s)

    def _wait_s(self) -> float:
        with self._lock:
            now = self._clock()
            if not self._urgent and now >= self._quiet_at:
                return 0.0
            if now >= self._share_at:
                self._share_at = now + SHARE_S
                return 0.0
            quiet_at = now + LINGER_S if self._urgent else self._quiet_at  # while it lasts, look again then
            return min(self._share_at, quiet_at) - now


class Outstanding:
    """Bounds the bytes of a TCP connection that are sent and not acknowledged: more while that causes no delay, less
    when it does. What lies in queues can no longer be overtaken, neither here nor at the narrowest link."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._least = self._limit = OUTSTANDING_LEAST
        self._count = array("i", [0])

    @property
    def piece(self) -> int:
        """Bytes to hand to the kernel at a time."""
        return max(self._least, self._limit // 2)

    def tune(self) -> None:
        """Take note of the delay; once a chunk."""
        mss, rtt_us, least_us = _INFO.unpack(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))
        self._least = max(OUTSTANDING_LEAST, 2 * mss)  # a receiver may keep the acknowledgement of one segment back
        wanted = self._limit // 2 if rtt_us - least_us > DELAY_S * 1e6 else self._limit * 2
        self._limit = max(self._least, min(wanted, OUTSTANDING_MOST))

    def wait(self, timeout_s: float) -> None:
        """Return when another piece may go. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while self._bytes() > self._limit:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the reader is too slow")
            time.sleep(POLL_S)

    def _bytes(self) -> int:
        fcntl.ioctl(self._socket, termios.TIOCOUTQ, self._count)  # SIOCOUTQ (tcp(7)): unsent and unacknowledged
        return self._count[0]

"""Whether a server's way out is occupied: what the kernel has for others and they have not acknowledged yet."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable

STALLED_S = 1.0
"""What takes longer waits for its reader, not for the link: a chunk at 1 Mbit/s (a guess)."""
KEPT = 64
"""Connections that are looked at: those that were sent to last (a guess: more than a link serves at once)."""


class Uplink:
    """The urgent answers that are on their way. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sending: dict[socket.socket, tuple[str | None, float]] = {}  # to which member, since when; latest at end

    def sent(self, sock: socket.socket, node: str | None) -> None:
        """The kernel has an answer for that member, or for who is none."""
        with self._lock:
            self._sending.pop(sock, None)
            self._sending[sock] = node, self._clock()
            while len(self._sending) > KEPT:
                del self._sending[next(iter(self._sending))]

    @property
    def is_busy(self) -> bool:
        """Whether something is on its way to anybody."""
        with self._lock:
            self._look()
            return bool(self._sending)

    def is_occupied(self, node: str) -> bool:
        """Whether something is on its way to others than this member."""
        with self._lock:
            self._look()
            return any(other != node for other, _ in self._sending.values())

    def _look(self) -> None:
        before = self._clock() - STALLED_S
        for sock, (_, at) in list(self._sending.items()):
            if at <= before or not unacknowledged(sock):
                del self._sending[sock]


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that the other side has not acknowledged (SIOCOUTQ, tcp(7)); 0 of a socket that is closed."""
    try:
        left: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    except (OSError, ValueError):
        return 0
    return left

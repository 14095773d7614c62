"""What the view has to say to the agent. Any thread puts, none ever waits; the port's loop sends what did not fit."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections import deque

_OUTBOX_MAX = 16384
"""Messages kept for an agent that does not read: four for each read that can wait. Beyond, misses are dropped; a
dropped miss is asked again when the agent comes back, or ends at its deadline."""
_STARVING = frozenset({errno.ENOBUFS, errno.ENOMEM})
_STARVED_S = 0.005  # a guess; the socket itself counts as writable, so poll would not wait


class Outbox:
    """Messages on their way to the agent of the moment, and the bell that wakes the port's loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[bytes] = deque()
        self._connection: socket.socket | None = None
        self._starved = False
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def connect(self, connection: socket.socket | None) -> None:
        """Send to `connection` from now on; what was meant for its predecessor is dropped."""
        with self._lock:
            self._connection = connection
            self._queue.clear()

    def put(self, message: bytes) -> None:
        """Send now if the socket takes it, else later; to nobody if no agent is there."""
        with self._lock:
            if self._connection is None:
                return
            if self._queue or not self._send(self._connection, message):
                if len(self._queue) < _OUTBOX_MAX:
                    self._queue.append(message)
                self.ring()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it. For the port's loop, when poll has found the agent ready."""
        if not self._queue:
            return
        with self._lock:
            self._starved = False
            while self._queue and self._connection is not None and self._send(self._connection, self._queue[0]):
                self._queue.popleft()
            starved = self._starved
        if starved:
            time.sleep(_STARVED_S)

    @property
    def events(self) -> int:
        """What the loop should poll the connection for."""
        return select.POLLIN | (select.POLLOUT if self._queue else 0)

    def ring(self) -> None:
        """Wake the port's loop."""
        os.eventfd_write(self.bell, 1)

    def hush(self) -> None:
        """Take note of the bell."""
        try:
            os.eventfd_read(self.bell)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Release the bell."""
        os.close(self.bell)

    def _send(self, connection: socket.socket, message: bytes) -> bool:
        """False if it has to be sent again: the socket is full, or the kernel short of memory. A dead connection
        swallows the message (the loop sees its end)."""
        try:
            connection.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError as error:
            self._starved = error.errno in _STARVING
            return not self._starved
        return True

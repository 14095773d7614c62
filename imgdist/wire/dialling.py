"""Connecting over links that lose packets."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from contextlib import ExitStack
from typing import Any

AGAIN_S = 0.4
"""Without an answer for so long one more SYN is sent. The kernel sends its own again after 1, 3 and 7 s (tcp(7)): too
late for who waits for a link that has just come back."""


def connect(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connected TCP socket with that time-out. Tries every address of `host` in turn. Raises OSError."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    error = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, kind, protocol, _, address in addresses:
        try:
            return _dial(family, kind, protocol, address, timeout_s)
        except OSError as failed:
            error = failed
    raise error


def _dial(family: int, kind: int, protocol: int, address: Any, timeout_s: float) -> socket.socket:
    """Sends a SYN every `AGAIN_S`; the first that is answered counts. Raises TimeoutError, OSError."""
    end = time.monotonic() + timeout_s
    with ExitStack() as unused:
        poll = select.poll()
        dialled: dict[int, socket.socket] = {}
        while (left_s := end - time.monotonic()) > 0:
            one = unused.enter_context(socket.socket(family, kind, protocol))
            one.setblocking(False)
            if (number := one.connect_ex(address)) not in (0, errno.EINPROGRESS):
                raise OSError(number, os.strerror(number))
            poll.register(one, select.POLLOUT)
            dialled[one.fileno()] = one
            for fd, _ in poll.poll(min(left_s, AGAIN_S) * 1000):
                answered = dialled[fd]
                if number := answered.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(number, os.strerror(number))
                kept = socket.socket(fileno=answered.detach())
                kept.settimeout(timeout_s)
                return kept
    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

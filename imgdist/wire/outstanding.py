"""How much of a fill may be on its way at once, so that the queue of its link stays short."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from struct import Struct
from struct import error as struct_error

OUTSTANDING_LEAST = 16 * 1024
OUTSTANDING_MOST = 4 * 1024 * 1024
"""Bytes of one filling connection on their way: four connections at the least are 5 ms of a 200 Mbit/s link; the most
is 1 Gbit/s x 32 ms each (both guesses)."""
OUTSTANDING_CALM = 256 * 1024
"""While nothing is urgent: a chunk, so that a slow reader costs a wakeup a chunk, and the first miss after a calm waits
for no more than that a connection [measured with four chunks: 0.24-0.30 CPU-s/GB, first misses of 57-227 ms;
0.62 by the delay; 0.70 by looking every millisecond; 0.19-0.30 without a bound]."""
DELAY_S = 0.002
"""How long a queue fill may cause: LEDBAT's rule (RFC 6817), whose 100 ms would cost twenty misses (a guess)."""
GROWTH = 1.25
"""At most so much more with each chunk: the round trip that TCP tells is an average, and late (a guess)."""
DISTANCE_S = 300.0
"""How long the least round trip counts, as the kernel's own of one connection (tcp_min_rtt_wlen)."""
HOSTS_KEPT = 1024
URGENT_S = 0.1
"""As much of a link may what is urgent have on its way to one reader, beyond what the way itself holds, by the rate at
which that took the last answer: what this node asks for waits behind it (a guess)."""
URGENT_LEAST, URGENT_MOST = 64 * 1024, 256 * 1024
"""But so much of it at least; and from here on, a chunk, it needs no bound."""
_SO_BUF_LOCK = 72
"""asm-generic/socket.h, Linux 5.14: 0 gives a socket's buffers back to the kernel's own tuning."""

# tcpi_snd_mss in bytes, tcpi_rtt and tcpi_min_rtt in microseconds (struct tcp_info, linux/tcp.h).
_INFO = Struct("=16xI48xI76xI")
_DELIVERY = Struct("=148xI8xQ")  # tcpi_min_rtt, and tcpi_delivery_rate in bytes a second


def round_trip_s(sock: socket.socket) -> float:
    """The least of a TCP connection, as the kernel has it."""
    try:
        return float(_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))[2]) / 1e6
    except OSError:
        return 0.0


class Distances:
    """The least round trip to each host, over all connections with it. A connection that begins in a queue takes that
    for the distance and adds to it: LEDBAT's late-comer (RFC 6817, section 4.4). Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._least: dict[str, tuple[float, int]] = {}  # (when, microseconds); the one heard of last stands last

    def least(self, host: str, rtt_us: int) -> int:
        """What it is in microseconds, now that the least of one connection is `rtt_us`."""
        now = self._clock()
        with self._lock:
            at, known = self._least.pop(host, (now, rtt_us))
            kept = (now, rtt_us) if rtt_us <= known or now >= at + DISTANCE_S else (at, known)
            self._least[host] = kept
            if len(self._least) > HOSTS_KEPT:
                del self._least[next(iter(self._least))]
        return kept[1]


class Outstanding:
    """Bounds the bytes of a TCP connection that are sent and not acknowledged: more while that causes no delay, less
    when it does. What lies in queues can no longer be overtaken, neither here nor at the narrowest link.

    The socket's send buffer is the bound, so that the kernel says when there is room, and nobody has to look."""

    def __init__(self, sock: socket.socket, host: str, distances: Distances) -> None:
        self._socket, self._host, self._distances = sock, host, distances
        self._poll = select.poll()
        self._poll.register(sock, select.POLLOUT)
        self._least = self._limit = OUTSTANDING_LEAST
        self._calm = False
        self._bound = 0

    @property
    def piece(self) -> int | None:
        """Bytes to hand to the kernel at a time; None: a whole chunk."""
        return None if self._calm else max(self._least, self._limit // 2)

    def tune(self, calm: bool) -> None:
        """Take note of the delay, or that nobody cares; once a chunk."""
        self._calm = calm
        if calm:
            self._bind(OUTSTANDING_CALM)
            return
        mss, rtt_us, least_us = _INFO.unpack(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))
        least_us = self._distances.least(self._host, least_us)
        self._least = max(OUTSTANDING_LEAST, 2 * mss)  # a receiver may keep the acknowledgement of one segment back
        aim = self._limit * (least_us + DELAY_S * 1e6) / max(rtt_us, 1)  # what would cause just that delay
        wanted = int(min(max(aim, self._limit / 2), self._limit * GROWTH))
        self._limit = max(self._least, min(wanted, OUTSTANDING_MOST))
        self._bind(self._limit)

    def _bind(self, limit: int) -> None:
        if limit != self._bound:
            self._bound = limit
            bound(self._socket, limit)

    def has_room(self, timeout_s: float) -> bool:
        """Wait until another piece may go, or went wrong; False if that takes longer."""
        return bool(self._poll.poll(timeout_s * 1000))


class UrgentQueue:
    """Bounds what is urgent on a slow link, where a chunk takes longer than `URGENT_S`: whatever else this node has to
    say, its own requests first of all, waits behind what the kernel has handed over."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._bound = 0

    def tune(self) -> None:
        """Before an answer."""
        try:
            least_us, rate = _DELIVERY.unpack(
                self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _DELIVERY.size)
            )
            limit = max(URGENT_LEAST, int(rate * (least_us / 1e6 + URGENT_S))) if rate else URGENT_MOST
            if limit >= URGENT_MOST:
                if self._bound:
                    self._bound = 0
                    unbound(self._socket)
            elif not self._bound / GROWTH < limit < self._bound * GROWTH:
                self._bound = limit
                bound(self._socket, limit)
        except (OSError, struct_error):  # it has gone, or the kernel tells less
            return


def bound(sock: socket.socket, limit: int) -> None:
    """Have so many bytes of a connection on their way at most."""
    # The kernel doubles the size and says "writable" at two thirds of that: at the limit. Above net.core.wmem_max it
    # gives less than asked; then its own tuning is the better bound.
    size = limit * 3 // 4
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 2 * size:
        unbound(sock)


def unbound(sock: socket.socket) -> None:
    """As many as the kernel finds right."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)

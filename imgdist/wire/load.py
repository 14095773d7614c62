"""How much a chunk server has to send, by urgency, and how long that takes: what it tells those who ask, and by what it
sends them elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from imgdist.wire.messages import Priority

RATE_BYTES_PER_S = 12.5e6
"""Believed until some has been sent: 100 Mbit/s (a guess)."""
BODY_BYTES = 64 * 1024
"""Likewise of a chunk's body."""
SLICE_S = 0.05
"""Of time with something to send, after which its rate is believed a little..."""
SHARE = 0.25
"""...so much, so that a change of the link shows within 0.3 s (a guess)."""
STALLED_S = 0.5
"""An answer whose reader made no room for so long waits for the reader, not for us, and counts for nobody: else four
slow ones are four busy slots to all others. Longer than a full buffer takes when a link of 6 Mbit/s is ours (a guess).
"""

_ORDER = list(Priority)


class Load:
    """What waits to be sent. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._bytes = [0] * len(_ORDER)
        self._requests = [0] * len(_ORDER)
        self._rate = RATE_BYTES_PER_S
        self._body = float(BODY_BYTES)
        self._busy_since: float | None = None
        self._busy_s = 0.0
        self._sent_bytes = 0
        self._paused: dict[Ticket, float] = {}  # since when, the longest first

    def take_on(self, priority: Priority, chunks: int) -> Ticket:
        """A request for so many chunks is to be answered."""
        ticket = Ticket(self, _ORDER.index(priority))
        with self._lock:
            if self._busy_since is None:
                self._busy_since = self._clock()
            self._requests[ticket.rank] += 1
            self._change(ticket, int(chunks * self._body))
        return ticket

    def requests(self, priority: Priority) -> int:
        """Requests of this priority that wait or are being answered."""
        self._set_stalled_aside()
        return self._requests[_ORDER.index(priority)]

    def ahead_bytes(self, priority: Priority) -> int:
        """What waits with this urgency or a higher one."""
        self._set_stalled_aside()
        return sum(self._bytes[: _ORDER.index(priority) + 1])

    def wait_s(self, priority: Priority) -> float:
        """How long that takes at the rate of late."""
        return self.ahead_bytes(priority) / self._rate

    def pause(self, ticket: Ticket) -> None:
        """Its reader has no room."""
        with self._lock:
            self._paused[ticket] = self._clock()

    def set_aside(self, ticket: Ticket) -> None:
        """What it asks for is not here yet: till it is resumed it counts for nobody, nor its time for the rate."""
        with self._lock:
            self._put_aside(ticket)

    def resume(self, ticket: Ticket) -> None:
        """It has room again, or something to send."""
        with self._lock:
            self._bring_back(ticket)

    def settle(self, ticket: Ticket, size_bytes: int, chunks: int) -> None:
        """What is to be sent is known now."""
        with self._lock:
            self._body += (size_bytes / chunks - self._body) * SHARE / 4
            self._change(ticket, size_bytes - ticket.left_bytes)

    def sent(self, ticket: Ticket, size_bytes: int) -> None:
        """So much of it went to the kernel."""
        with self._lock:
            self._change(ticket, -min(size_bytes, ticket.left_bytes))
            self._sent_bytes += size_bytes
            self._take_time()
            if self._busy_s >= SLICE_S:
                self._rate += (self._sent_bytes / self._busy_s - self._rate) * SHARE
                self._busy_s, self._sent_bytes = 0.0, 0

    def done(self, ticket: Ticket) -> None:
        """Nothing more of it will be sent; again is no harm."""
        with self._lock:
            if ticket.is_open:
                self._bring_back(ticket)
                ticket.is_open = False
                self._change(ticket, -ticket.left_bytes)
                self._take_off(ticket)

    def _set_stalled_aside(self) -> None:
        """Those whose readers have stalled."""
        if not self._paused:
            return
        with self._lock:
            before = self._clock() - STALLED_S
            while self._paused and (ticket := next(iter(self._paused))) and self._paused[ticket] <= before:
                del self._paused[ticket]
                self._put_aside(ticket)

    def _put_aside(self, ticket: Ticket) -> None:
        ticket.is_aside = True
        self._bytes[ticket.rank] -= ticket.left_bytes
        self._take_off(ticket)

    def _bring_back(self, ticket: Ticket) -> None:
        self._paused.pop(ticket, None)
        if ticket.is_aside:
            ticket.is_aside = False
            self._bytes[ticket.rank] += ticket.left_bytes
            self._requests[ticket.rank] += 1
            if self._busy_since is None:
                self._busy_since = self._clock()

    def _take_off(self, ticket: Ticket) -> None:
        self._requests[ticket.rank] -= 1
        if not any(self._requests):
            self._take_time()
            self._busy_since = None

    def _take_time(self) -> None:
        if self._busy_since is not None:
            now = self._clock()
            self._busy_s, self._busy_since = self._busy_s + now - self._busy_since, now

    def _change(self, ticket: Ticket, size_bytes: int) -> None:
        ticket.left_bytes += size_bytes
        self._bytes[ticket.rank] += size_bytes


class Ticket:
    """One request's part of the load."""

    __slots__ = ("is_aside", "is_open", "left_bytes", "rank")

    def __init__(self, load: Load, rank: int) -> None:
        self.rank = rank
        self.left_bytes = 0
        self.is_open = True
        self.is_aside = False

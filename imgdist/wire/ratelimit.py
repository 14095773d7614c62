"""A cap on bytes per second: a token bucket, in which what is urgent may go into debt that fill works off."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from imgdist.wire.messages import BODY_MAX

BURST_S = 0.05
"""What an idle link may send at once, in seconds of the rate (a guess; at least a chunk)."""
PIECE = 64 * 1024
"""Bytes to ask for at a time, so that several share a low rate."""


class RateLimit:
    """At most `bytes_per_s` on average. Thread-safe."""

    def __init__(self, bytes_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = bytes_per_s
        self._burst = max(bytes_per_s * BURST_S, BODY_MAX)
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = self._burst
        self._at = clock()

    def take(self, size_bytes: int, *, urgent: bool = False) -> float:
        """0.0 if so much (at most a chunk) may be sent now, and it counts as sent; else seconds until it is worth
        asking again. What is urgent may go up to a chunk into debt; fill waits until that is paid."""
        floor = size_bytes - BODY_MAX if urgent else size_bytes
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
            if self._tokens < floor:
                return (floor - self._tokens) / self._rate
            self._tokens -= size_bytes
            return 0.0

    def give_back(self, size_bytes: int) -> None:
        """So much of what was taken was not sent."""
        with self._lock:
            self._tokens += size_bytes

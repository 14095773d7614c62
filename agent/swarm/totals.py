"""What a node's sources amount to together: requests and bytes in flight, and averages. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from agent.swarm.neighbours import Neighbour, SourceKind

_SAMPLE_S = 0.1
"""Bytes that came are a sample of the rate once so much time has passed (a guess)."""
_ENDED = 32
"""Requests that ended, after which the median rate is looked at again (a guess)."""


class Totals:
    """`outstanding`: fill and spread requests in flight; `in_flight_bytes`: of all, as estimated when they started.

    `chunk_bytes` is a chunk's body on average, `way_s` a round trip, `rate` what comes from all sources in a second,
    `slow_rate` the rate below which a peer is slow.
    """

    def __init__(self, slow: float) -> None:
        self._slow = slow
        self.outstanding = 0
        self.in_flight_bytes = 0
        self.chunk_bytes = 100_000.0
        self.way_s = 0.0
        self.rate = 0.0
        self.slow_rate = 0.0
        self._ended = 0
        self._came_bytes = 0
        self._came_since = 0.0

    def started(self, neighbour: Neighbour, size_bytes: int, urgent: bool, now: float) -> None:
        """A request went out."""
        if not self.in_flight_bytes:
            self._came_since, self._came_bytes = now, 0
        neighbour.started(size_bytes, urgent, now)
        self.in_flight_bytes += size_bytes
        if not urgent:
            self.outstanding += 1

    def answered(self, round_trip_s: float) -> None:
        """A source's least round trip, as its newest answer has it."""
        self.way_s += (round_trip_s - self.way_s) / 8 if self.way_s else round_trip_s

    def came(self, size_bytes: int, chunks: int, now: float) -> None:
        """So many bodies."""
        self.chunk_bytes += (size_bytes / chunks - self.chunk_bytes) / 32
        self._came_bytes += size_bytes
        took = now - self._came_since
        if took >= _SAMPLE_S:
            sample = self._came_bytes / took
            self.rate += (sample - self.rate) / 4 if self.rate else sample
            self._came_since, self._came_bytes = now, 0

    def ended(self, neighbour: Neighbour, size_bytes: int, urgent: bool, now: float, all_: Iterable[Neighbour]) -> None:
        """A request is over."""
        self.in_flight_bytes -= min(size_bytes, neighbour.in_flight_bytes)
        if not urgent and neighbour.outstanding:
            self.outstanding -= 1
        neighbour.ended(size_bytes, urgent, now)
        self._ended += 1
        if self._ended % _ENDED == 0:
            rates = [other.rate for other in all_ if other.rate and other.kind is SourceKind.PEER]
            self.slow_rate = median(rates) * self._slow if len(rates) > 2 else 0.0

    def left(self, neighbour: Neighbour) -> None:
        """What is in flight there comes to nothing."""
        self.outstanding -= neighbour.outstanding
        self.in_flight_bytes -= neighbour.in_flight_bytes

    def is_slow(self, neighbour: Neighbour) -> bool:
        """Whether it serves far below what others do."""
        rate = neighbour.rate
        return rate is not None and rate < self.slow_rate and neighbour.kind is SourceKind.PEER

"""What a node's sources amount to together: requests in flight, and averages. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from agent.swarm.neighbours import Neighbour, SourceKind

_ENDED = 32
"""Requests that ended, after which the median rate is looked at again (a guess)."""


class Totals:
    """`outstanding`: fill and spread requests in flight; `chunk_bytes`: a chunk's body, on average; `slow_rate`: in
    bytes/s, the `slow`-fold of the peers' median; below it a peer is slow."""

    def __init__(self, slow: float) -> None:
        self._slow = slow
        self.outstanding = 0
        self.chunk_bytes = 100_000.0
        self.slow_rate = 0.0
        self._ended = 0

    def started(self, neighbour: Neighbour, size_bytes: int, urgent: bool, now: float) -> None:
        """A request went out."""
        neighbour.started(size_bytes, urgent, now)
        if not urgent:
            self.outstanding += 1

    def came(self, size_bytes: int, chunks: int) -> None:
        """So many bodies."""
        self.chunk_bytes += (size_bytes / chunks - self.chunk_bytes) / 32

    def ended(self, neighbour: Neighbour, size_bytes: int, urgent: bool, now: float, all_: Iterable[Neighbour]) -> None:
        """A request is over."""
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

    def is_slow(self, neighbour: Neighbour) -> bool:
        """Whether it serves far below what others do."""
        rate = neighbour.rate
        return rate is not None and rate < self.slow_rate and neighbour.kind is SourceKind.PEER

"""What a node's sources amount to together: requests in flight, and averages. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from agent.swarm.asks import Limits
from agent.swarm.neighbours import Neighbour, SourceKind

_ENDED = 32
"""Requests that ended, after which the median rate is looked at again (a guess)."""


class Totals:
    """`outstanding`: fill and spread requests in flight; `outstanding_most`: fill requests that may be; `chunk_bytes`:
    a chunk's body, on average; `slow_rate`: in bytes/s, the `slow`-fold of the peers' median; below it a peer is slow.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.outstanding = 0
        self.outstanding_most = limits.outstanding
        self.chunk_bytes = 100_000.0
        self.slow_rate = 0.0
        self._ended = 0

    def started(self, neighbour: Neighbour, size_bytes: int, urgent: bool, now: float, waits_s: float) -> None:
        """A request went out, which may have to wait there for so long."""
        neighbour.started(size_bytes, urgent, now, waits_s)
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
            self._compare(rates)

    def _compare(self, rates: Sequence[float]) -> None:
        """What the peers' rates say, where there are a few."""
        limits = self._limits
        middle = median(rates) if len(rates) > 2 else 0.0
        self.slow_rate = middle * limits.slow
        are_long = 0.0 < middle * limits.run_s < limits.run * self.chunk_bytes
        self.outstanding_most = limits.outstanding_long if are_long else limits.outstanding

    def left(self, neighbour: Neighbour) -> None:
        """What is in flight there comes to nothing."""
        self.outstanding -= neighbour.outstanding

    def is_slow(self, neighbour: Neighbour) -> bool:
        """Whether it serves far below what others do."""
        rate = neighbour.rate
        return rate is not None and rate < self.slow_rate and neighbour.kind is SourceKind.PEER

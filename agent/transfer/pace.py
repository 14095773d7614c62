"""How soon, and how fast, a node takes what nobody waits for: the operator's bounds. Pure."""

from __future__ import annotations

from dataclasses import dataclass

BURST_S = 0.1
"""Of the allowed rate: what may come at once after a pause (a guess). One request more always may."""


@dataclass(slots=True)
class Pace:
    """Fill begins `delay_s` after it was asked for, and at random up to `jitter_s` later: nodes that start together do
    not fill together. Traces and fill together take at most `bytes_per_s` (0: no bound), as a token bucket."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0
    _spent_until: float = float("-inf")

    def begins_at(self, now: float, random: float) -> float:
        """When a fill asked for now may begin; `random` is in [0, 1)."""
        return now + self.delay_s + self.jitter_s * random

    def take(self, size_bytes: int, now: float) -> None:
        """So many bytes were asked for."""
        if self.bytes_per_s:
            self._spent_until = max(self._spent_until, now - BURST_S) + size_bytes / self.bytes_per_s

    @property
    def ready_at(self) -> float:
        """When more may be asked for."""
        return self._spent_until

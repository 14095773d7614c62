"""When to try again what failed: a layer that no source serves, a chunk that came wrong. Pure."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

DEMAND_PAUSE_S = (0.05, 0.4)
"""Between tries while somebody waits: first, at most; doubling, jittered by a quarter. So a source's return is seen
within 0.5 s."""
BULK_PAUSE_S = (0.05, 10.0)
"""The same while nobody waits (a guess)."""


@dataclass(slots=True)
class Backoff:
    """Failures in a row of one thing."""

    failures: int = 0
    _failed_at: float = 0.0
    _jitter: float = 1.0

    def failed(self, now: float, random: float) -> None:
        """One more; `random` is in [0, 1). Of requests that were under way together the first one's counts."""
        if self.failures and now - self._failed_at < DEMAND_PAUSE_S[0] / 2:
            return
        self.failures = min(self.failures + 1, 16)
        self._failed_at, self._jitter = now, 0.75 + random / 2

    def ready_at(self, pause: tuple[float, float]) -> float:
        """When it may be tried again, with pauses from the first to the second value."""
        if not self.failures:
            return 0.0
        doubled: float = pause[0] * 2.0 ** (self.failures - 1)
        return self._failed_at + min(doubled, pause[1]) * self._jitter


class Rest:
    """Chunks (node, chunk) that rest until a time. One that is put in twice comes out twice: look whether it is due."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int]] = []

    def put(self, at: float, node: int, chunk: int) -> None:
        """Bring it up at `at`."""
        heapq.heappush(self._heap, (at, node, chunk))

    def pop(self, now: float) -> tuple[int, int] | None:
        """One whose time has come."""
        if not self._heap or self._heap[0][0] > now:
            return None
        _, node, chunk = heapq.heappop(self._heap)
        return node, chunk

    def next_at(self) -> float | None:
        """When the next one comes out."""
        return self._heap[0][0] if self._heap else None

"""Keeps a fault that repeats from filling the log: one line of a kind in a while, and how many were left out."""

from __future__ import annotations

from collections.abc import Hashable

PERIOD_S = 10.0
"""Between two lines of one kind (a guess)."""
_KINDS_MAX = 1024


class LogLimit:
    """Of each kind one line in `period_s` passes. Times are of any one clock, in seconds. Not thread-safe."""

    def __init__(self, period_s: float = PERIOD_S) -> None:
        self._period_s = period_s
        self._kinds: dict[Hashable, tuple[float, int]] = {}  # when its last line passed, how many did not since

    def admit(self, kind: Hashable, now: float) -> int | None:
        """How many lines of this kind were left out since its last one, if this one may be written; else None."""
        at, left_out = self._kinds.pop(kind, (float("-inf"), 0))
        admitted = now - at >= self._period_s
        self._kinds[kind] = (now, 0) if admitted else (at, left_out + 1)
        while len(self._kinds) > _KINDS_MAX:
            del self._kinds[next(iter(self._kinds))]
        return left_out if admitted else None


def left_out(count: int) -> str:
    """What a line says about those before it that were not written."""
    return f" ({count} more like this were not logged)" if count else ""

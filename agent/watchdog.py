"""Which children hang: those that gave signs of life and give none any more. Pure, the standard library alone.

Silence is counted in looks, not in seconds: a machine that stood still lets one look pass, however long that took.
"""

from __future__ import annotations

import math

LOOKS = 4
"""Looks in a row without a sign of life after which a child hangs."""


class Watchdog:
    """Times are CLOCK_MONOTONIC seconds. `patience_s`: how long a child may be silent; 0: for ever."""

    def __init__(self, patience_s: float) -> None:
        self._period_s = patience_s / LOOKS
        self._silent: dict[int, int] = {}
        self.due = math.inf
        """When to look next."""

    def heard(self, pid: int, now: float) -> None:
        """A process gave a sign of life: from now on it has to."""
        if self._period_s > 0:
            self._silent[pid] = 0
            self.due = min(self.due, now + self._period_s)

    def forget(self, pid: int) -> None:
        """The process has ended, or is about to."""
        self._silent.pop(pid, None)

    def look(self, now: float) -> list[int]:
        """The processes that hang, if it is time to look; they are forgotten."""
        if now < self.due:
            return []
        self._silent = {pid: looks + 1 for pid, looks in self._silent.items()}
        hung = [pid for pid, looks in self._silent.items() if looks > LOOKS]
        for pid in hung:
            del self._silent[pid]
        self.due = now + self._period_s if self._silent else math.inf
        return hung

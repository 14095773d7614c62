"""How fast one registry may be asked: a rate that is configured, and what its 429s teach. Pure.

All requests to a registry share it, because 429 is about the client and not about a request: without that, each of a
hundred layers would find out for itself, and be refused again for the others' retries.
"""

from __future__ import annotations

SLOW_S, SLOWEST_S = 0.1, 1.0
"""Between two requests after a 429, and at most; doubled by each further one, halved by each good answer (guesses)."""
FREE_S = 0.01
"""Below this the pace is no limit any more."""
PAUSE_S = 1.0
"""The pause after a 429 that names none (a guess)."""


class Budget:
    """When the next request to a registry may go. `per_s`: most requests a second, 0 for no limit."""

    def __init__(self, per_s: float = 0.0) -> None:
        self._gap_s = 1 / per_s if per_s else 0.0
        self._pace_s = 0.0
        self._next_at = 0.0
        self._paused_until = 0.0

    def take(self, now: float) -> float:
        """Seconds that a request has to wait; it has its place from now on."""
        at = max(now, self._next_at)
        self._next_at = at + max(self._gap_s, self._pace_s)
        return at - now

    def refused(self, now: float, pause_s: float | None) -> None:
        """The registry answered 429, and asked for such a pause."""
        if now >= self._paused_until:  # what was on its way together is refused together, and teaches once
            self._pace_s = min(SLOWEST_S, max(SLOW_S, 2 * self._pace_s))
        self._paused_until = max(self._paused_until, now + (PAUSE_S if pause_s is None else pause_s))
        self._next_at = max(self._next_at, self._paused_until)

    def answered(self) -> None:
        """The registry answered as it should."""
        self._pace_s = self._pace_s / 2 if self._pace_s >= 2 * FREE_S else 0.0

"""When a second source is asked for what a reader waits for: late answers only, and few. Pure."""

from __future__ import annotations

from collections import deque

_ANSWERS_KEPT = 128
"""Answers whose times are known (a guess)."""
_ANSWERS_LEAST = 8
"""Before these the 95th percentile says nothing (a guess)."""


class Hedge:
    """`quantile` of the answer times, at least `floor_s`; `share` of all urgent requests may be second ones."""

    def __init__(self, quantile: float, floor_s: float, share: float, burst: float = 4.0) -> None:
        self._quantile = quantile
        self._floor_s = floor_s
        self._share = share
        self._burst = burst
        self._credit = 1.0
        self._answers: deque[float] = deque(maxlen=_ANSWERS_KEPT)
        self._after_s: float | None = None

    def asked(self) -> None:
        """An urgent request went out: a share of a second one is earned."""
        self._credit = min(self._credit + self._share, self._burst)

    def hedged(self) -> None:
        """A second request went out."""
        self._credit = max(0.0, self._credit - 1.0)

    def answered(self, took_s: float) -> None:
        """An urgent request's first byte came."""
        self._answers.append(took_s)
        self._after_s = None

    def at(self, asked_at: float) -> float | None:
        """When to ask a second source; None: the budget is used up."""
        if self._credit < 1.0:
            return None
        if self._after_s is None:
            self._after_s = self._floor_s
            if len(self._answers) >= _ANSWERS_LEAST:
                ordered = sorted(self._answers)
                late = ordered[min(int(self._quantile * len(ordered)), len(ordered) - 1)]
                self._after_s = max(late, self._floor_s)
        return asked_at + self._after_s

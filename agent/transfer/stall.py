"""How long readers waited for chunks: a start's own time stands still meanwhile. Pure; the caller locks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Stall:
    """The time in which at least one reader waited."""

    _before_s: float = 0.0
    _since: float | None = None

    def look(self, now: float, *, waits: bool) -> None:
        """Whether anybody waits from `now` on."""
        if waits and self._since is None:
            self._since = now
        elif not waits and self._since is not None:
            self._before_s += max(0.0, now - self._since)
            self._since = None

    def seconds(self, now: float) -> float:
        """In all, until now."""
        return self._before_s + (max(0.0, now - self._since) if self._since is not None else 0.0)

"""Whom this node stays with in a crowd: the one before it in a line of nodes that miss the same chunks. Pure.

Who was sent to another one, waited there and was served, asks it first for what is missed next: it is ahead by a chunk,
or is getting that one, and to ask elsewhere would cost a way there and a redirect. The line is by address, so nobody
waits for who waits for it (supernode/crowds.py).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

KEPT_S = 5.0
"""Without a miss for so long it is somewhere else, or gone (a guess)."""
LACKED_MAX = 3
"""So often in a row the one before may lack what is asked of it (a guess)."""


@dataclass(slots=True)
class Line:
    """The source before this node, while that serves."""

    _before: Hashable | None = None
    _until: float = 0.0
    _lacked: int = 0

    def before(self, now: float) -> Hashable | None:
        """Whom to ask first, if anybody."""
        return self._before if now < self._until else None

    def served(self, source: Hashable, now: float) -> None:
        """It had, or waited for, what was missed."""
        self._before, self._until, self._lacked = source, now + KEPT_S, 0

    def lacked(self, source: Hashable) -> None:
        """It had not what was missed, nor was it getting that: this node is ahead of it for once, or for good."""
        if self._before == source:
            self._lacked += 1
            if self._lacked == LACKED_MAX:
                self._before = None

    def left(self, source: Hashable) -> None:
        """It failed, or sent this node elsewhere."""
        if self._before == source:
            self._before = None

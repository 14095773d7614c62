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
SHUNNED_S = 30.0
"""A node whose way out is slow would hold up all behind it (a guess)."""
LACKED_S = 2.0
"""So long the one before may lack whatever is asked of it: this node is ahead of it for a moment, or for good (a
guess)."""


@dataclass(slots=True)
class Line:
    """The source before this node, while that serves."""

    until: float = 0.0
    """When it is forgotten, if nothing is missed."""
    _before: Hashable | None = None
    _lacks_since: float | None = None
    _shunned: Hashable | None = None
    _shunned_until: float = 0.0

    def before(self, now: float) -> Hashable | None:
        """Whom to ask first, if anybody."""
        return self._before if now < self.until else None

    def served(self, source: Hashable, now: float) -> None:
        """It had, or waited for, what was missed."""
        if source == self._shunned and now < self._shunned_until:
            return
        self._before, self.until, self._lacks_since = source, now + KEPT_S, None

    def lacked(self, source: Hashable, now: float) -> None:
        """It had not what was asked for, nor was it getting that."""
        if self._before != source:
            return
        if self._lacks_since is None:
            self._lacks_since = now
        elif now - self._lacks_since >= LACKED_S:
            self._before = None

    def shun(self, source: Hashable, now: float) -> None:
        """It served so late that another one had to: for a while it is not stayed with."""
        self.left(source)
        self._shunned, self._shunned_until = source, now + SHUNNED_S

    def left(self, source: Hashable) -> None:
        """It failed, or sent this node elsewhere."""
        if self._before == source:
            self._before = None

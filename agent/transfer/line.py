"""Whom this node stays with in a crowd: the one before it in a line of nodes that miss the same chunks. Pure.

Who was sent to another one, waited there and was served, asks it first for what is missed next: it is ahead by a chunk,
or is getting that one, and to ask elsewhere would cost a way there and a redirect. The line is by address, so nobody
waits for who waits for it (supernode/crowds.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

KEPT_S = 5.0
"""Without a miss for so long it is somewhere else, or gone (a guess)."""
SHUNNED_S = 30.0
"""A node whose way out is slow would hold up all behind it (a guess)."""
CROWD_S = 30.0
"""For so long after it was last served by the one before it, a node counts itself to a crowd (a guess)."""
LACKED_S = 2.0
"""So long the one before may lack whatever is asked of it: this node is ahead of it for a moment, or for good (a
guess)."""


@dataclass(slots=True)
class Line:
    """The source before this node, while that serves. `me()`: this node's address, "" if nobody reaches it; `name`: a
    source's."""

    me: Callable[[], str] = str
    name: Callable[[Hashable], str] = str
    until: float = 0.0
    """When it is forgotten, if nothing is missed."""
    _crowd_until: float = 0.0
    _before: Hashable | None = None
    _lacks_since: float | None = None
    _shunned: Hashable | None = None
    _shunned_until: float = 0.0

    def before(self, now: float) -> Hashable | None:
        """Whom to ask first, if anybody."""
        return self._before if now < self.until else None

    def served(self, source: Hashable, now: float) -> None:
        """It had, or waited for, what was missed."""
        if self._is_shunned(source, now):
            return
        self._before, self.until, self._lacks_since = source, now + KEPT_S, None
        self._crowd_until = now + CROWD_S

    def is_crowd(self, now: float) -> bool:
        """Whether this node was served in a line lately."""
        return now < self._crowd_until

    def stands_before(self, source: Hashable) -> bool:
        """Whether a source stands before this node, which may wait for it then: the two never wait for each other."""
        me = self.me()  # whom nobody reaches stands at the end
        return not me or self.name(source) < me

    def next_to(self, before: Hashable, holders: Iterable[Hashable], now: float) -> Hashable | None:
        """Of the one that is stayed with and those that have what is missed, the next one before this node. One that
        stands behind this node and is ahead of it is stayed with as long as it has what is missed."""
        if not self.stands_before(before) and before in holders:
            return before
        sound = [source for source in (before, *holders) if not self._is_shunned(source, now)]
        return max(filter(self.stands_before, sound), key=self.name, default=None)

    def turns(self, sources: Iterable[Hashable], now: float) -> Mapping[Hashable, int]:
        """In which turn to ask those that have what the one before this node lacks, or if there is none: from the end
        of the line, which has nobody to serve, back to this node, then those before it, the nearest first. Else all
        would ask whoever answers soonest, and the one behind that one would go short."""
        ordered = sorted(sources, key=self.name)
        place = bisect_left(ordered, self.me(), key=self.name) if self.me() else len(ordered)
        in_turn = [*ordered[place:][::-1], *ordered[:place][::-1]]
        in_turn.sort(key=lambda source: self._is_shunned(source, now))
        return {source: turn for turn, source in enumerate(in_turn)}

    def _is_shunned(self, source: Hashable, now: float) -> bool:
        return source == self._shunned and now < self._shunned_until

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

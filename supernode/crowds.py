"""Who asks for the same chunks at the same time, and who of them passes them on to whom. No I/O.

Nodes that start together miss the same chunk at the same moment, and then the next one. They stand in a line, by their
addresses: each is sent to the one before it, so that every link carries a chunk once in each direction, and nobody
waits for somebody who waits for it. The last one waits for all others, but once: then each is one chunk behind the one
before it, which has what is asked of it, and stays with that one (agent/transfer/line.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable

CROWDS_MAX = 512
"""Sets of chunks whose askers are remembered, those that were asked for last."""
CROWD_MAX = 1024
"""Askers of each that are remembered: a reference each to an address that the supernode keeps anyway."""
CROWD_S = 60.0
"""When nobody joined for so long the next one begins another crowd (a guess)."""
NEVER = float("-inf")
NEAR = 8
"""Of those before a node in the line, so many are looked at: some may be gone (a guess)."""


class Crowds:
    """Nodes are addresses; "" is somebody whom others cannot reach."""

    def __init__(self, dice: Callable[[], float]) -> None:
        self._dice = dice
        self._crowds: OrderedDict[Hashable, tuple[list[str], float]] = OrderedDict()

    def join(self, what: Hashable, node: str, now: float, had: Callable[[], Iterable[str]]) -> list[str]:
        """A node asks for `what`: who passes it on to this one, the best first; nobody to the first in line. `had()`:
        who got it before the crowd began."""
        crowd, joined_at = self._crowds.pop(what, ([], NEVER))
        if now > joined_at + CROWD_S:
            crowd = sorted(had())
        self._crowds[what] = crowd, now
        if len(self._crowds) > CROWDS_MAX:
            self._crowds.popitem(last=False)
        place = bisect_left(crowd, node) if node else len(crowd)
        if place < len(crowd) and crowd[place] == node:
            return [crowd[other] for other in {int(self._dice() * place) for _ in range(2)} if other < place]
        if node and len(crowd) < CROWD_MAX:
            crowd.insert(place, node)
        return crowd[max(0, place - NEAR) : place][::-1]

    def clear(self) -> None:
        """Forget all."""
        self._crowds.clear()

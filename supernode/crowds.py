"""Who asks for the same chunks at the same time, and who of them passes them on to whom. No I/O.

Nodes that start together miss the same chunk at the same moment, and then the next one. Each is sent to the one that
asked before it: every link carries a chunk once in each direction. The last one waits for all others, but once: then
each is one chunk behind the one before it, which has what is asked of it, and nobody waits longer than alone. Whoever
comes back, as that one had it not in time, is sent to any that asked earlier.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

CROWDS_MAX = 512
"""Sets of chunks whose askers are remembered, those that were asked for last."""
CROWD_MAX = 1024
"""Askers of each that are remembered; 2 bytes each."""


class Crowds:
    """Nodes are numbers from 1 on; 0 is somebody whom others cannot reach."""

    def __init__(self, dice: Callable[[], float]) -> None:
        self._dice = dice
        self._crowds: OrderedDict[Hashable, array[int]] = OrderedDict()

    def join(self, what: Hashable, node: int, had: Callable[[], Sequence[int]]) -> list[int]:
        """A node asks for `what`: who passes it on to this one, the best first; nobody to the first one. `had()`: who
        got it before the crowd began, the latest first."""
        crowd = self._crowds.get(what)
        if crowd is None:
            crowd = self._crowds[what] = array("H", reversed(had()))
            if len(self._crowds) > CROWDS_MAX:
                self._crowds.popitem(last=False)
        self._crowds.move_to_end(what)
        if node in crowd:
            return self._any_before(crowd, crowd.index(node))
        place = len(crowd)
        if place == CROWD_MAX:
            return self._any_before(crowd, place)
        if node:
            crowd.append(node)
        return [crowd[other] for other in dict.fromkeys((place - 1, (place - 1) // 2)) if other >= 0]

    def _any_before(self, crowd: array[int], place: int) -> list[int]:
        return [crowd[other] for other in {int(self._dice() * place) for _ in range(2)} if other < place]

    def clear(self) -> None:
        """Forget all: the numbers mean other nodes from now on."""
        self._crowds.clear()

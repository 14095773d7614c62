"""Who asked this agent for chunks lately: whoever asks next can be sent to the one before, who passes them on."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from imgdist.errors import NotFoundError
from imgdist.wire.answer import ChunkReader

ASKERS = 8
"""Latest ones that are remembered of each chunk (a guess)."""
NAMED = 2
"""Of them so many are named: the second if the first proves to be gone (a guess)."""
CHUNKS_MAX = 4096
"""Chunks asked for last that are remembered (a guess: some seconds of a start). [measured: 2 MB with one
asker each, 6 with eight]"""
FRESH_S = 8.0
"""Who asked longer ago is left alone: a crowd is over by then (a guess)."""
AHEAD_S = 2.0, 30.0
"""Who asked so long ago has what it asked for, and is still there (guesses)."""


class Relay:
    """What an agent's chunk server remembers (a `Seeder`). It leaves the choice of chunks to who asks. Thread-safe.

    What readers wait for goes along the line by address (supernode/crowds.py): a chain in the order of asking would be
    another one for each chunk, and each would be waited for from end to end. What is foretold and here goes in that
    order, to the first who asks, to the next from that one: each link carries it once, and nobody waits.
    """

    def __init__(
        self,
        me: Callable[[], str],
        has: Callable[[str, Sequence[int]], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`me()`: where others reach this agent; `has(name, numbers)`: whether all of these chunks are here."""
        self._me = me
        self._has = has
        self._clock = clock
        self._lock = threading.Lock()
        # The chunk asked for last stands last, of its askers the latest first.
        self._asked: OrderedDict[tuple[str, int], tuple[tuple[str, float], ...]] = OrderedDict()

    def choose(self, name: str, reader: ChunkReader, lacks: int, count: int, node: str | None) -> Sequence[int]:
        """Raises NotFoundError."""
        raise NotFoundError("no chunks are chosen here; ask for some by their numbers")

    def begun(self, name: str, reader: ChunkReader, numbers: Sequence[int], node: str | None) -> None:
        """Nothing is kept of it: who asks is known before."""

    def sent(self, name: str, numbers: Sequence[int], node: str | None) -> None:
        """Nothing is kept of it: who asks is known before."""

    def elsewhere(
        self, name: str, numbers: Sequence[int], node: str, *, waits: bool, foretold: bool = False
    ) -> Sequence[str]:
        """Who asked for all of these lately: the latest first, if they are here and `foretold`; else those that stand
        before that node in the line, and behind this agent if they are not here, the nearest first. If they are here
        and there is nobody of that kind: who asked so long ago that it has them, unless that node comes back. It is
        told of to others, if they reach it."""
        now, me = self._clock(), self._me()
        with self._lock:
            asked = [self._join((name, number), node, now) for number in numbers]
        comes_back = any(each.pop(node, None) is not None for each in asked)
        crowd = [asker for asker in asked[0] if all(asker in other for other in asked[1:])]
        fresh = [asker for asker in crowd if all(each[asker] > now - FRESH_S for each in asked)]
        is_here = bool(crowd) and self.gives(name, numbers)
        if is_here and foretold:
            return fresh[:NAMED]
        before = [asker for asker in fresh if (asker < node or not node) and (is_here or me < asker)]
        if before or not is_here or waits or comes_back:
            return sorted(before, reverse=True)[:NAMED]
        return [asker for asker in crowd if all(each[asker] <= now - AHEAD_S[0] for each in asked)][:NAMED]

    def gives(self, name: str, numbers: Sequence[int]) -> bool:
        """Whether they are here."""
        return self._has(name, numbers)

    def _join(self, key: tuple[str, int], node: str, now: float) -> dict[str, float]:
        """Who asked for a chunk before, this node, too, and when, the latest first."""
        asked = {asker: at for asker, at in self._asked.get(key, ()) if at > now - AHEAD_S[1]}
        if node:
            others = [(asker, at) for asker, at in asked.items() if asker != node]
            self._asked[key] = ((node, now), *others[: ASKERS - 1])
            self._asked.move_to_end(key)
            if len(self._asked) > CHUNKS_MAX:
                self._asked.popitem(last=False)
        return asked

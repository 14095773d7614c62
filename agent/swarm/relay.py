"""Who asked this agent for a chunk lately: whoever asks next can be sent to the one before, who passes it on."""

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


class Relay:
    """What an agent's chunk server remembers (a `Seeder`). It leaves the choice of chunks to who asks. Thread-safe."""

    def __init__(self, me: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        """`me()`: where others reach this agent."""
        self._me = me
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

    def elsewhere(self, name: str, numbers: Sequence[int], node: str, *, waits: bool) -> Sequence[str]:
        """Who of those that asked for the first of these lately stand between this agent and that node in the line
        (supernode/crowds.py), the nearest first. It is told of to others, if they reach it."""
        key, now, me = (name, numbers[0]), self._clock(), self._me()
        with self._lock:
            fresh = [(asker, at) for asker, at in self._asked.get(key, ()) if at > now - FRESH_S and asker != node]
            if node:
                self._asked[key] = ((node, now), *fresh[: ASKERS - 1])
                self._asked.move_to_end(key)
                if len(self._asked) > CHUNKS_MAX:
                    self._asked.popitem(last=False)
        between = (asker for asker, _ in fresh if me < asker and (asker < node or not node))
        return sorted(between, reverse=True)[:NAMED]

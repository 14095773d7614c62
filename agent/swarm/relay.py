"""Who asked this agent for a chunk lately: whoever asks next can be sent to the one before, who passes it on."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from imgdist.errors import NotFoundError
from imgdist.wire.answer import ChunkReader

ASKERS = 8
"""Latest ones that are remembered of each chunk; one that asks again is served (a guess)."""
NAMED = 2
"""Of them so many are named: the second if the first proves to be gone (a guess)."""
CHUNKS_MAX = 4096
"""Chunks asked for last that are remembered (a guess: some seconds of a start, 1 MB)."""
FRESH_S = 2.0
"""Who asked longer ago is left alone: a crowd is over by then (a guess)."""


class Relay:
    """What an agent's chunk server remembers (a `Seeder`). It leaves the choice of chunks to who asks. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: OrderedDict[tuple[str, int], deque[tuple[str, float]]] = OrderedDict()  # asked for last at the end

    def choose(self, name: str, reader: ChunkReader, lacks: int, count: int, node: str | None) -> Sequence[int]:
        """Raises NotFoundError."""
        raise NotFoundError("no chunks are chosen here; ask for some by their numbers")

    def begun(self, name: str, reader: ChunkReader, numbers: Sequence[int], node: str | None) -> None:
        """Nothing is kept of it: who asks is known before."""

    def sent(self, name: str, numbers: Sequence[int], node: str | None) -> None:
        """Nothing is kept of it: who asks is known before."""

    def elsewhere(self, name: str, numbers: Sequence[int], node: str) -> Sequence[str]:
        """Who asked for the first of these lately, the latest first; nobody, if this one did itself."""
        if not node:
            return []
        key, now = (name, numbers[0]), self._clock()
        with self._lock:
            askers = self._asked.setdefault(key, deque(maxlen=ASKERS))
            self._asked.move_to_end(key)
            if len(self._asked) > CHUNKS_MAX:
                self._asked.popitem(last=False)
            fresh = [asker for asker, at in reversed(askers) if at > now - FRESH_S]
            if node in fresh:
                return []
            askers.append((node, now))
        return fresh[:NAMED]

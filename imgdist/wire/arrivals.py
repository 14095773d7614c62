"""The chunks of a layer that came lately, for neighbours who want to know soon."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

from imgdist.wire.numbers import NUMBERS_MAX

LOOK_S = 0.1
"""How often somebody who waits looks whether that is still worth it (a guess)."""


class Arrivals:
    """Remembers the last `NUMBERS_MAX` chunks: who misses some hears of them over the mesh. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._latest: deque[int] = deque(maxlen=NUMBERS_MAX)
        self._count = 0

    def add(self, number: int) -> None:
        """A chunk came."""
        with self._lock:
            self._latest.append(number)
            self._count += 1
            self._lock.notify_all()

    def wait(self, is_over: Callable[[], bool], seconds: float) -> None:
        """Return once something came after which `is_over`, which is asked now and then in between, too."""
        until = time.monotonic() + seconds
        with self._lock:
            while not is_over() and (left_s := until - time.monotonic()) > 0:
                self._lock.wait(min(left_s, LOOK_S))

    def since(self, seen: int) -> tuple[tuple[int, ...], int]:
        """What came after the first `seen` ones, as far as remembered, and how many came in all."""
        if seen == self._count:  # mostly; nobody minds a moment
            return (), seen
        with self._lock:
            skipped = max(0, len(self._latest) - (self._count - seen))
            return tuple(islice(self._latest, skipped, None)), self._count

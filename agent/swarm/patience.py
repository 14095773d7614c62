"""How long this node waits for a peer that is silent: as long as answers take, several times. Pure, and thread-safe."""

from __future__ import annotations

import threading
from collections import deque
from statistics import median

PATIENCE_S = (1.0, 5.0)
"""At least: a busy machine stops for so long now and then; at most (a guess)."""
FIRST_S = 2.0
"""Before anything is known: a peer that has too much to send says so at once (a guess)."""
_TIMES = 8
"""The median: what waits behind other answers takes that much longer now and then (a guess)."""
_ANSWERS_KEPT = 32
"""Latest answers whose times count (a guess)."""
_ANSWERS_LEAST = 4
"""Before these the median says nothing (a guess)."""


class Patience:
    """Of one node with all its peers: their median answer says what the link and the machine are like just now, and no
    single peer can move it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: deque[float] = deque(maxlen=_ANSWERS_KEPT)
        self.seconds = FIRST_S
        """Longest silence of a peer."""

    def answered(self, took_s: float) -> None:
        """An answer began so long after its request."""
        with self._lock:
            self._answers.append(took_s)
            if len(self._answers) >= _ANSWERS_LEAST:
                least, most = PATIENCE_S
                self.seconds = min(max(_TIMES * median(self._answers), least), most)

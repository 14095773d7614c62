"""What device threads have to tell without waiting: blocks touched, reads failed. The port's thread passes it on."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from fuse.channel import FAILURES, TOUCHED_MAX, Failed, Lapsed, Touched
from imgdist.loglimit import LogLimit, left_out

log = logging.getLogger("imgdist.view")

_TOUCHED_KEPT = 65536  # as many as a trace may have
_FAULTS_KEPT = 100  # lines of log between two flushes; the counts go on


class Agent(Protocol):
    """Where messages go (fuse/outbox.py); neither call waits."""

    def put(self, message: bytes) -> None:
        """Send one encoded message, or drop it if no agent is there."""

    def ring(self) -> None:
        """Wake the port's thread."""


class Notes:
    """Touched blocks in order, failures by reason, and one ring of the bell for all that comes between two flushes."""

    def __init__(self, agent: Agent, clock: Callable[[], int]) -> None:
        """`clock` is in nanoseconds."""
        self._agent, self._clock = agent, clock
        self._limit = LogLimit()
        self._touched: deque[tuple[int, int, int]] = deque(maxlen=_TOUCHED_KEPT)
        self._faults: deque[tuple[str, str, Lapsed | None]] = deque(maxlen=_FAULTS_KEPT)
        self._lock = threading.Lock()
        self._rung = False
        self._untold = dict.fromkeys(FAILURES, 0)

    def touched(self, entry: tuple[int, int, int]) -> None:
        """(node, first block, blocks) were read for the first time."""
        self._touched.append(entry)
        if len(self._touched) == TOUCHED_MAX:
            self._agent.ring()
        else:
            self.ring_once()

    def failure(self, reason: str, layer: str, text: str, lapsed: Lapsed | None = None) -> None:
        """A read of `layer` failed for one of channel.FAILURES. Logged by the port's thread: whoever reads our standard
        error may be slow. One that `lapsed` is logged by the agent, if one is there that knows how."""
        with self._lock:
            self._untold[reason] += 1
        self._faults.append((layer, text, lapsed))
        self.ring_once()

    def ring_once(self) -> None:
        """Wake the port's thread, unless it has been rung since its last flush."""
        if not self._rung:
            self._rung = True
            self._agent.ring()

    def flush(self, listening: bool, *, lapses: bool = True) -> None:
        """Log the failures; send their counts and what was touched if an agent is `listening`, else keep them.
        `lapses`: it knows Lapsed."""
        self._rung = False  # before draining: what is noted from here on rings again
        while self._faults:
            self._tell(*self._faults.popleft(), told=listening and lapses)
        if not listening:
            return
        with self._lock:
            untold, self._untold = self._untold, dict.fromkeys(FAILURES, 0)
        for reason, count in untold.items():
            if count:
                self._agent.put(Failed(reason, count).encode())
        while self._touched:
            batch = [self._touched.popleft() for _ in range(min(TOUCHED_MAX, len(self._touched)))]
            self._agent.put(Touched(tuple(batch)).encode())

    def _tell(self, layer: str, text: str, lapsed: Lapsed | None, *, told: bool) -> None:
        if lapsed is not None and told:
            self._agent.put(lapsed.encode())
            return
        omitted = self._limit.admit(layer, self._clock() / 1e9)
        if omitted is not None:
            log.error("layer %s: %s%s", layer, text, left_out(omitted))

    @property
    def touched_waiting(self) -> int:
        """Touched entries not sent yet."""
        return len(self._touched)

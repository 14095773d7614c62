"""What is known of one layer's chunks while they come: here, on their way, missing, or resting. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from agent.transfer.backoff import Backoff

MISSING, FLYING, HERE, RESTING = range(4)
"""A chunk's state. Resting: it came wrong, and is asked for again in a while."""


class Layout(Protocol):
    """Where a layer's chunks lie in its image (imgdist.pack.index.Index)."""

    @property
    def chunk_count(self) -> int:
        """How many there are."""

    def size(self, chunk: int) -> int:
        """Raw bytes."""

    def is_metadata(self, chunk: int) -> bool:
        """Whether it holds file-system metadata."""

    def chunks_between(self, start: int, end: int) -> range:
        """Those that overlap the image's bytes [start, end)."""


@dataclass(slots=True)
class LayerState:
    """`state` has a byte a chunk. `backoff` is the whole layer's, `bad` of those of its chunks that came wrong."""

    layout: Layout
    state: bytearray
    missing: int
    traced: bool = False
    cursor: int = 0
    backoff: Backoff = field(default_factory=Backoff)
    bad: dict[int, Backoff] = field(default_factory=dict)
    trace_tries: dict[int, int] = field(default_factory=dict)

    def startable(self, chunk: int, now: float, pause: tuple[float, float]) -> bool:
        """Whether the chunk may be asked for now."""
        return self.state[chunk] == MISSING and self.backoff.ready_at(pause) <= now

    def next_run(self, most: int) -> tuple[int, ...]:
        """The next missing chunks, as a run of neighbours with at most as many others left out."""
        first = self.state.find(MISSING, self.cursor)
        if first < 0:
            return ()
        self.cursor = first
        near = range(first, min(first + 2 * most, len(self.state)))
        return tuple([chunk for chunk in near if self.state[chunk] == MISSING][:most])

    def came(self, chunk: int) -> None:
        """The chunk is here: what failed before is forgotten."""
        self.state[chunk] = HERE
        self.missing -= 1
        self.backoff.failures = 0
        self.bad.pop(chunk, None)
        self.trace_tries.pop(chunk, None)

    def wake(self, chunk: int) -> None:
        """A resting chunk may be asked for again."""
        self.state[chunk] = MISSING
        self.cursor = min(self.cursor, chunk)

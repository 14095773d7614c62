"""What is known of one layer's chunks while they come: here, on their way, missing, or resting. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.transfer.backoff import Backoff

MISSING, FLYING, HERE, RESTING = range(4)
"""A chunk's state. Resting: it came wrong, and is asked for again in a while."""
_IS_MISSING = bytes([49 if state == MISSING else 48 for state in range(256)])  # a state as a binary digit


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
    """`state` has a byte a chunk, `lacks` is the set of those that are missing, `absent` counts what is not here.

    `copies` is the set of those that another layer of this disk has. `asked_any` counts chunks that a source was asked
    for without saying which, and has not named yet. A layer that is not `sealed` may still get more chunks. `backoff`
    is the whole layer's, `bad` of those of its chunks that came wrong.
    """

    layout: Layout
    state: bytearray = field(default_factory=bytearray)
    lacks: int = 0
    absent: int = 0
    copies: int = 0
    sealed: bool = True
    traced: bool = False
    cursor: int = 0
    asked_any: int = 0
    backoff: Backoff = field(default_factory=Backoff)
    bad: dict[int, Backoff] = field(default_factory=dict)
    trace_tries: dict[int, int] = field(default_factory=dict)

    def grow(self, missing: Sequence[int], count: int) -> None:
        """The layer has `count` chunks by now; of the new ones `missing` are not here."""
        self.state.extend(bytes([HERE]) * (count - len(self.state)))
        for chunk in missing:
            self.state[chunk] = MISSING
        self.lacks = int(self.state[::-1].translate(_IS_MISSING) or b"0", 2)
        self.absent += len(missing)

    @property
    def is_whole(self) -> bool:
        """Whether all is here, and all is known."""
        return not self.absent and self.sealed

    def put(self, chunk: int, state: int) -> None:
        """The chunk's state from now on."""
        before = self.state[chunk]
        if (before == MISSING) != (state == MISSING):
            self.lacks ^= 1 << chunk
        self.state[chunk] = state

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
        self.put(chunk, HERE)
        self.absent -= 1
        self.backoff.failures = 0
        self.bad.pop(chunk, None)
        self.trace_tries.pop(chunk, None)

    def wake(self, chunk: int) -> None:
        """A chunk that did not come may be asked for again."""
        self.put(chunk, MISSING)
        self.cursor = min(self.cursor, chunk)

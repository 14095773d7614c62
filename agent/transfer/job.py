"""A layer that is being transferred, and what became of one request for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.earlystore import EarlyStore
from agent.layerstore import LayerStore

TWINS_KEPT = 4
"""Copies of a chunk that are remembered; the first present one is used (a guess)."""


@dataclass(slots=True)
class Job:
    """A layer that is being transferred, and the copies of its chunks elsewhere on this disk."""

    store: LayerStore | EarlyStore
    node: int
    name: str  # its pack id in hex, before the seal the layer's name: on the wire, and in messages
    twins: dict[int, list[tuple[LayerStore, int]]] = field(default_factory=dict)

    def add_twin(self, chunk: int, other: LayerStore, other_chunk: int) -> None:
        """Remember a copy."""
        copies = self.twins.setdefault(chunk, [])
        if len(copies) < TWINS_KEPT:
            copies.append((other, other_chunk))

    def drop_twin(self, chunk: int, twin: tuple[LayerStore, int]) -> None:
        """That copy is of no use."""
        copies = self.twins.get(chunk, [])
        if twin in copies:
            copies.remove(twin)


@dataclass(slots=True)
class Outcome:
    """What became of a request beside what landed: seconds to the answer's first byte, if one source served all of
    it, the chunks that came wrong and from nobody else, and whether the policy knows why something is left."""

    round_trip_s: float | None = None
    bad: set[int] = field(default_factory=set)
    explained: bool = False

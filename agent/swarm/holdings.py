"""Who has which chunks of a layer."""

from __future__ import annotations

from collections.abc import Hashable

from agent.swarm.neighbours import Neighbour
from agent.swarm.rarity import Rarity

_RARITY_USES = 8
"""Decisions made with one count of the neighbours' chunks: it costs as much as the rest of one."""
_RARITY_S = 0.1
"""How old a count may get: have-lists are as old [simulated: with 20 ms no better]."""


class Holding:
    """The chunks that one source has of one layer. Whoever hands it in may change `bits` at any time."""

    __slots__ = ("bits",)

    def __init__(self, bits: int = 0) -> None:
        self.bits = bits


class Table:
    """The neighbours that serve one layer."""

    __slots__ = ("_counted_at", "_held", "_rarity", "_uses", "has_near", "pairs", "ring")

    def __init__(self) -> None:
        self._held: dict[Hashable, tuple[Neighbour, Holding]] = {}
        self.pairs: tuple[tuple[Neighbour, Holding], ...] = ()
        """Each with what it has."""
        self.ring: tuple[tuple[Neighbour, Holding], ...] = ()
        """The pairs twice over: from any place on there is a whole round."""
        self.has_near = False
        self._rarity = Rarity(())
        self._uses = _RARITY_USES
        self._counted_at = 0.0

    def put(self, neighbour: Neighbour, holding: Holding) -> None:
        """A neighbour has these."""
        self._held[neighbour.source] = (neighbour, holding)
        self._changed()

    def add(self, neighbour: Neighbour, chunks: int) -> None:
        """A neighbour has these as well."""
        if neighbour.source not in self._held:
            self.put(neighbour, Holding())
        self._held[neighbour.source][1].bits |= chunks

    def remove(self, source: Hashable, chunks: int) -> bool:
        """A source has these no more. False: it serves nothing of the layer."""
        held = self._held.get(source)
        if held is not None:
            held[1].bits ^= held[1].bits & chunks
        return held is not None

    def drop(self, source: Hashable) -> None:
        """A source no longer serves the layer."""
        if self._held.pop(source, None) is not None:
            self._changed()

    def of(self, source: Hashable) -> int:
        """What a source has."""
        held = self._held.get(source)
        return held[1].bits if held is not None else 0

    def rarity(self, now: float) -> Rarity:
        """How many neighbours have each chunk, those in quarantine left out."""
        if self._uses >= _RARITY_USES or now - self._counted_at >= _RARITY_S:
            self._rarity = Rarity([held.bits for neighbour, held in self.pairs if neighbour.conviction.until <= now])
            self._uses, self._counted_at = 0, now
        self._uses += 1
        return self._rarity

    def _changed(self) -> None:
        self._uses = _RARITY_USES
        self.pairs = tuple(self._held.values())
        self.ring = self.pairs * 2
        self.has_near = any(neighbour.near for neighbour, _ in self.pairs)

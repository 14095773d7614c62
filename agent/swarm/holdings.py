"""Who has which chunks of a layer."""

from __future__ import annotations

from collections.abc import Hashable

from agent.swarm.neighbours import Neighbour
from agent.swarm.rarity import Rarity

_RARITY_USES = 4
"""Decisions made with one count of the neighbours' chunks: the count is a third of a decision's cost."""
_RARITY_S = 0.02
"""How old a count may get; have-lists are older (0.1 s)."""


class Holding:
    """The chunks that one source has of one layer. Whoever hands it in may change `bits` at any time."""

    __slots__ = ("bits",)

    def __init__(self, bits: int = 0) -> None:
        self.bits = bits


class Table:
    """The neighbours that serve one layer. `held` maps a source to what is known of it and what it has."""

    __slots__ = ("_counted_at", "_rarity", "_uses", "held")

    def __init__(self) -> None:
        self.held: dict[Hashable, tuple[Neighbour, Holding]] = {}
        self._rarity = Rarity(())
        self._uses = _RARITY_USES
        self._counted_at = 0.0

    def rarity(self, now: float) -> Rarity:
        """How many neighbours have each chunk, those in quarantine left out."""
        if self._uses >= _RARITY_USES or now - self._counted_at >= _RARITY_S:
            self._rarity = Rarity(
                holding.bits for neighbour, holding in self.held.values() if neighbour.conviction.until <= now
            )
            self._uses, self._counted_at = 0, now
        self._uses += 1
        return self._rarity

"""Which packs go when space is short: the longest unused first, none that an agent wants. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imgdist.space import Kept, too_young


@dataclass(frozen=True, slots=True)
class StoredPack:
    """A sealed pack: what it takes, when it was last resolved or served (seconds since 1970), and who wants it now."""

    pack_id: str
    size_bytes: int
    used_at: float
    wanted_by: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes, in this order, and what stays."""

    victims: tuple[StoredPack, ...]
    kept: tuple[Kept, ...]


def plan(packs: Sequence[StoredPack], wanted_bytes: int, *, retention_s: float, now: float) -> Plan:
    """Free `wanted_bytes`, if that can be."""
    victims: list[StoredPack] = []
    kept: list[Kept] = []
    left_bytes = wanted_bytes
    for pack in sorted(packs, key=lambda pack: (pack.used_at, pack.pack_id)):
        why = f"wanted by {pack.wanted_by}" if pack.wanted_by else too_young(pack.used_at, now, retention_s)
        why = why or ("" if left_bytes > 0 else "no space is needed")
        if why:
            kept.append(Kept(pack.pack_id, pack.size_bytes, why))
        else:
            victims.append(pack)
            left_bytes -= pack.size_bytes
    return Plan(tuple(victims), tuple(kept))

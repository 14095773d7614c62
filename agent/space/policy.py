"""What goes when space is short, and why the rest stays. Pure: from the state of the disk to a plan.

The order is by what a removal costs: leftovers nothing, bodies kept for other agents some bytes on the wire (they get
raw chunks from the image instead), an unused pack a fetch if it is wanted again. What is in use never goes.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from imgdist.space import Kept, too_young


class What(enum.StrEnum):
    """Kinds of things that go."""

    LEFTOVER = "leftover"
    FRAMES = "frames"
    PACK = "pack"


@dataclass(frozen=True, slots=True)
class PackState:
    """A pack on this disk: what it takes, without and of its frames, when it was last used (seconds since 1970), and
    who uses it now."""

    pack_id: str
    size_bytes: int
    frames_bytes: int
    used_at: float
    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a dead attempt left: a directory's name below ROOT/packs."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Victim:
    """What is to go, or went."""

    what: What
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes, in this order, and what stays."""

    victims: tuple[Victim, ...]
    kept: tuple[Kept, ...]


def plan(
    packs: Sequence[PackState],
    leftovers: Sequence[Leftover],
    wanted_bytes: int,
    *,
    min_age_s: float,
    now: float,
    frames: bool = True,
) -> Plan:
    """Free `wanted_bytes` if that can be; leftovers go in any case. `frames` False: they go with their packs only."""
    victims = [Victim(What.LEFTOVER, left.name, left.size_bytes) for left in leftovers]
    left_bytes = wanted_bytes - sum(victim.size_bytes for victim in victims)
    oldest_first = sorted(packs, key=lambda pack: (pack.used_at, pack.pack_id))
    cut: set[str] = set()
    for pack in oldest_first if frames else ():
        if left_bytes > 0 and pack.frames_bytes:
            victims.append(Victim(What.FRAMES, pack.pack_id, pack.frames_bytes))
            cut.add(pack.pack_id)
            left_bytes -= pack.frames_bytes
    kept = []
    for pack in oldest_first:
        size_bytes = pack.size_bytes + (0 if pack.pack_id in cut else pack.frames_bytes)
        why = _why_kept(pack, min_age_s, now) or ("" if left_bytes > 0 else "no space is needed")
        if why:
            kept.append(Kept(pack.pack_id, size_bytes, why))
        else:
            victims.append(Victim(What.PACK, pack.pack_id, size_bytes))
            left_bytes -= size_bytes
    return Plan(tuple(victims), tuple(kept))


def _why_kept(pack: PackState, min_age_s: float, now: float) -> str:
    if pack.users:
        return "used by " + ", ".join(pack.users)
    return too_young(pack.used_at, now, min_age_s)

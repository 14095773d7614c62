"""Which neighbours to part with, so that better ones have room. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Use(NamedTuple):
    """What a neighbour is good for: it has chunks that this node lacks (`gives`), or the reverse (`takes`)."""

    gives: bool
    takes: bool


def leaving(uses: Sequence[Use], limit: int, better: int) -> list[int]:
    """Whom to leave, as places in `uses`; `better` others are said to have what this node lacks.

    Who neither gives nor takes makes room for them, or goes where there are more than `limit`. Who only takes makes
    room as long as fewer than half of `limit` give: the swarm lives of those who take, too.
    """
    room = limit - len(uses)
    idle = [place for place, use in enumerate(uses) if not use.gives and not use.takes]
    takers = [place for place, use in enumerate(uses) if use.takes and not use.gives]
    givers = sum(use.gives for use in uses)
    gone = idle[: max(0, -room, better - max(0, room))]
    more = min(better - max(0, room) - len(gone), limit // 2 - givers)
    return gone + takers[: max(0, more)]

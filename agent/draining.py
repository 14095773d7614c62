"""Taking this agent out of the way: what the view shows is completed and switched, and what could not be is named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.catalog import Catalog, Layer
from agent.snapshotter.core import Snapshotter
from agent.snapshotter.model import Info
from agent.taking import NodeLayers


@dataclass(frozen=True, slots=True)
class Drained:
    """`switched` layers have left the view since the drain began; `left` are still behind it, each with the snapshots
    of containers and mounts that are built on it."""

    switched: int
    left: Sequence[tuple[Layer, Sequence[Info]]]


class Draining:
    """Drains `catalog`. `snapshotters` tell who uses what; `layers` leaves new ones to containerd meanwhile."""

    def __init__(self, catalog: Catalog, layers: NodeLayers, snapshotters: Sequence[Snapshotter]) -> None:
        self._catalog = catalog
        self._layers = layers
        self._snapshotters = snapshotters

    async def drain(self, timeout_s: float, leave_s: float = 0.0) -> Drained:
        """Complete and switch at full speed, for about `timeout_s` at most; ends before if no bytes come any more.

        New layers are left to containerd meanwhile and for `leave_s` seconds after.
        """
        shown = {layer.pack_id for layer in self._catalog.all() if layer.shown}
        self._layers.leave_for(timeout_s + leave_s)
        try:
            left = await self._catalog.drain(timeout_s)
        finally:
            self._layers.leave_for(leave_s)
        users = await self._users()
        return Drained(len(shown - {layer.pack_id for layer in left}), [(one, users[one.pack_id]) for one in left])

    async def _users(self) -> Mapping[str, list[Info]]:
        found: defaultdict[str, list[Info]] = defaultdict(list)
        for snapshotter in self._snapshotters:
            for pack_id, info in await snapshotter.users():
                found[pack_id].append(info)
        return found

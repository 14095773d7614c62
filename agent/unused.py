"""Layers that were mounted and that no snapshot came to use: unmounted after a while; their bytes stay as cache.

An image job mounts every layer of its image, and containerd may never ask for some of them: it unpacks those above a
declined one itself, and gives up on a pull that was cancelled. A crash leaves such mounts too.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time

from agent.catalog import Catalog
from agent.snapshotter.packs import Sharing
from imgdist.errors import ImgdistError

log = logging.getLogger("imgdist.agent")

PATIENCE_S = 300.0
"""A pull offers its layers one after the other, and may unpack one for minutes before it offers the next (a guess).
Too short costs a mount, too long a loop device."""
_ROUND_S = 30.0


class Unused:
    """Looks for them in `catalog`; `sharing` knows what the snapshotters use."""

    def __init__(self, catalog: Catalog, sharing: Sharing) -> None:
        self._catalog = catalog
        self._sharing = sharing
        self._born = time.monotonic()

    async def run(self) -> None:
        """Unmount what earlier agents left, then look now and then, until cancelled. Start it once the snapshots that
        a mount may be left of are forgotten."""
        await self._release(self._born)
        while True:
            await asyncio.sleep(_ROUND_S)
            await self.release(PATIENCE_S)

    async def release(self, patience_s: float) -> None:
        """Unmount what was mounted at least `patience_s` seconds ago, or by an earlier agent, and is not used: what
        was busy when this one started is tried again."""
        await self._release(max(self._born, time.monotonic() - patience_s))

    async def _release(self, mounted_before: float) -> None:
        for layer in self._catalog.all():
            if not layer.mounted or layer.mounted_at > mounted_before:
                continue
            async with self._sharing.lock(layer.pack_id):
                try:
                    if not await self._sharing.is_used(layer.pack_id):
                        await self._catalog.unmount(layer.pack_id)
                except (ImgdistError, OSError, sqlite3.Error) as error:
                    log.warning("layer %s may be used by no snapshot but stays mounted: %s", layer.pack_id, error)

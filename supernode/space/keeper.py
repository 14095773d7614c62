"""Keeps a supernode's packs below its watermarks.

What goes is fetched and converted anew when somebody resolves it again, to the same pack id: chains and traces, which
name layers, stay true. A look costs one statvfs as long as there is space.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from imgdist.errors import ImgdistError
from imgdist.pack.kinds import Kind, early_name
from imgdist.space import Disk, Kept, Watermarks, disk_of
from supernode.metrics import Metrics
from supernode.space.policy import StoredPack, plan
from supernode.store import LocalStore

log = logging.getLogger("imgdist.space")

LOOK_S = 5.0
"""Between two looks at the disk, which cost a system call each (a guess)."""
JOINING_S = 30.0
"""After a start of this supernode agents are back at its tracker within some ten seconds (agent/swarm/membership.py):
who lacks what is known only then."""


@dataclass(frozen=True, slots=True)
class Report:
    """What went, or would go (`dry_run`), and why the rest stays; the disk afterwards."""

    dry_run: bool
    freed_bytes: int
    removed: tuple[StoredPack, ...]
    kept: tuple[Kept, ...]
    disk: Disk


class SpaceKeeper:
    """On the event loop. `wanted()` are the swarms, by name, of which some agent lacks chunks; `under_way()` what
    is being written, whose parts are no leftovers (called in a thread). For `joining_s` from now on any
    pack may be one that agents want."""

    def __init__(
        self,
        store: LocalStore,
        root: Path,
        watermarks: Watermarks,
        metrics: Metrics,
        *,
        retention_s: float,
        wanted: Callable[[], Collection[str]],
        under_way: Callable[[], Collection[tuple[str, Kind]]],
        joining_s: float = JOINING_S,
    ) -> None:
        self._store = store
        self._root = root
        self._watermarks = watermarks
        self._metrics = metrics
        self._retention_s = retention_s
        self._wanted = wanted
        self._under_way = under_way
        self._joined_at = time.monotonic() + joining_s
        self._busy = asyncio.Lock()
        self._is_short = False

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        await asyncio.sleep(self._joined_at - time.monotonic())
        while True:
            try:
                await self.look()
            except (ImgdistError, OSError) as error:
                log.warning("no look at the disk's space this time: %s", error)
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Bring the disk below the low watermark if it is above the high one, and the packs below their limit."""
        async with self._busy:
            disk = disk_of(self._root)
            own = await asyncio.to_thread(self._store.packs_bytes) if self._watermarks.max_bytes else 0
            wanted = self._watermarks.excess_bytes(disk, own)
            if not wanted:
                self._is_short = False
                return
            report = await self._free(wanted)
            if report.freed_bytes < wanted and not self._is_short:
                self._is_short = True
                log.warning(
                    "%s: %d of %d bytes are used, %d too many, and no pack may go now (space.retention_s, space.high)",
                    self._root, report.disk.used_bytes, disk.total_bytes, wanted - report.freed_bytes,
                )  # fmt: skip

    async def collect(self, *, dry_run: bool = False) -> Report:
        """Free all that nobody wants and that is beyond its retention."""
        async with self._busy:
            return await self._free(1 << 62, dry_run=dry_run)

    async def _free(self, wanted: int, *, dry_run: bool = False) -> Report:
        if not dry_run:
            await asyncio.to_thread(self._store.clear_leftovers, self._under_way)
        packs = await asyncio.to_thread(self._look_at_packs, set(self._wanted()))
        decided = plan(packs, wanted, retention_s=self._retention_s, now=time.time())
        gone, kept = list(decided.victims), list(decided.kept)
        if not dry_run:
            whys = [(pack, await self._remove(pack)) for pack in gone]
            gone = [pack for pack, why in whys if not why]
            kept += [Kept(pack.pack_id, pack.size_bytes, why) for pack, why in whys if why]
        freed = sum(pack.size_bytes for pack in gone)
        if gone and not dry_run:
            log.info("%d bytes of space freed: %d packs", freed, len(gone))
        return Report(dry_run, freed, tuple(gone), tuple(kept), disk_of(self._root))

    async def _remove(self, pack: StoredPack) -> str:
        """Unless it was used since it was looked at. Why it stays; empty if it went."""
        try:
            removed = await asyncio.to_thread(self._store.remove, pack.pack_id, unused_since=pack.used_at)
        except OSError as error:
            log.warning("pack %s cannot be removed: %s", pack.pack_id, error)
            return f"cannot be removed: {error}"
        if not removed:
            return "used again meanwhile"
        self._metrics.freed(pack.size_bytes)
        return ""

    def _look_at_packs(self, wanted: set[str]) -> list[StoredPack]:
        found = []
        others = "agents, perhaps: not all may have joined yet" if time.monotonic() < self._joined_at else ""
        names: dict[str, list[str]] = {}
        for digest, kind, pack_id in self._store.sources():
            names.setdefault(pack_id, [pack_id]).append(early_name(digest, kind))
        for pack_id in self._store.pack_ids():
            by = others if wanted.isdisjoint(names.get(pack_id, (pack_id,))) else "agents"
            found.append(StoredPack(pack_id, self._store.pack_bytes(pack_id), self._store.last_use(pack_id), by))
        return found

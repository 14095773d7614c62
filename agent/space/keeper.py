"""Keeps this node's packs below its watermarks: looks, has `policy` decide, carries it out.

A look costs one statvfs as long as there is space. What it takes to decide is O(packs): sizes are taken once a pack,
as an image has all its blocks from the beginning; no tree is walked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.catalog import Catalog, Layer
from agent.chunkstore import ChunkStore
from agent.snapshotter.packs import Sharing
from agent.space import lastuse
from agent.space.disk import directory_bytes, is_full, shown_by_loops
from agent.space.figures import SpaceFigures, frames_bytes
from agent.space.policy import Leftover, PackState, Plan, Victim, What, plan
from imgdist.errors import ImgdistError
from imgdist.space import Disk, Kept, Watermarks, disk_of

log = logging.getLogger("imgdist.space")

LOOK_S = 5.0
"""Between two looks at the disk, which cost a system call each; the kubelet's own are 10 s apart."""
URGENT_AGE_S = 10.0
"""A pack stays for so long after its last use even if the disk is full, or a user asks for space: it may be one that a
pull is about to mount (a guess)."""
ROOM_BYTES = 64 << 20
"""Freed beyond what a full disk was asked for, so that the next write does not find it full again (a guess)."""
REFUSED_S = 60.0
"""A disk that takes no chunks is named again when it took them for so long."""
UPLOAD_S = 60.0
"""Another agent that asked for chunks of a pack so lately is still taking it: a request lasts 10 s, a layer many."""


@dataclass(frozen=True, slots=True)
class Report:
    """What went, or would go (`dry_run`), and why the rest stays; the disk afterwards."""

    dry_run: bool
    freed_bytes: int
    removed: tuple[Victim, ...]
    kept: tuple[Kept, ...]
    disk: Disk


class SpaceKeeper:
    """One an agent, on its event loop. `forget_images(packs)` is told which packs are here or in use when some went;
    `sharing` knows what snapshots use, `served_at(node)` when other agents last asked for chunks of a layer (seconds of
    the monotonic clock). A pack stays for `min_age_s` after its last use."""

    def __init__(
        self,
        packs: Path,
        watermarks: Watermarks,
        catalog: Catalog,
        chunks: ChunkStore,
        forget_images: Callable[[Collection[str]], None],
        sharing: Sharing,
        figures: SpaceFigures,
        *,
        min_age_s: float,
        served_at: Callable[[int], float | None] = lambda node: None,
    ) -> None:
        self._packs = packs
        self._watermarks = watermarks
        self._min_age_s = min_age_s
        self._catalog = catalog
        self._chunks = chunks
        self._forget_images = forget_images
        self._sharing = sharing
        self._figures = figures
        self._served_at = served_at
        self._sizes: dict[str, int] = {}
        self._is_short = self._is_full = False
        self._refused_at = float("-inf")
        self._busy = asyncio.Lock()
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something may be free to go, or the disk was found full: look at once."""
        self._wake.set()

    def refused(self, error: OSError, name: str) -> None:
        """The disk did not take a chunk of a layer."""
        now = time.monotonic()
        if now - self._refused_at > REFUSED_S:
            log.error(
                "layer %s: the disk takes no chunk (%s): readers get them from memory, fill waits; free some space",
                name,
                error,
            )
        self._refused_at, self._is_full = now, is_full(error)
        self._wake.set()

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                if self._is_full:
                    self._is_full = False
                    await self.make_room()
                await self.look()
            except (ImgdistError, OSError, sqlite3.Error) as error:
                log.warning("no look at the disk's space this time: %s", error)

    async def look(self) -> None:
        """Bring the disk below the low watermark if it is above the high one, and the packs below their limit."""
        async with self._busy:
            disk = disk_of(self._packs)
            packs_bytes = await asyncio.to_thread(self._packs_bytes) if self._watermarks.max_bytes else 0
            wanted = self._watermarks.excess_bytes(disk, packs_bytes)
            if wanted or disk.used_bytes < self._watermarks.low * disk.total_bytes:
                self._chunks.frames_paused = bool(wanted)
            if not wanted:
                self._is_short = False
                return
            report = await self._free(wanted, self._min_age_s)
            if report.freed_bytes < wanted and not self._is_short:
                self._is_short = True
                log.warning(
                    "%s: %d of %d bytes are used, %d too many, and nothing more of ours may go now;"
                    " `imgdist gc --dry-run` says why",
                    self._packs, report.disk.used_bytes, disk.total_bytes, wanted - report.freed_bytes,
                )  # fmt: skip

    async def make_room(self, size_bytes: int = 0) -> bool:
        """A write of `size_bytes` found the disk full: free as much and a little more; whether anything went, or there
        is room by now."""
        async with self._busy:
            wanted = size_bytes + ROOM_BYTES - disk_of(self._packs).available_bytes
            if wanted <= 0:  # whoever asked before has freed enough
                return True
            try:
                return (await self._free(wanted, min(self._min_age_s, URGENT_AGE_S))).freed_bytes > 0
            except (ImgdistError, OSError, sqlite3.Error) as error:
                log.error("no room can be made: %s", error)
                return False

    async def collect(self, *, dry_run: bool = False, frames: bool = False) -> Report:
        """Free all that nothing uses; `frames`: also bodies kept for other agents, of packs in use."""
        async with self._busy:
            min_age_s = min(self._min_age_s, URGENT_AGE_S)
            return await self._free(1 << 62, min_age_s, dry_run=dry_run, frames=frames)

    def _packs_bytes(self) -> int:
        return sum(self._size(layer) + frames_bytes(layer.store) for layer in self._catalog.all())

    async def _free(self, wanted: int, min_age_s: float, *, dry_run: bool = False, frames: bool = True) -> Report:
        left = await asyncio.to_thread(self._chunks.clear_leftovers, dry_run=True)
        leftovers = [Leftover(name, size) for name, size in left]
        packs = await self._look_at_packs()
        decided = plan(packs, leftovers, wanted, min_age_s=min_age_s, now=time.time(), frames=frames)
        if dry_run:
            return self._report(decided, decided.victims, decided.kept, dry_run=True)
        gone, stayed = [], []
        for victim in decided.victims:
            why = "used again meanwhile"
            try:
                removed = await self._remove(victim)
            except (ImgdistError, OSError, sqlite3.Error) as error:
                log.warning("%s %s cannot be removed: %s", victim.what, victim.name, error)
                removed, why = False, f"cannot be removed: {error}"
            if removed:
                gone.append(victim)
            elif victim.what is What.PACK:
                stayed.append(Kept(victim.name, victim.size_bytes, why))
        await self._tidy(gone)
        report = self._report(decided, gone, (*decided.kept, *stayed), dry_run=False)
        if gone:
            _tell(report)
        return report

    async def _look_at_packs(self) -> list[PackState]:
        """Who uses which packs. Each source of an answer is asked once, however many packs there are."""
        users = await self._sharing.users()
        shown = await asyncio.to_thread(shown_by_loops, self._packs)
        return await asyncio.to_thread(lambda: [self._state(layer, users, shown) for layer in self._catalog.all()])

    def _state(self, layer: Layer, users: Mapping[str, Sequence[str]], shown: set[str]) -> PackState:
        found = list(users.get(layer.pack_id, ()))
        if not found and (layer.shown or layer.pack_id in shown):
            found.append("a loop device")
        elif not found and layer.mounted:
            found.append("a pull that mounted it")
        if layer.readers:
            found.append("a client of the mirror")
        served_at = self._served_at(layer.store.node)
        if served_at is not None and time.monotonic() - served_at < UPLOAD_S:
            found.append("an upload")
        used_at = lastuse.last_use(layer.store.directory)
        return PackState(layer.pack_id, self._size(layer), frames_bytes(layer.store), used_at, tuple(found))

    def _size(self, layer: Layer) -> int:
        size = self._sizes.get(layer.pack_id)
        if size is None:
            size = self._sizes[layer.pack_id] = directory_bytes(layer.store.directory, without="frames")
        return size

    async def _remove(self, victim: Victim) -> bool:
        if victim.what is What.LEFTOVER:
            return True  # all at once, by `_tidy`
        layer = self._catalog.get(victim.name)
        if layer is None:
            return False
        if victim.what is What.FRAMES:
            frames, layer.store.frames = layer.store.frames, None
            if frames is not None:
                await asyncio.to_thread(frames.discard)
            return frames is not None
        lock = self._sharing.lock(victim.name)
        if lock.locked():  # it is coming into use; and who holds the lock may wait for us to make room
            return False
        async with lock:  # no snapshot of it is made meanwhile
            if await self._sharing.is_used(victim.name):
                return False
            removed = await self._catalog.remove(victim.name)
        self._sizes.pop(victim.name, None)
        return removed

    async def _tidy(self, gone: list[Victim]) -> None:
        if any(victim.what is What.LEFTOVER for victim in gone):
            await asyncio.to_thread(self._chunks.clear_leftovers)
        if any(victim.what is What.PACK for victim in gone):
            used = await self._sharing.users()  # also of packs that the disk has lost: their image brings them back
            self._forget_images({*used, *(layer.pack_id for layer in self._catalog.all())})
        for victim in gone:
            self._figures.freed(victim.what, victim.size_bytes)

    def _report(self, decided: Plan, gone: Iterable[Victim], kept: Iterable[Kept], *, dry_run: bool) -> Report:
        removed = tuple(gone)
        freed = sum(victim.size_bytes for victim in removed)
        return Report(dry_run, freed, removed, tuple(kept), disk_of(self._packs))


def _tell(report: Report) -> None:
    kinds = [victim.what for victim in report.removed]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in What if kind in kinds)
    log.info("%d bytes of space freed: %s", report.freed_bytes, counts)

"""The layers behind taken-over snapshots: mounted while a snapshot needs them, released when none does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

from agent.layers import fixup
from agent.snapshotter.metadata import Lower, Row
from agent.snapshotter.model import Info, Layers, Usage
from agent.snapshotter.store import Store
from imgdist.errors import TemporaryError, UnsupportedError

log = logging.getLogger("imgdist.snapshotter")


class Sharing:
    """What several snapshotters over the same layers know of each other; one that is alone has one of its own.

    The interleaving that a pack's lock prevents: Cleanup finds it unreferenced and begins to release it; meanwhile a
    Prepare records a snapshot of it and is told that it is mounted; then the release unmounts it.
    Who needs several takes them in the order of their ids: two images may stack the same two layers in either order.
    """

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._stores: list[tuple[Store, str]] = []

    def join(self, store: Store, user: str) -> None:
        """From now on the packs of this store's snapshots count as used, by what people call `user`."""
        self._stores.append((store, user))

    def lock(self, pack_id: str) -> asyncio.Lock:
        """The lock of one pack; it exists as long as somebody holds or awaits it. Its holder asks for no other."""
        return self._locks.setdefault(pack_id, asyncio.Lock())

    @asynccontextmanager
    async def locked(self, pack_ids: Collection[str]) -> AsyncIterator[None]:
        """Hold the locks of several packs."""
        async with AsyncExitStack() as held:
            for pack_id in sorted(set(pack_ids)):
                await held.enter_async_context(self.lock(pack_id))
            yield

    async def is_used(self, pack_id: str) -> bool:
        """True if a snapshot of any of the snapshotters uses the pack."""
        for store, _ in self._stores:
            if await store.do(store.metadata.uses, pack_id):
                return True
        return False

    async def built_on(self) -> dict[str, list[Info]]:
        """The active snapshots and views on each pack."""
        found: dict[str, list[Info]] = {}
        for store, _ in self._stores:
            for pack_id, info in await store.do(store.metadata.users):
                found.setdefault(pack_id, []).append(info)
        return found

    async def replace(self, pack_id: str, by: str) -> list[Info]:
        """Snapshots of a pack are of another one from now on, of the same layer, whose lock the caller holds; what is
        mounted stays as it is. Returns the active snapshots and views that were built on the first until now."""
        return [info for store, _ in self._stores for info in await store.do(store.metadata.replace_pack, pack_id, by)]

    async def users(self) -> dict[str, list[str]]:
        """Every pack that a snapshot uses, with the kinds of its users."""
        found: dict[str, list[str]] = {}
        for store, user in self._stores:
            for pack_id in await store.do(store.metadata.packs):
                found.setdefault(pack_id, []).append(user)
        return found


class Packs:
    """The packs of one snapshotter's snapshots."""

    def __init__(self, store: Store, layers: Layers | None, sharing: Sharing, user: str) -> None:
        self.layers = layers
        self.lock, self.locked = sharing.lock, sharing.locked
        self._store = store
        self._sharing = sharing
        self._suspects: set[str] = set()
        sharing.join(store, user)

    async def mounted(self, pack_id: str) -> str:
        """Directory of the mounted layer, mounting it if need be. UnsupportedError where this node cannot."""
        if self.layers is None:
            raise UnsupportedError(f"layer {pack_id} is lazy, and lazy layers are switched off on this node")
        if (directory := self.layers.mounted_at(pack_id)) is not None:
            return directory
        async with self.lock(pack_id):
            directory = await self.layers.ensure_mounted(pack_id)
            await self.layers.settle([pack_id])  # it may have been gone, and come back with all of its image
            return directory

    async def lowers(self, chain: Sequence[Lower]) -> list[str]:
        """Lower directories of a chain (top first), fix-up lowers above their layers, everything mounted."""
        return [directory for directories in await self.layered(chain) for directory in directories]

    async def layered(self, chain: Sequence[Lower]) -> list[list[str]]:
        """The same, a list for each layer."""
        found: list[list[str]] = []
        for row in chain:
            found.append([self._store.directories.place(row.id).upper] if row.has_directory else [])
            if row.pack_id is not None:
                found[-1].append(await self.mounted(row.pack_id))
        return found

    async def fixup_of(self, pack_id: str, below: Sequence[fixup.Below]) -> Mapping[bytes, fixup.Attributes]:
        """What the layer's fix-up lower over the layers `below` (top first) must hold; raises as `fixup.plan` does."""
        directory = await self.mounted(pack_id)
        assert self.layers is not None
        implied = await self.layers.implied_directories(pack_id)
        return await asyncio.to_thread(fixup.plan, implied, directory, below)

    async def starting(self, chain: Sequence[Lower]) -> None:
        """A container is being created over this chain (top first): tell the layers."""
        packs = [row.pack_id for row in chain if row.pack_id is not None]
        if self.layers is not None and packs:
            await self.layers.starting(packs)

    async def usage(self, row: Row) -> Usage:
        """Local bytes of a taken-over layer, accounted to one snapshot only if several share the pack."""
        assert row.pack_id is not None
        if self.layers is None or not await self._store.do(self._store.metadata.is_first_of_pack, row):
            return Usage()
        return await self.layers.usage(row.pack_id)

    def suspect(self, pack_id: str) -> None:
        """The pack may be mounted without a snapshot that uses it: look at it at the next clean-up. In memory only,
        as a commit to disk would double the cost of a take-over; a restart finds such mounts by `packs_in_use`."""
        self._suspects.add(pack_id)

    async def release_unreferenced(self) -> list[str]:
        """Release what no snapshot uses; returns those packs that somebody still holds."""
        if self.layers is None:
            return []
        held = []
        metadata = self._store.metadata
        while self._suspects:
            await self._store.do(metadata.mark_unreferenced, self._suspects.pop())
        for pack_id in await self._store.do(metadata.unreferenced):
            async with self.lock(pack_id):
                try:
                    if not await self._sharing.is_used(pack_id):
                        await self.layers.release(pack_id)
                except TemporaryError as error:
                    log.warning("layer %s is not released yet: %s", pack_id, error)
                    held.append(pack_id)
                except Exception:
                    log.exception("layer %s cannot be released, will be tried again", pack_id)
                    held.append(pack_id)
                else:
                    await self._store.do(metadata.released, pack_id)
        return held

"""Takes the chunks of layers that are still being converted, while their index streams are followed."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Protocol, Self

from agent.chunkstore import ChunkStore
from agent.earlystore import EarlyStore
from agent.transfer.transfers import Transfers
from agent.work import SharedWork
from imgdist.pack.index import IndexFollower
from imgdist.pack.kinds import Kind, early_name

log = logging.getLogger("imgdist.agent")

BEGIN_S = 0.2
"""An index that goes on for so long after its first chunk is still being written: one that is not comes at once."""
GROW_S = 0.02
"""How often at most new chunks are told: each time costs two threads' switches and a look-up (a guess)."""


class Swarm(Protocol):
    """Who shows a store to others (agent.swarm.station.Station)."""

    def begin(self, early: EarlyStore) -> None:
        """Chunks come in."""

    def end(self, early: EarlyStore) -> None:
        """It is being closed."""


class EarlyLayers:
    """Every layer of this node without a seal, on the event loop. `tasks` is the daemon's; `swarm` is told of them."""

    def __init__(
        self,
        chunks: ChunkStore,
        transfers: Transfers,
        tasks: asyncio.TaskGroup,
        *,
        enabled: bool = True,
        swarm: Swarm | None = None,
        kind: Kind = Kind.LAYER,
    ) -> None:
        """`kind` of the packs whose seals are awaited here."""
        self._chunks = chunks
        self._transfers = transfers
        self._tasks = tasks
        self._enabled = enabled
        self._swarm = swarm
        self._kind = kind
        self._stores: dict[str, EarlyStore] = {}

    def of(self, digest: str) -> EarlyStore | None:
        """The store of a layer that is being taken."""
        return self._stores.get(digest)

    def layer(self, digest: str) -> EarlyLayer:
        """To be entered while the layer's index is followed."""
        return EarlyLayer(self, digest, self._tasks)

    async def take(self, digest: str, follower: IndexFollower) -> bool:
        """Fetch what the index has by now, if there is room for it; False: not this layer any more."""
        if not self._enabled:
            return False
        store = self._stores.get(digest)
        try:
            if store is not None and store.index.follower is not follower:  # of another supernode, from the beginning
                await self.end(digest)
                store = None
            if store is None:
                store = await asyncio.to_thread(self._chunks.begin, early_name(digest, self._kind), follower)
                self._stores[digest] = store
                if self._swarm is not None:
                    self._swarm.begin(store)
                self._transfers.add_early(store)
            await asyncio.to_thread(self._grow, store)
        except OSError as error:
            log.warning("layer %s: its chunks are taken once it is sealed, not before: %s", digest, error)
            await self.end(digest)
            return False
        return True

    async def stop(self, digest: str) -> EarlyStore | None:
        """Fetch no more for a layer whose index is sealed; ends when nothing is on its way. What came, if anything."""
        store = self._stores.get(digest)
        if store is not None:
            await asyncio.to_thread(self._transfers.remove, store.node)
            log.info("layer %s: %d of %d chunks came before its seal", digest, store.count, store.index.chunk_count)
        return store

    async def end(self, digest: str) -> None:
        """Close a layer's store, if there is one; what was not taken over is removed."""
        store = self._stores.pop(digest, None)
        if store is not None:
            await asyncio.to_thread(self._transfers.remove, store.node)
            if self._swarm is not None:
                self._swarm.end(store)
            await asyncio.to_thread(self._chunks.discard, store)

    def _grow(self, store: EarlyStore) -> None:
        wanted = store.grow()
        if wanted:
            self._transfers.grow(store, wanted, self._chunks.copies(store, wanted))


class EarlyLayer:
    """One layer while its index is followed. Nothing is left at the end, except what was handed over meanwhile."""

    def __init__(self, layers: EarlyLayers, digest: str, tasks: asyncio.TaskGroup) -> None:
        self._layers = layers
        self._digest = digest
        self._tasks = tasks
        self._follower: IndexFollower | None = None
        self._taking: SharedWork[None] | None = None
        self._changed = asyncio.Event()
        self._over = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A cancelled one is the daemon's stop, which does not wait for time-outs: ChunkStore.close ends it then.
        if kind is None or not issubclass(kind, asyncio.CancelledError):
            self._end()
            if self._taking is not None:
                await self._taking.settled()
            await self._layers.end(self._digest)

    def progress(self, follower: IndexFollower) -> None:
        """As SupernodeClient.follow_index wants it."""
        self._follower = follower
        if follower.sealed is not None:
            self._end()
        elif follower.chunk_count:
            self._changed.set()
            if self._taking is None:
                self._taking = SharedWork(self._tasks, self._take())

    async def hand_over(self) -> EarlyStore | None:
        """The index is sealed: what came so far, for ChunkStore.create; None if that is nothing."""
        self._end()
        if self._taking is not None:
            await self._taking.wait()
        return await self._layers.stop(self._digest)

    def _end(self) -> None:
        self._over.set()
        self._changed.set()

    async def _take(self) -> None:
        if await self._is_over_within(BEGIN_S):
            return
        while True:
            self._changed.clear()
            assert self._follower is not None
            if not await self._layers.take(self._digest, self._follower):
                return
            if not self._over.is_set():
                await self._changed.wait()
            if await self._is_over_within(GROW_S):
                return

    async def _is_over_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            return False
        return True

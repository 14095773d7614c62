"""Takes the chunks of layers that are still being converted, while their index streams are followed."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Protocol, Self

from agent.chunkstore import ChunkStore
from agent.earlystore import EarlyStore, layer_name
from agent.transfer.transfers import Transfers
from imgdist.pack.index import IndexFollower

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
    """Every layer of this node without a seal, on the event loop. `swarm` is told of them."""

    def __init__(
        self,
        chunks: ChunkStore,
        transfers: Transfers,
        *,
        enabled: bool = True,
        swarm: Swarm | None = None,
    ) -> None:
        self._chunks = chunks
        self._transfers = transfers
        self._enabled = enabled
        self._swarm = swarm
        self._stores: dict[str, EarlyStore] = {}

    def of(self, digest: str) -> EarlyStore | None:
        """The store of a layer that is being taken."""
        return self._stores.get(digest)

    def layer(self, digest: str) -> EarlyLayer:
        """To be entered while the layer's index is followed."""
        return EarlyLayer(self, digest)

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
                store = await asyncio.to_thread(self._chunks.begin, layer_name(digest), follower)
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

    def __init__(self, layers: EarlyLayers, digest: str) -> None:
        self._layers = layers
        self._digest = digest
        self._due_at: float | None = None
        self._given_up = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A cancelled one is the daemon's stop, which does not wait for time-outs: ChunkStore.close ends it then.
        if kind is None or not issubclass(kind, asyncio.CancelledError):
            await self._layers.end(self._digest)

    async def progress(self, follower: IndexFollower) -> None:
        """As SupernodeClient.follow_index wants it."""
        if self._given_up or follower.sealed is not None or not follower.chunk_count:
            return
        now = asyncio.get_running_loop().time()
        if self._due_at is None:
            self._due_at = now + BEGIN_S
        if now >= self._due_at:
            self._given_up = not await self._layers.take(self._digest, follower)
            self._due_at = asyncio.get_running_loop().time() + GROW_S

    async def hand_over(self) -> EarlyStore | None:
        """The index is sealed: what came so far, for ChunkStore.create; None if that is nothing."""
        return await self._layers.stop(self._digest)

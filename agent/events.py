"""What the parts of a node tell each other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from agent.blobs.source import Blobs
from agent.catalog import Catalog
from agent.images import Images
from agent.layer import Layer
from agent.layerstore import LayerStore
from agent.space.keeper import SpaceKeeper
from agent.tracekeeper import TraceKeeper
from agent.transfer.transfers import Transfers
from agent.withdrawal import Withdrawal
from imgdist.proving.verdict import Verdict
from imgdist.wire.tracker import Revocation


class Events:
    """What parts tell others that are made after them, from whatever thread. All are set before anybody speaks."""

    blobs: Blobs
    catalog: Catalog
    images: Images
    keeper: TraceKeeper
    space: SpaceKeeper
    transfers: Transfers
    withdrawal: Withdrawal

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def missed(self, node: int, start: int, length: int) -> None:
        """A reader waits for absent bytes of a layer's file."""
        self.transfers.miss(node, start, length)

    def touched(self, touches: list[tuple[int, int, int]]) -> None:
        """Files were read: (node, first byte, bytes)."""
        self.transfers.touched(touches)  # here, in the link's thread: fill makes way at once
        self._loop.call_soon_threadsafe(self.keeper.touched, touches)

    def lapsed(self, node: int, start: int, length: int, waited_s: float) -> None:
        """A read ended at its deadline."""
        self.transfers.lapsed(node, start, length, waited_s)

    def completed(self, store: LayerStore) -> None:
        """A layer has all its chunks."""
        self._loop.call_soon_threadsafe(self.catalog.completed, store.pack_id.hex())

    def lost(self, pack_id: str) -> None:
        """A supernode does not have a pack any more."""
        self._loop.call_soon_threadsafe(lambda: self.images.lost(pack_id))
        self._loop.call_soon_threadsafe(lambda: self.blobs.lost(pack_id))

    def refused(self, error: OSError, name: str) -> None:
        """The disk did not take a chunk of a layer."""
        self._loop.call_soon_threadsafe(lambda: self.space.refused(error, name))

    def revoked(self, by: str, packs: Iterable[Revocation]) -> None:
        """A supernode or an agent says that packs are revoked."""
        self.withdrawal.told(by, packs)

    def proved(self, layer: Layer, verdict: Verdict) -> None:
        """What came of a proof."""
        self.withdrawal.found(layer, verdict)

    def suspect(self, pack_id: str) -> None:
        """A pack that cannot be right was named."""
        self.withdrawal.suspect(pack_id)

    def refused_pack(self, pack_id: str) -> str | None:
        """Why nothing new may be built on a pack; None if it may."""
        return self.withdrawal.refused(pack_id)

    def released(self) -> None:
        """Something came out of use."""
        self.space.wake()
        self.withdrawal.wake()

    async def make_room(self, size_bytes: int) -> bool:
        """Free so many bytes; whether that was done."""
        return await self.space.make_room(size_bytes)

"""What the snapshotter asks of this node's layers (agent.snapshotter.model.Layers), answered by images and catalog."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from agent.catalog import Catalog, Layer
from agent.images import Images
from agent.snapshotter.model import LayerRequest, TakenLayer, Usage
from agent.space.disk import directory_bytes, is_full
from imgdist.errors import DeclinedError, DeniedError, NotFoundError, TemporaryError


class NodeLayers:
    """Takes layers over where a supernode can be asked and does not decline; keeps them mounted while in use."""

    def __init__(
        self,
        images: Images,
        catalog: Catalog,
        released: Callable[[], None] = lambda: None,
        refused: Callable[[str], str | None] = lambda pack_id: None,
    ) -> None:
        """`released` is called when a layer came out of use. `refused(pack_id)`: why nothing new may be built on a
        pack; None if it may."""
        self._images = images
        self._catalog = catalog
        self._released = released
        self._refused = refused
        self._stopped = asyncio.Event()
        self._leaves_until = -math.inf

    def stop(self) -> None:
        """The agent stops: from now on layers are left to containerd, those under way, too."""
        self._stopped.set()

    def leave_for(self, seconds: float) -> None:
        """Leave new layers to containerd for so long from now, whatever was said before: the agent is drained."""
        self._leaves_until = asyncio.get_running_loop().time() + seconds

    async def take_over(self, request: LayerRequest) -> TakenLayer:
        """By source labels where there are any, else by chain ID. DeclinedError says why it is left to containerd."""
        if self._is_leaving:
            raise DeclinedError("the agent is being stopped or drained")
        try:
            layer = await self._unless_stopped(self._find(request))
        except (NotFoundError, TemporaryError) as error:
            raise DeclinedError(str(error)) from error
        except OSError as error:
            if not is_full(error):
                raise
            raise DeclinedError(f"the disk has no room for it, and nothing more can go: {error}") from error
        return _taken(layer)

    def above(self, request: LayerRequest, at_most: int) -> Sequence[tuple[str, TakenLayer]]:
        """Only for requests with source labels: a chain ID alone may be of several images."""
        if (source := request.source) is None or self._is_leaving:
            return []
        found = self._images.above(source.reference, source.layer_digest, source.manifest_digest, at_most)
        return [(chain_id, _taken(layer)) for chain_id, layer in found]

    async def ensure_mounted(self, pack_id: str) -> str:
        """The layer's directory, mounted. A pack that is gone from this node's disk comes back; NotFoundError if nobody
        knows where from, DeniedError if it is revoked and that is to block."""
        if (why := self._refused(pack_id)) is not None:
            raise DeniedError(
                f"pack {pack_id} is revoked and verify.action is block: {why}; pull the image again when its supernode"
                " has another"
            )
        if self._catalog.get(pack_id) is None:
            await self._images.bring_back(pack_id)
        return await self._catalog.ensure_mounted(pack_id)

    async def settle(self, pack_ids: Sequence[str]) -> None:
        """Make packs durable. NotFoundError if one is gone from this node, OSError if the disk refuses."""
        await self._catalog.settle(pack_ids)

    def mounted_at(self, pack_id: str) -> str | None:
        """The layer's directory, if the layer is mounted, durable and may be built on."""
        return self._catalog.mounted_at(pack_id) if self._refused(pack_id) is None else None

    async def implied_directories(self, pack_id: str) -> Sequence[bytes]:
        """Directories that the layer only implies. NotFoundError if its pack is gone from this node."""
        layer = self._catalog.get(pack_id)
        if layer is None:
            raise NotFoundError(f"pack {pack_id} is not on this node")
        return layer.store.index.implied_directories

    async def starting(self, pack_ids: Sequence[str]) -> None:
        """A container is being created over these packs, top first."""
        self._images.starts.began(pack_ids[0])

    async def usage(self, pack_id: str) -> Usage:
        """Blocks that the pack's files take on this disk."""
        layer = self._catalog.get(pack_id)
        return Usage() if layer is None else await asyncio.to_thread(_usage, layer.store.directory)

    async def release(self, pack_id: str) -> None:
        """Unmount; the bytes stay as cache. BusyError says who holds it."""
        await self._catalog.unmount(pack_id)
        self._released()

    @property
    def _is_leaving(self) -> bool:
        return self._stopped.is_set() or asyncio.get_running_loop().time() < self._leaves_until

    async def _unless_stopped(self, finding: Coroutine[Any, Any, Layer]) -> Layer:
        stopped, found = asyncio.ensure_future(self._stopped.wait()), asyncio.ensure_future(finding)
        try:
            await asyncio.wait((found, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not found.done():
                raise DeclinedError("the agent is being stopped")
            return found.result()
        finally:
            stopped.cancel()
            found.cancel()

    async def _find(self, request: LayerRequest) -> Layer:
        source = request.source
        if source is None:
            return await self._images.layer_by_chain(request.chain_id)
        return await self._images.layer(source.reference, source.layer_digest, source.manifest_digest)


def _taken(layer: Layer) -> TakenLayer:
    index = layer.store.index
    return TakenLayer(layer.pack_id, index.diff_id, index.implied_directories, index.hides)


def _usage(directory: Path) -> Usage:
    """As du(1) counts: the directory itself, too."""
    return Usage(directory_bytes(directory), 1 + len(os.listdir(directory)))

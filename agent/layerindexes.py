"""The indexes of an image's layers: asked for together where they are ready, followed where they are not, and rooted in
the image's configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from agent.agreement import DisagreementError
from agent.known_images import KnownImage, KnownLayer
from agent.supernode_client import OnProgress
from agent.supernodes import Supernodes
from imgdist.errors import CorruptError, ImgdistError, NotFoundError, TemporaryError
from imgdist.pack.index import Index
from imgdist.wire.control import Indexes

log = logging.getLogger("imgdist.agent")


class LayerIndexes:
    """Where sealed index streams come from. All calls come from the event loop."""

    def __init__(
        self,
        supernodes: Supernodes,
        *,
        platform: str,
        agreement: int,
        revoked: Callable[[str], str | None],
        suspect: Callable[[str], None],
    ) -> None:
        """`agreement`: so many supernodes must name the same pack for a layer. `revoked(pack_id)`: why no layer may be
        that pack; None if it may. `suspect(pack_id)` is called for one that cannot be right."""
        self._supernodes = supernodes
        self._platform = platform
        self._agreement = agreement
        self._revoked = revoked
        self._suspect = suspect

    async def ready(self, digests: Sequence[str]) -> Indexes:
        """Index streams and metadata chunks of those layers that are ready at a supernode, in one answer; unverified.
        What is missing is followed and fetched by itself: this is a matter of speed alone."""
        if len(digests) < 2 or self._agreement > 1:
            return Indexes({})
        try:
            return await self._supernodes.indexes(digests)
        except ImgdistError as error:
            log.info("indexes of %d layers are asked for one by one: %s", len(digests), error)
            return Indexes({})

    async def of(
        self, image: KnownImage, layer: KnownLayer, ready: bytes | None, on_progress: OnProgress
    ) -> tuple[Index, bytes]:
        """The layer's sealed index and its stream: `ready`, or as SupernodeClient.follow_index gives it. CorruptError
        if it is not this layer's, TemporaryError if its pack is revoked."""
        agreed = await self._agreed(image, layer) if self._agreement > 1 else None
        index, data = (Index.load(ready), ready) if ready else await self._followed(image, layer, on_progress)
        pack_id = index.pack_id.hex()
        self.check_revoked(layer, pack_id)
        if agreed not in (None, pack_id):
            raise CorruptError(f"index of layer {layer.digest}: expected pack {agreed}, found {pack_id}")
        if index.diff_id != layer.diff_id:
            self._suspect(pack_id)
            raise CorruptError(
                f"index of layer {layer.digest}: expected diff ID {layer.diff_id}, found {index.diff_id}"
            )
        return index, data

    def check_revoked(self, layer: KnownLayer, pack_id: str) -> None:
        """TemporaryError if the pack is revoked: its supernode converts the layer again."""
        if (why := self._revoked(pack_id)) is not None:
            raise TemporaryError(f"layer {layer.digest}: pack {pack_id} is revoked: {why}")

    async def _followed(self, image: KnownImage, layer: KnownLayer, on_progress: OnProgress) -> tuple[Index, bytes]:
        try:
            return await self._supernodes.follow_index(layer.digest, on_progress)
        except NotFoundError:
            # Another supernode than the one that resolved the image has to hear of it first.
            await self._supernodes.resolve(
                image.reference, platform=self._platform, manifest_digest=image.manifest_digest
            )
            return await self._supernodes.follow_index(layer.digest, on_progress)

    async def _agreed(self, image: KnownImage, layer: KnownLayer) -> str:
        """The pack id that supernodes agree on: nothing of the layer is fetched before."""
        try:
            return await self._supernodes.agree(
                layer.digest,
                image.reference,
                platform=self._platform,
                manifest_digest=image.manifest_digest,
                count=self._agreement,
            )
        except DisagreementError as error:
            for pack_id in error.pack_ids:
                self._suspect(pack_id)
            raise

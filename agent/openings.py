"""Opening layers: a layer of an image becomes a mounted one, from what is here or by its index, or is left plain.

Layers are opened side by side, each once for the whole node, whichever images and callers want it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from agent.catalog import SMALL_BYTES, Catalog, Layer
from agent.early import EarlyLayers
from agent.known_images import KnownImage, KnownImages, KnownLayer
from agent.layerindexes import LayerIndexes
from agent.work import SharedWork
from imgdist.errors import DeclinedError, ImgdistError
from imgdist.wire.control import Indexes

OPENING_AT_ONCE = 16
"""Layers of one image that are laid out and mounted side by side; each waits for its metadata meanwhile (a guess)."""
INDEXES_FIRST = 8
"""Where more than twice as many are wanted, these indexes come in an answer of their own: containerd asks for the base
first. [measured: all 128 of an image, 45 ms at 200 Mbit/s, its supernode's work included]"""
WHOLE_BYTES = 4 << 20
"""As registries have them, of the small layers of one image that are fetched whole before the image starts. Those
beyond are shown by the view: an image of 128 would come whole first otherwise [measured: at 200 Mbit/s its start took
6 s]."""


@dataclass(frozen=True, slots=True)
class _Together:
    """What the openings of one image's layers share. A turn lasts from the sealed index to the mount: the base layer,
    which containerd asks for first, does not wait until all others have been laid out."""

    indexes: Mapping[str, SharedWork[Indexes]]
    """The answers that theirs are expected in, by layer digest."""
    turns: asyncio.Semaphore
    whole: Collection[str]
    """Digests of those that may be fetched whole before they are mounted."""


@dataclass(frozen=True, slots=True)
class PlainLayer:
    """A layer that could not be had lazily, and why: it is pulled the ordinary way."""

    layer: KnownLayer
    reason: str


class LayerOpenings:
    """The openings of a node's layers, by layer digest. All calls come from the event loop; the work lives in `tasks`,
    the daemon's task group, and outlasts whoever asked for it."""

    def __init__(
        self,
        catalog: Catalog,
        known: KnownImages,
        indexes: LayerIndexes,
        early: EarlyLayers,
        tasks: asyncio.TaskGroup,
        *,
        revoked: Callable[[str], str | None],
    ) -> None:
        """`revoked(pack_id)`: why no layer may be that pack; None if it may."""
        self._catalog = catalog
        self._known = known
        self._indexes = indexes
        self.early = early
        self._tasks = tasks
        self._revoked = revoked
        self._opening: dict[str, SharedWork[Layer]] = {}
        self.indexing: dict[str, KnownLayer] = {}
        self.plain: dict[str, PlainLayer] = {}

    def of_image(
        self, image: KnownImage, declined: Mapping[str, str], ready: Sequence[str]
    ) -> dict[str, SharedWork[Layer]]:
        """An opening for each layer of the image, by digest: begun now, or by another image before.

        `declined`: the reasons of those that its supernode declines, `ready`: those whose index is sealed there. An
        opening ends with DeclinedError, or with what following the index, laying out or mounting raises.
        """
        wanted = [digest for digest in dict.fromkeys(ready) if self._here(digest) is None]
        together = _Together(self._ask_indexes(wanted), asyncio.Semaphore(OPENING_AT_ONCE), _small_ones(image.layers))
        return {
            layer.digest: self._opening_of(image, layer, declined.get(layer.digest), together) for layer in image.layers
        }

    def _ask_indexes(self, digests: Sequence[str]) -> dict[str, SharedWork[Indexes]]:
        if len(digests) <= 2 * INDEXES_FIRST:
            return dict.fromkeys(digests, SharedWork(self._tasks, self._indexes.ready(digests)))
        first = SharedWork(self._tasks, self._indexes.ready(digests[:INDEXES_FIRST]))
        rest = SharedWork(self._tasks, self._ready_after(first, digests[INDEXES_FIRST:]))
        return dict.fromkeys(digests[:INDEXES_FIRST], first) | dict.fromkeys(digests[INDEXES_FIRST:], rest)

    async def _ready_after(self, before: SharedWork[Indexes], digests: Sequence[str]) -> Indexes:
        """One that did not answer is not waited for again: who asks for layers one by one says more of it."""
        answer = await before.wait()
        return await self._indexes.ready(digests) if answer.indexes else Indexes({})

    def is_past(self, opening: SharedWork[Layer]) -> bool:
        """Whether an opening counts no more: it failed otherwise than by being declined, or its layer is gone."""
        return (opening.failed and not isinstance(opening.error, DeclinedError)) or self._is_gone(opening)

    def forget_ended(self, before: float) -> None:
        """Those that ended before that time of the event loop's clock (seconds)."""
        for digest in [digest for digest, opening in self._opening.items() if opening.ended_before(before)]:
            del self._opening[digest]

    def forget_pack(self, pack_id: str) -> None:
        """Those whose layer is that pack: each is opened anew when it is wanted."""
        opened = {digest: opening.result for digest, opening in self._opening.items()}
        for digest in [digest for digest, layer in opened.items() if layer is not None and layer.pack_id == pack_id]:
            del self._opening[digest]

    def _opening_of(
        self, image: KnownImage, layer: KnownLayer, declined: str | None, together: _Together
    ) -> SharedWork[Layer]:
        if declined is not None:  # of this image: another one may have the layer from where it may be had
            return SharedWork(self._tasks, self._open_layer(image, layer, declined, together))
        opening = self._opening.get(layer.digest)
        if opening is None or opening.failed or self._is_gone(opening):
            work = self._open_layer(image, layer, declined, together)
            opening = self._opening[layer.digest] = SharedWork(self._tasks, work)
        return opening

    def _is_gone(self, opening: SharedWork[Layer]) -> bool:
        """A layer that was opened once and was unmounted or removed since."""
        layer = opening.result
        return layer is not None and (not layer.mounted or self._revoked(layer.pack_id) is not None)

    async def _open_layer(
        self, image: KnownImage, layer: KnownLayer, declined: str | None, together: _Together
    ) -> Layer:
        try:
            if declined is not None:
                raise DeclinedError(f"layer {layer.digest}: {declined or 'declined by the supernode'}")
            async with AsyncExitStack() as turn:
                found = self._here(layer.digest) or await self._adopt(image, layer, together, turn)
                await self._catalog.mount(found, whole=layer.digest in together.whole)
            self._indexes.check_revoked(layer, found.pack_id)  # meanwhile
        except (ImgdistError, OSError) as error:
            self.plain[layer.digest] = PlainLayer(layer, str(error))
            raise
        self.plain.pop(layer.digest, None)
        return found

    def _here(self, layer_digest: str) -> Layer | None:
        return self._catalog.get(self._known.pack_of(layer_digest) or "")

    async def _adopt(self, image: KnownImage, layer: KnownLayer, together: _Together, turn: AsyncExitStack) -> Layer:
        self.indexing[layer.digest] = layer
        try:
            async with self.early.layer(layer.digest) as early:
                answer = together.indexes.get(layer.digest)
                ready = await answer.wait() if answer is not None else Indexes({})
                sealed = ready.indexes.get(layer.digest)
                if sealed is not None:  # what loading it takes, the base layer need not wait for
                    await turn.enter_async_context(together.turns)
                index, data = await self._indexes.of(image, layer, sealed, early.progress)
                if sealed is None:
                    await turn.enter_async_context(together.turns)
                metadata = ready.metadata.get(layer.digest, ())
                found = await self._catalog.adopt(data, await early.hand_over(), metadata, index)
        finally:
            self.indexing.pop(layer.digest, None)
        self._known.sealed(layer.digest, found.pack_id)
        return found


def _small_ones(layers: Sequence[KnownLayer]) -> set[str]:
    """Layers that together are worth `WHOLE_BYTES`, from the top down: containerd asks for the base first, and what
    comes whole comes while it is given the layers below."""
    found, left = set(), WHOLE_BYTES
    for layer in reversed(layers):
        if layer.size_bytes < SMALL_BYTES and layer.size_bytes <= left:
            found.add(layer.digest)
            left -= layer.size_bytes
    return found

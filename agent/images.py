"""From a reference to mounted layers: the image job.

The first layer that is asked for starts the whole image: indexes, metadata, small layers and mounts of all layers side
by side, so that the twelve Prepares of a twelve-layer image together take as long as one. Then the start-up trace, if
the supernode has one, is fetched before anything else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from agent.catalog import Catalog, Layer
from agent.known_images import KnownImage, KnownImages, KnownLayer
from agent.supernodes import Supernodes
from agent.tracing import TraceRecorder, unpack
from agent.transfer.transfers import Transfers
from agent.work import SharedWork
from imgdist.errors import CorruptError, DeclinedError, ImgdistError, NotFoundError, ProtocolError, TemporaryError
from imgdist.wire.control import Resolution

log = logging.getLogger("imgdist.agent")


@dataclass
class ImageJob:
    """One image being made startable: per layer digest the mounted layer, or the reason why there is none."""

    image: KnownImage
    layers: dict[str, SharedWork[Layer]]


class Images:
    """Every image of the node. All calls come from the event loop; jobs live in `tasks`, the daemon's task group, and
    outlast whoever asked for them."""

    def __init__(
        self,
        supernodes: Supernodes,
        catalog: Catalog,
        known: KnownImages,
        transfers: Transfers,
        recorder: TraceRecorder,
        tasks: asyncio.TaskGroup,
        *,
        platform: str,
        traces: bool,
    ) -> None:
        self._supernodes = supernodes
        self._catalog = catalog
        self.known = known
        self._transfers = transfers
        self._recorder = recorder
        self._tasks = tasks
        self._platform = platform
        self._traces = traces
        self._jobs: dict[tuple[str, str | None], SharedWork[ImageJob]] = {}
        self._opening: dict[str, SharedWork[Layer]] = {}
        self.indexing: dict[str, KnownLayer] = {}
        self.plain: dict[str, str] = {}

    async def open(self, reference: str, manifest_digest: str | None = None) -> ImageJob:
        """The job of an image, started now or by somebody else before. Raises what resolving raises."""
        key = (reference, manifest_digest)
        # Single flight: the Prepares of one pull, and pulls of one image, find the job that the first one started.
        # A waiter sees the leader's error; the next caller tries anew.
        job = self._jobs.get(key)
        if job is None or _is_stale(job):
            job = self._jobs[key] = SharedWork(self._tasks, self._start(reference, manifest_digest))
        return await job.wait()

    async def layer_by_chain(self, chain_id: str) -> Layer:
        """The mounted layer of a chain ID: from what this node knows, else by the supernode's table.

        NotFoundError if nobody knows the chain; DeclinedError if the layer cannot be lazy.
        """
        known = self.known.layer_of_chain(chain_id)
        layer = self._catalog.get(known.pack_id) if known and known.pack_id else None
        if layer is not None:
            await self._catalog.mount(layer)
            return layer
        chain = await self._supernodes.chain(chain_id)
        if chain is None:
            raise NotFoundError(f"no image with chain ID {chain_id} was resolved at the supernode")
        return await self.layer(f"{chain.name}@{chain.manifest_digest}", chain.layer_digest, chain.manifest_digest)

    async def layer(self, reference: str, layer_digest: str, manifest_digest: str | None) -> Layer:
        """The mounted layer of an image by its compressed digest. DeclinedError if it cannot be lazy."""
        job = await self.open(reference, manifest_digest)
        opening = job.layers.get(layer_digest)
        if opening is None:
            raise DeclinedError(f"image {reference} has no layer {layer_digest}")
        return await opening.wait()

    def started(self, pack_id: str) -> None:
        """A container is being created over this pack: what its image's layers are read for now is a start."""
        now = time.monotonic()
        for image in self.known.with_pack(pack_id):
            if image.layers[-1].pack_id == pack_id:
                self._record(image, now)
                self._recorder.started(image.manifest_digest, now)

    async def _start(self, reference: str, manifest_digest: str | None) -> ImageJob:
        resolution = await self._supernodes.resolve(reference, platform=self._platform, manifest_digest=manifest_digest)
        image = _known(reference, resolution)
        self.known.add(image)
        job = ImageJob(image, {layer.digest: self._opening_of(layer, resolution) for layer in image.layers})
        if self._traces:
            SharedWork(self._tasks, self._follow_trace(job, resolution.trace))
        return job

    def _opening_of(self, layer: KnownLayer, resolution: Resolution) -> SharedWork[Layer]:
        opening = self._opening.get(layer.digest)
        if opening is None or opening.failed or self._is_gone(opening):
            said = next(one for one in resolution.layers if one.digest == layer.digest)
            reason = (said.reason or "declined by the supernode") if said.state == "declined" else None
            opening = self._opening[layer.digest] = SharedWork(self._tasks, self._open_layer(layer, reason))
        return opening

    def _is_gone(self, opening: SharedWork[Layer]) -> bool:
        """A layer that was opened once and was unmounted or removed since."""
        layer = opening.result
        return layer is not None and not layer.mounted

    async def _open_layer(self, layer: KnownLayer, declined: str | None) -> Layer:
        self.indexing[layer.digest] = layer
        try:
            if declined is not None:
                raise DeclinedError(f"layer {layer.digest}: {declined}")
            found = self._catalog.get(self.known.pack_of(layer.digest) or "")
            if found is None:
                found = await self._catalog.adopt(await self._index(layer))
                self.known.sealed(layer.digest, found.pack_id)
            await self._catalog.mount(found)
        except ImgdistError as error:
            self.plain[layer.digest] = str(error)
            raise
        else:
            self.plain.pop(layer.digest, None)
            return found
        finally:
            self.indexing.pop(layer.digest, None)

    async def _index(self, layer: KnownLayer) -> bytes:
        """The layer's sealed index stream, rooted in the image's configuration by its diff ID."""
        index, data = await self._supernodes.follow_index(layer.digest)
        if index.diff_id != layer.diff_id:
            raise CorruptError(
                f"index of layer {layer.digest}: expected diff ID {layer.diff_id}, found {index.diff_id}"
            )
        return data

    async def _follow_trace(self, job: ImageJob, recorded: bool) -> None:
        """Fetch what earlier starts of this image read, then watch what this one reads."""
        entries: list[tuple[str, int]] = []
        if recorded:
            try:
                trace = await self._supernodes.trace(job.image.manifest_digest)
                entries = unpack(trace) if trace is not None else []
            except (TemporaryError, ProtocolError) as error:
                log.info("no trace for %s: %s", job.image.reference, error)
        await asyncio.gather(*(opening.settled() for opening in job.layers.values()))
        lazy = _lazy_layers(job)
        order = [(lazy[digest].store, chunk) for digest, chunk in entries if digest in lazy]
        self._transfers.trace(order)
        self._record(job.image, time.monotonic())

    def _record(self, image: KnownImage, now: float) -> None:
        shown = {}
        for layer in image.layers:
            found = self._catalog.get(layer.pack_id) if layer.pack_id else None
            if found is not None and found.shown:
                shown[found.store.node] = (layer.digest, found.store.index)
        if shown and self._traces:
            self._recorder.open(image.manifest_digest, shown, now)


def _is_stale(job: SharedWork[ImageJob]) -> bool:
    """A finished job answers later callers only as long as each of its layers is mounted or about to be."""
    if job.failed:
        return True
    done = job.result
    return done is not None and any(
        opening.failed or (opening.result is not None and not opening.result.mounted)
        for opening in done.layers.values()
    )


def _known(reference: str, resolution: Resolution) -> KnownImage:
    return KnownImage(
        reference=reference,
        name=resolution.name,
        manifest_digest=resolution.manifest_digest,
        platform=resolution.platform,
        layers=tuple(
            KnownLayer(
                digest=layer.digest,
                media_type=layer.media_type,
                size_bytes=layer.size_bytes,
                diff_id=layer.diff_id,
                chain_id=layer.chain_id,
            )
            for layer in resolution.layers
        ),
    )


def _lazy_layers(job: ImageJob) -> Mapping[str, Layer]:
    found = {digest: opening.result for digest, opening in job.layers.items()}
    return {digest: layer for digest, layer in found.items() if layer is not None and layer.shown}

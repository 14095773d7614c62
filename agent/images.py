"""From a reference to mounted layers: the jobs of images.

The first layer that is asked for starts the whole image: indexes, metadata, small layers and mounts of all layers side
by side, so that the twelve Prepares of a twelve-layer image together take as long as one. Then the start-up trace, if
the supernode has one, is fetched before anything else.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Collection
from dataclasses import dataclass

from agent import rooted
from agent.catalog import Catalog, Layer
from agent.known_images import KnownImage, KnownImages, KnownLayer
from agent.openings import LayerOpenings
from agent.starts import ImageStarts
from agent.supernodes import Supernodes
from agent.work import SharedWork
from imgdist.errors import DeclinedError, ImgdistError, NotFoundError, TemporaryError
from imgdist.oci.reference import parse
from imgdist.wire.control import Resolution

log = logging.getLogger("imgdist.agent")

RENEW_S = 5.0
"""Between two requests to convert a layer again that a supernode has lost (a guess)."""
KEEP_S = 600.0
"""How long a job that has ended is remembered. It spares the Prepares of one pull a question each; they are seconds
apart, or minutes where containerd unpacks a declined layer between them."""


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
        openings: LayerOpenings,
        starts: ImageStarts,
        tasks: asyncio.TaskGroup,
        *,
        platform: str,
    ) -> None:
        self._supernodes = supernodes
        self._catalog = catalog
        self.known = known
        self.openings = openings
        self.starts = starts
        self._tasks = tasks
        self._platform = platform
        self._jobs: dict[tuple[str, str | None], SharedWork[ImageJob]] = {}
        self._renewing: set[str] = set()

    async def open(self, reference: str, manifest_digest: str | None = None, *, anew: bool = False) -> ImageJob:
        """The job of an image, started now or by somebody else before. Raises what resolving raises.

        `anew`: what the reference names now counts (a tag may have moved), not what an earlier job found.
        """
        self._forget_old()
        key = (reference, manifest_digest)
        # Single flight: the Prepares of one pull, and pulls of one image, find the job that the first one started.
        # A waiter sees the leader's error; the next caller tries anew.
        job = self._jobs.get(key)
        if job is None or self._is_stale(job) or (anew and job.result is not None):
            job = self._jobs[key] = SharedWork(self._tasks, self._start(reference, manifest_digest))
        opened = await job.wait()
        by_digest = (reference, opened.image.manifest_digest)
        other = self._jobs.setdefault(by_digest, job)
        if other is not job and self._is_stale(other):
            self._jobs[by_digest] = job
        return opened

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
        if (begun := self._begun(reference, layer_digest, manifest_digest)) is not None:
            return await begun.wait()
        job = await self.open(reference, manifest_digest)
        if layer_digest not in job.layers and manifest_digest is None:  # the tag has moved since the job began
            job = await self.open(reference, anew=True)
        opening = job.layers.get(layer_digest)
        if opening is None:
            raise DeclinedError(f"image {reference} has no layer {layer_digest}")
        return await opening.wait()

    def above(
        self, reference: str, layer_digest: str, manifest_digest: str | None, at_most: int
    ) -> list[tuple[str, Layer]]:
        """Chain IDs and layers of what an image has above a layer, from there up, as far as each is open by now."""
        job = self._jobs.get((reference, manifest_digest))
        if job is None or job.result is None:
            return []
        layers = job.result.image.layers
        place = next((place for place, layer in enumerate(layers, 1) if layer.digest == layer_digest), len(layers))
        found: list[tuple[str, Layer]] = []
        for layer in layers[place : place + at_most]:
            opening = self._begun(reference, layer.digest, manifest_digest)
            if opening is None or opening.result is None:
                break
            found.append((layer.chain_id, opening.result))
        return found

    async def check_rooted(self, reference: str, image: KnownImage) -> None:
        """Hold what a supernode said of an image against the image's own documents, for who has nobody else's word.

        A reference with a digest is held against that, once, one with a tag while a supernode answers. CorruptError if
        a supernode said otherwise, and what asking for the documents raises.
        """
        parsed = parse(reference)
        digest = parsed.digest or image.manifest_digest
        known = self.known.get(image.manifest_digest)
        if known is not None and digest in known.rooted_in:
            return
        asked = None if parsed.digest else image.manifest_digest
        try:
            documents = await self._supernodes.documents(reference, platform=self._platform, manifest_digest=asked)
        except TemporaryError as error:
            if parsed.digest:
                raise
            log.warning("%s: not held against its manifest, a tag is its supernode's word: %s", reference, error)
            return
        rooted.check(parsed, image, documents)
        self.known.rooted(image.manifest_digest, digest)

    async def bring_back(self, pack_id: str) -> None:
        """Have a pack on this node again that is gone from its disk while snapshots need it, and mount it.

        NotFoundError if no image with it is remembered; what resolving or opening its layer raises.
        """
        image = next(iter(self.known.with_pack(pack_id)), None)
        if image is None:
            raise NotFoundError(f"pack {pack_id} is gone from this node, and no image that has it is remembered")
        log.warning("pack %s is gone from this node's disk: brought back for %s", pack_id, image.reference)
        digest = next(layer.digest for layer in image.layers if layer.pack_id == pack_id)
        await self.layer(f"{image.name}@{image.manifest_digest}", digest, image.manifest_digest)

    def lost(self, pack_id: str) -> None:
        """A supernode has the pack no more: the layer is converted anew, which makes the same pack."""
        image = next(iter(self.known.with_pack(pack_id)), None)
        if image is not None and pack_id not in self._renewing:
            self._renewing.add(pack_id)
            SharedWork(self._tasks, self._renew(pack_id, image))

    def give_up(self, pack_id: str) -> None:
        """The pack is revoked: its layers are asked for anew when they are wanted."""
        self.known.unseal(pack_id)
        self.openings.forget_pack(pack_id)

    def forget_without(self, pack_ids: Collection[str]) -> None:
        """As KnownImages has it; images under way are spared: their packs were here once, and come again."""
        under_way = [job.result for job in self._jobs.values() if job.result is not None and not _ended(job, math.inf)]
        self.known.forget_without(pack_ids, {job.image.manifest_digest for job in under_way})

    def _forget_old(self) -> None:
        before = self._oldest()
        for key in [key for key, job in self._jobs.items() if _ended(job, before)]:
            del self._jobs[key]
        self.openings.forget_ended(before)

    @staticmethod
    def _oldest() -> float:
        return asyncio.get_running_loop().time() - KEEP_S

    async def _start(self, reference: str, manifest_digest: str | None) -> ImageJob:
        try:
            resolution = await self._supernodes.resolve(
                reference, platform=self._platform, manifest_digest=manifest_digest
            )
        except TemporaryError as error:
            remembered = self._remembered(reference, manifest_digest)
            if remembered is None:
                raise
            log.warning("%s: taken as this node knows it, all its layers being here: %s", reference, error)
            return ImageJob(remembered, self.openings.of_image(remembered, {}, ()))
        image = _known(reference, resolution)
        self.known.add(image)
        declined = {layer.digest: layer.reason or "" for layer in resolution.layers if layer.state == "declined"}
        ready = [layer.digest for layer in resolution.layers if layer.state == "ready"]
        job = ImageJob(image, self.openings.of_image(image, declined, ready))
        SharedWork(self._tasks, self.starts.follow(image, job.layers, has_trace=resolution.trace))
        return job

    def _remembered(self, reference: str, manifest_digest: str | None) -> KnownImage | None:
        """The one image that was known by this name and has all its layers on this node."""
        found = [
            image
            for image in self.known.all()
            if (image.manifest_digest == manifest_digest if manifest_digest else image.reference == reference)
            and all(layer.pack_id and self._catalog.get(layer.pack_id) for layer in image.layers)
        ]
        return found[0] if len(found) == 1 else None

    def _begun(self, reference: str, layer_digest: str, manifest_digest: str | None) -> SharedWork[Layer] | None:
        """A layer's opening by the image's job, if that still counts: what `open` would come to, without a look at all
        other layers for each of them."""
        job = self._jobs.get((reference, manifest_digest))
        opening = job.result.layers.get(layer_digest) if job is not None and job.result is not None else None
        if opening is None or opening.ended_before(self._oldest()) or self.openings.is_past(opening):
            return None
        return opening

    def _is_stale(self, job: SharedWork[ImageJob]) -> bool:
        """A finished job answers later callers only as long as each of its layers is mounted, about to be, or
        declined."""
        done = job.result
        return job.failed or (done is not None and any(map(self.openings.is_past, done.layers.values())))

    async def _renew(self, pack_id: str, image: KnownImage) -> None:
        log.warning(
            "pack %s is wanted and its supernode has it no more: %s is resolved again", pack_id, image.reference
        )
        try:
            await self._supernodes.resolve(
                image.reference, platform=self._platform, manifest_digest=image.manifest_digest
            )
        except ImgdistError as error:
            log.warning("%s cannot be resolved again yet: %s", image.reference, error)
        finally:
            await asyncio.sleep(RENEW_S)
            self._renewing.discard(pack_id)


def _ended(job: SharedWork[ImageJob], before: float) -> bool:
    openings = job.result.layers.values() if job.result is not None else ()
    return job.ended_before(before) and all(opening.ended_before(before) for opening in openings)


def _known(reference: str, resolution: Resolution) -> KnownImage:
    return KnownImage(
        reference=reference,
        name=resolution.name,
        manifest_digest=resolution.manifest_digest,
        platform=resolution.platform,
        confirmed_at=time.time() - resolution.age_s,
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

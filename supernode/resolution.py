"""What a supernode answers to `resolve`: an image's layers, which are ready, and which it may not hand out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import msgspec

from imgdist.errors import NotFoundError, UsageError
from imgdist.oci.platform import Platform
from imgdist.oci.reference import Reference, is_digest, parse
from imgdist.pack import FORMAT_VERSION
from imgdist.wire.control import Layer, LayerStatus, Resolution, ResolveRequest
from supernode.access.access import Access
from supernode.fetch import Fetcher, Origin
from supernode.resolve import Image, Resolver
from supernode.store import LocalStore
from supernode.traces import Traces

_UNPROVEN = "this image's registry is still to show that it has the layer, which came from another one"


class Resolutions:
    """Resolves images, and has their layers converted. All calls come from the event loop."""

    def __init__(
        self,
        resolver: Resolver,
        fetcher: Fetcher,
        store: LocalStore,
        traces: Traces,
        access: Access,
        *,
        has_tenants: bool,
    ) -> None:
        """`has_tenants`: the network is not the nodes' alone."""
        self._resolver = resolver
        self._fetcher = fetcher
        self._store = store
        self._traces = traces
        self._access = access
        self._has_tenants = has_tenants
        self._image_sizes: dict[str, int] = {}

    async def of(self, asked: ResolveRequest, chunks: Callable[[], str | None]) -> Resolution:
        """What the image is by now; its layers are fetched from here on, if that is wanted. `chunks()`: where who
        asks finds chunk bodies. UsageError for what is no reference, else what asking its registry raises."""
        platform = Platform.parse(asked.platform) if asked.platform else Platform.of_this_machine()
        image = await self._resolver.resolve(_reference(asked), platform)
        origins = [
            Origin(image.reference.host, image.reference.repository, layer, diff_id)
            for layer, diff_id in zip(image.manifest.layers, image.config.diff_ids, strict=True)
        ]
        unproven = await self._unproven(origins)
        origins = [origin for origin in origins if origin.layer.digest not in unproven]
        self._fetcher.learn(origins)
        if asked.convert:
            self._fetcher.start(origins)
        resolution = await self._resolution(image, chunks, unproven)
        return msgspec.structs.replace(resolution, documents=image.documents if asked.documents else ())

    async def _unproven(self, origins: Sequence[Origin]) -> set[str]:
        """Digests of the layers that are here from another registry, and that this image's has not shown to have: where
        the network is not the nodes' alone, an image may be made to get at somebody else's layers."""
        if not self._has_tenants:
            return set()
        access, jobs = self._access, self._fetcher.jobs

        async def is_theirs(origin: Origin) -> bool:
            name, layer = f"{origin.host}/{origin.repository}", origin.layer
            job = jobs.get(layer.digest)  # which may wait for its turn, so that nothing is read yet
            if job is None:
                return await access.is_proven(name, layer.digest, layer.size)
            if job.origin.repository == origin.repository or job.origin.host != origin.host:
                return job.origin.host == origin.host
            return await access.claims(name, layer.digest)

        # Twice: while registries were asked the first time, a layer that nobody had may have come from another one.
        theirs = [origin for origin in origins if await is_theirs(origin)]
        theirs = [origin for origin in theirs if await is_theirs(origin)]
        return {origin.layer.digest for origin in origins} - {origin.layer.digest for origin in theirs}

    async def _resolution(
        self, image: Image, chunks: Callable[[], str | None], unproven: Collection[str]
    ) -> Resolution:
        manifest, config = image.manifest, image.config
        statuses = [self._status(layer.digest, unproven) for layer in manifest.layers]
        sizes = await self._image_bytes([status.pack_id for status in statuses if status.pack_id])
        layers = [
            Layer(
                layer.digest,
                layer.media_type,
                layer.size,
                diff_id,
                chain_id,
                status.state,
                status.pack_id,
                sizes.get(status.pack_id or ""),
                status.reason,
            )
            for layer, diff_id, chain_id, status in zip(
                manifest.layers, config.diff_ids, image.chain_ids, statuses, strict=True
            )
        ]
        return Resolution(
            reference=str(image.reference),
            name=image.reference.name,
            manifest_digest=manifest.digest,
            manifest_media_type=manifest.media_type,
            config_digest=manifest.config.digest,
            platform=str(config.platform),
            size_bytes=sum(layer.size for layer in manifest.layers),
            chunks=chunks(),
            format_version=FORMAT_VERSION,
            trace=self._traces.exists(manifest.digest),
            layers=tuple(layers),
            age_s=image.age_s if math.isfinite(image.age_s) else 0.0,
        )

    def _status(self, digest: str, unproven: Collection[str]) -> LayerStatus:
        status = self._fetcher.status(digest)
        if digest in unproven:
            return LayerStatus(digest, "declined", reason=_UNPROVEN)
        if status.pack_id:
            self._store.used(status.pack_id)
        return status

    async def _image_bytes(self, pack_ids: Collection[str]) -> dict[str, int]:
        """Sizes of layer images, but of packs that were removed meanwhile. Reading an index takes some 10 ms, a size is
        kept (100 bytes a pack)."""
        if not self._image_sizes.keys() >= set(pack_ids):
            await asyncio.to_thread(self._read_sizes, pack_ids)
        return {pack_id: self._image_sizes[pack_id] for pack_id in pack_ids if pack_id in self._image_sizes}

    def _read_sizes(self, pack_ids: Collection[str]) -> None:
        for pack_id in pack_ids:
            if pack_id not in self._image_sizes:  # or another resolve of the image has read it meanwhile
                with suppress(NotFoundError):
                    self._image_sizes[pack_id] = self._store.index(pack_id).image_size


def _reference(asked: ResolveRequest) -> Reference:
    reference = parse(asked.reference)
    if asked.manifest_digest is None:
        return reference
    if not is_digest(asked.manifest_digest):
        raise UsageError(f"manifest_digest {asked.manifest_digest[:80]!r}: expected sha256: and 64 hex digits")
    return Reference(reference.host, reference.repository, reference.tag, asked.manifest_digest)

"""From a reference to one platform's image, asking the registry only for what is not known already."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from imgdist.errors import ProtocolError
from imgdist.oci.manifest import (
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    chain_ids,
    choose,
    parse_config,
    parse_manifest,
)
from imgdist.oci.platform import Platform
from imgdist.oci.reference import Reference
from imgdist.wire.control import Chain, Document
from supernode.catalog import Catalog
from supernode.chains import Chains
from supernode.registries import Registries
from supernode.singleflight import SingleFlight
from supernode.tags import Tagged, Tags

INDEX_DEPTH_MAX = 3
"""Indexes inside indexes that are followed; one is what images have."""


@dataclass(frozen=True, slots=True)
class Image:
    """A resolved image; `chain_ids` and the configuration's diff IDs are parallel to the manifest's layers. Its tag, if
    it was asked for by one, was confirmed `age_s` seconds ago. `documents`: from what it was named by to its
    configuration, if it was resolved."""

    reference: Reference
    manifest: Manifest
    config: ImageConfig
    chain_ids: tuple[str, ...]
    age_s: float = 0.0
    documents: tuple[Document, ...] = ()


class Resolver:
    """Documents that have a digest come from the catalog once seen. A tag is asked for anew each time; while its
    registry does not answer, what it named last stands.

    `delivered(name, digest)`, where given: a document counts for a repository only once it has come from there.
    """

    def __init__(
        self,
        registries: Registries,
        catalog: Catalog,
        chains: Chains,
        tags: Tags,
        delivered: Callable[[str, str], Awaitable[bool]] | None = None,
    ) -> None:
        self._registries = registries
        self._catalog = catalog
        self._chains = chains
        self._tags = tags
        self._delivered = delivered
        self._documents: SingleFlight[tuple[str, bytes]] = SingleFlight()

    async def resolve(self, reference: Reference, platform: Platform) -> Image:
        """The image for `platform`; its chain IDs are registered.

        Raises what the registry client raises, NotFoundError if the index has nothing for the platform,
        DeclinedError for what is no image.
        """
        if (refusal := self._registries.settings.refusal(reference.name)) is not None:
            raise refusal
        named = Tagged(reference.digest) if reference.digest else await self._tags.digest(reference)
        manifest, path = await self._manifest(reference, named.digest, platform)
        image = await self.image(reference, manifest)
        return replace(image, age_s=named.age_s, documents=(*path, *image.documents))

    async def image(self, reference: Reference, manifest: Manifest) -> Image:
        """The image of a manifest; its chain IDs are registered. Raises as `resolve`."""
        raw = await self._config(reference, manifest)
        config = parse_config(raw, manifest)
        document = Document(manifest.config.media_type, raw)
        image = Image(reference, manifest, config, tuple(chain_ids(config.diff_ids)), documents=(document,))
        await self._chains.keep(
            [
                Chain(chain, layer.digest, diff_id, reference.name, manifest.digest, str(config.platform))
                for chain, layer, diff_id in zip(image.chain_ids, manifest.layers, config.diff_ids, strict=True)
            ]
        )
        return image

    async def document(self, reference: Reference, digest: str) -> tuple[str, bytes]:
        """(media type, bytes) of the manifest or index with that digest in the reference's repository."""
        return await self._documents.do((reference.name, digest), partial(self._fetch_manifest, reference, digest))

    async def _manifest(
        self, reference: Reference, digest: str, platform: Platform
    ) -> tuple[Manifest, tuple[Document, ...]]:
        """The platform's manifest, and the documents that lead to it, itself the last."""
        path: list[Document] = []
        for _ in range(INDEX_DEPTH_MAX):
            media_type, raw = await self.document(reference, digest)
            path.append(Document(media_type, raw))
            document = parse_manifest(raw, media_type)
            if not isinstance(document, Index):
                return document, tuple(path)
            digest = choose(document, platform).digest
        raise ProtocolError(f"{reference}: more than {INDEX_DEPTH_MAX} indexes inside each other")

    async def _config(self, reference: Reference, manifest: Manifest) -> bytes:
        wanted = manifest.config
        key = (reference.name, wanted.digest)
        _, raw = await self._documents.do(key, partial(self._fetch_config, reference, wanted))
        return raw

    async def _fetch_manifest(self, reference: Reference, digest: str) -> tuple[str, bytes]:
        if known := await self._known(reference.name, digest):
            return known
        by_digest = Reference(reference.host, reference.repository, digest=digest)
        _, media_type, raw = await self._registries.client(reference.host).resolve(by_digest)
        await self._catalog.keep_document(digest, media_type, raw)
        return media_type, raw

    async def _known(self, name: str, digest: str) -> tuple[str, bytes] | None:
        if self._delivered is not None and not await self._delivered(name, digest):
            return None
        return await self._catalog.document(digest)

    async def _fetch_config(self, reference: Reference, descriptor: Descriptor) -> tuple[str, bytes]:
        if known := await self._known(reference.name, descriptor.digest):
            return known
        raw = await self._registries.client(reference.host).document(reference.repository, descriptor)
        await self._catalog.keep_document(descriptor.digest, descriptor.media_type, raw)
        return descriptor.media_type, raw

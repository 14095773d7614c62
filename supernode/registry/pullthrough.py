"""A registry that has what other registries have, and asks each of them as rarely as it may."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from contextlib import suppress

from imgdist.distribution import accept as accepting
from imgdist.distribution.inorder import InOrder
from imgdist.distribution.registry import Document
from imgdist.distribution.request import Request, link
from imgdist.errors import NotFoundError, TemporaryError
from imgdist.oci.access import Authoriser
from imgdist.oci.blobs import Blob
from imgdist.oci.manifest import OCI_INDEX, Index, Manifest
from imgdist.oci.reference import Reference
from supernode.blobs.source import Blobs
from supernode.freshness import Freshness
from supernode.registry import referrers
from supernode.registry.direct import DirectBlobs
from supernode.registry.learning import Learning, understood
from supernode.registry.memoryblob import MemoryBlob
from supernode.upstream import Upstream

log = logging.getLogger("imgdist.registry")

SHOWN_S = 5.0
"""How long a client waits for its registry to show what is here already (a guess: some 100 MB on a fast link)."""


class PullThrough:
    """A `Registry`. Who may have something is asked of `access` first, also for what is here."""

    def __init__(
        self, upstream: Upstream, freshness: Freshness, access: Authoriser, blobs: Blobs, learning: Learning
    ) -> None:
        self._registries = upstream.registries
        self._answering = upstream.answering
        self._catalog = upstream.catalog
        self._tags = upstream.tags
        self._resolver = upstream.resolver
        self._freshness = freshness
        self._access = access
        self._kept = blobs
        self._direct = DirectBlobs(upstream.registries)
        self._blobs = InOrder(blobs, self._direct)
        self._learning = learning

    async def manifest(self, request: Request, accept: Sequence[str], authorization: str | None) -> Document:
        """As Registry.manifest. A tag stands for its time to live, and longer while its registry does not answer; the
        Age header says how long ago it was confirmed."""
        where, age = request.where, 0.0
        await self._check(where, f"manifests/{where.digest or where.tag}", authorization)
        digest = where.digest
        if digest is None:
            tagged = await self._tags.digest(where, self._freshness.of(where), self._freshness.stale_if_error_s)
            digest, age = tagged.digest, tagged.age_s
        media_type, raw = await self._resolver.document(where, digest)
        if not accepting.accepts(accept, media_type):
            return await self._as_asked(where, accept)
        by_digest = Reference(where.host, where.repository, where.tag, digest)
        learnt = self._learning.manifest(by_digest, media_type, raw)
        await self._check_blobs(by_digest, learnt)
        headers = () if where.digest else (("Age", str(math.floor(age))),)
        return Document(media_type, raw, digest, headers)

    async def blob_size(self, request: Request, authorization: str | None) -> int:
        """As Registry.blob_size."""
        where = request.where
        source = self._direct if await self._is_elsewhere(where, authorization) else self._blobs
        assert where.digest is not None
        known = self._learning.size(where)
        return known if known is not None else await source.size(where, authorization=authorization)

    async def blob(self, request: Request, authorization: str | None) -> Blob:
        """As Registry.blob. A configuration comes from where lazy pulls have it, too: it is read once for both."""
        where = request.where
        if not await self._is_elsewhere(where, authorization):
            opened = await self._open(where, authorization)
            # Once more: another registry may have begun to deliver it meanwhile, or be done, and then it is that one's.
            if not await self._is_elsewhere(where, authorization):
                return opened
        size = self._learning.size(where)
        return await self._direct.open(where, authorization=authorization, size=size)

    async def _open(self, where: Reference, authorization: str | None) -> Blob:
        assert where.digest is not None
        await self._learning.settled(where.digest)
        if document := await self._catalog.document(where.digest):
            return MemoryBlob(where.digest, document[1])
        return await self._blobs.open(where, authorization=authorization, size=self._learning.size(where))

    async def tags(self, request: Request, query: Sequence[tuple[str, str]], authorization: str | None) -> Document:
        """As Registry.tags: asked anew each time."""
        await self._check(request.where, "tags/list", authorization)
        return await self._listed(request, "tags/list", query)

    async def referrers(
        self, request: Request, query: Sequence[tuple[str, str]], authorization: str | None
    ) -> Document:
        """As Registry.referrers. Where the registry has no such API, by the tag schema."""
        path = f"referrers/{request.where.digest}"
        await self._check(request.where, path, authorization)  # its 404 is a refusal: no reason to look elsewhere
        try:
            return await self._listed(request, path, query)
        except NotFoundError:
            return await self._by_tag_schema(request.where, dict(query).get("artifactType", ""))

    async def _check(self, where: Reference, what: str, authorization: str | None) -> None:
        (await self._access.allowed(where.name, what, authorization)).check()

    async def _is_elsewhere(self, where: Reference, authorization: str | None) -> bool:
        """Whether this client gets a blob from its own registry alone: what is here came from another. That one is to
        show it first; if that takes long it is passed on: its manifest was served, and Podman goes nowhere else."""
        assert where.digest is not None
        verdict = await self._access.allowed(where.name, f"blobs/{where.digest}", authorization)
        if verdict.is_elsewhere:
            with suppress(TimeoutError):
                async with asyncio.timeout(SHOWN_S):
                    await self._access.shown(where.name, where.digest)
            verdict = await self._access.allowed(where.name, f"blobs/{where.digest}", authorization)
        if not verdict.is_elsewhere:
            verdict.check()
        return verdict.is_elsewhere

    async def _check_blobs(self, reference: Reference, document: Manifest | Index | None) -> None:
        """A manifest without its blobs is worse than none: Podman does not go elsewhere for them."""
        if await self._answering.answers(self._registries, reference.host) or await self._all_held(document):
            return
        raise TemporaryError(f"{reference}: {reference.host} does not answer, and not all of its blobs are here")

    async def _all_held(self, document: Manifest | Index | None) -> bool:
        if isinstance(document, Manifest):
            config = await self._catalog.document(document.config.digest)
            blobs = [*document.layers, *([] if config else [document.config])]
            return all(self._kept.is_whole(blob.digest) for blob in blobs)
        if isinstance(document, Index):  # which of its images is wanted is not known yet: any that could be had
            known = [await self._catalog.document(image.digest) for image in document.manifests]
            return any([await self._all_held(understood(*image)) for image in known if image])
        return False

    async def _as_asked(self, where: Reference, accept: Sequence[str]) -> Document:
        """For a client that does not take what was pushed: whatever the registry has for it."""
        path = f"manifests/{where.digest or where.tag}"
        answer = await self._registries.client(where.host).ask(where.repository, path, accept=", ".join(accept))
        return Document(answer.media_type, answer.raw, answer.headers.get("Docker-Content-Digest", ""))

    async def _listed(self, request: Request, path: str, query: Sequence[tuple[str, str]]) -> Document:
        where = request.where
        answer = await self._registries.client(where.host).ask(where.repository, path, query=query)
        headers = [("OCI-Filters-Applied", value)] if (value := answer.headers.get("OCI-Filters-Applied")) else []
        if onward := link(answer.headers.get("Link", ""), request):
            headers.append(("Link", onward))
        return Document(answer.media_type, answer.raw, headers=tuple(headers))

    async def _by_tag_schema(self, where: Reference, artifact_type: str) -> Document:
        assert where.digest is not None
        try:
            path = f"manifests/{referrers.tag(where.digest)}"
            raw = (await self._registries.client(where.host).ask(where.repository, path, accept=OCI_INDEX)).raw
        except NotFoundError:
            raw = referrers.index()
        if not artifact_type:
            return Document(OCI_INDEX, raw)
        return Document(
            OCI_INDEX, referrers.filtered(raw, artifact_type), headers=(("OCI-Filters-Applied", "artifactType"),)
        )

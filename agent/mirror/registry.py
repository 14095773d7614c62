"""The mirror's registry: documents from the supernode, blobs by way of chunks, each once this client may have it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from agent.mirror.permission import Permissions
from agent.mirror.remote import RemoteRegistry
from agent.mirror.seen import SeenTags
from imgdist.distribution.registry import Document
from imgdist.distribution.request import Request, link
from imgdist.oci.blobs import Blob, BlobSource

SMALL = 64 << 10
"""Bytes up to which a blob is handed on by the supernode: the index of a pack and a chunk are two questions instead of
one, and configurations are there already."""


class MirrorRegistry:
    """A `Registry`. The supernode decides for each client; a node decides nothing."""

    def __init__(self, remote: RemoteRegistry, small: BlobSource, large: BlobSource, seen: SeenTags) -> None:
        self._remote = remote
        self._small = small
        self._large = large
        self._seen = seen
        self._permissions = Permissions(time.monotonic)

    async def manifest(self, request: Request, accept: Sequence[str], authorization: str | None) -> Document:
        """As Registry.manifest."""
        where = request.where
        tail = f"manifests/{where.digest or where.tag}"
        document = await self._remote.document(request, tail, authorization, accept)
        self._seen.note(where, document)
        return document

    async def blob_size(self, request: Request, authorization: str | None) -> int:
        """As Registry.blob_size: the question that asks whether this client may have the blob."""
        question = (request.where.name, request.where.digest or "", authorization)
        known = self._permissions.given(question)
        if known is not None:
            return known
        size = await self._remote.blob_size(request, authorization)
        self._permissions.give(question, size)
        return size

    async def blob(self, request: Request, authorization: str | None) -> Blob:
        """As Registry.blob."""
        size = await self.blob_size(request, authorization)
        source = self._small if size <= SMALL else self._large
        return await source.open(request.where, authorization=authorization, size=size)

    async def tags(self, request: Request, query: Sequence[tuple[str, str]], authorization: str | None) -> Document:
        """As Registry.tags."""
        return await self._listed(request, "tags/list", query, authorization)

    async def referrers(
        self, request: Request, query: Sequence[tuple[str, str]], authorization: str | None
    ) -> Document:
        """As Registry.referrers."""
        return await self._listed(request, f"referrers/{request.where.digest}", query, authorization)

    async def _listed(
        self, request: Request, tail: str, query: Sequence[tuple[str, str]], authorization: str | None
    ) -> Document:
        found = await self._remote.document(request, tail, authorization, query=query)
        onward = [(name, link(value, request) if name == "Link" else value) for name, value in found.headers]
        return replace(found, headers=tuple((name, value) for name, value in onward if value))

"""The supernodes' registry as a source: everything that is not on this node is asked there, in the client's name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlencode

import aiohttp

from agent.supernodes import Supernodes
from imgdist.distribution.refusal import RefusedError, refused
from imgdist.distribution.registry import Document
from imgdist.distribution.request import Kind, Request
from imgdist.errors import ProtocolError, TemporaryError

DOCUMENT_MAX = 4 << 20
"""Bytes of a manifest or list: what the supernode itself reads of one."""

_HANDED_ON = ("Age", "Link", "OCI-Filters-Applied")
_REFUSAL = ("WWW-Authenticate", "Retry-After", "Content-Range")


class RemoteRegistry:
    """Asks the first supernode that answers. Refusals are handed on with their status, code and challenges."""

    def __init__(self, supernodes: Supernodes) -> None:
        self._supernodes = supernodes

    async def document(
        self,
        request: Request,
        tail: str,
        authorization: str | None,
        accept: Sequence[str] = (),
        query: Sequence[tuple[str, str]] = (),
    ) -> Document:
        """What the supernode answers to GET `tail` of the repository."""
        headers = [("Accept", value) for value in accept]
        async with self.ask("GET", request, tail, authorization, headers, query) as response:
            try:
                raw = await response.content.read(DOCUMENT_MAX + 1)
                while len(raw) <= DOCUMENT_MAX and (more := await response.content.readany()):
                    raw += more
            except (aiohttp.ClientError, TimeoutError) as error:
                raise TemporaryError(f"{request.path}: the supernode's answer broke off: {error}") from None
            if len(raw) > DOCUMENT_MAX:
                raise ProtocolError(f"{request.path}: a supernode's answer of more than {DOCUMENT_MAX} bytes")
            kept = [(name, value) for name in _HANDED_ON for value in response.headers.getall(name, [])]
            digest = response.headers.get("Docker-Content-Digest", "")
            if request.kind is Kind.MANIFEST:
                self._supernodes.served(request.where.name)
            return Document(response.headers.get("Content-Type", ""), raw, digest, tuple(kept))

    async def blob_size(self, request: Request, authorization: str | None) -> int:
        """Bytes of a blob that this client may have."""
        async with self.ask("HEAD", request, f"blobs/{request.where.digest}", authorization) as response:
            size = response.headers.get("Content-Length", "")
        if not size.isdecimal():
            raise ProtocolError(f"{request.where}: expected a size from the supernode, got {size[:40]!r}")
        return int(size)

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        request: Request,
        tail: str,
        authorization: str | None,
        headers: Sequence[tuple[str, str]] = (),
        query: Sequence[tuple[str, str]] = (),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A good answer, not read yet. RefusedError as the supernode refused, TemporaryError if none answers."""
        where = request.where
        path = f"/v2/{where.repository}/{tail}?{urlencode([*query, ('ns', where.host)])}"
        shown = [("Authorization", authorization)] if authorization else []
        response = await self._supernodes.open(method, path, [*headers, *shown])
        async with response:
            if response.status >= 400:
                raise await _refusal(response, request)
            yield response


async def _refusal(response: aiohttp.ClientResponse, request: Request) -> RefusedError:
    try:
        body = await response.content.read(64 << 10)
    except (aiohttp.ClientError, TimeoutError):
        body = b""
    code = {Kind.MANIFEST: "MANIFEST_UNKNOWN", Kind.BLOB: "BLOB_UNKNOWN"}.get(request.kind, "NAME_UNKNOWN")
    kept = [(name, value) for name in _REFUSAL for value in response.headers.getall(name, [])]
    return refused(response.status, body, kept, code)

"""Blobs in the control API: what agents ask before they fetch a blob's chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from aiohttp import web

from imgdist.errors import UsageError
from imgdist.oci.access import Authoriser
from imgdist.oci.reference import Reference, is_digest, parse
from imgdist.wire.control import BlobStatus
from supernode.blobs.source import Blobs
from supernode.streaming import send_stream

PATH = "/v1/blobs/{digest}"


def routes(blobs: Blobs, authoriser: Authoriser) -> list[web.RouteDef]:
    """GET of `PATH` and of `PATH`/index, with `name=host/repository`. `authoriser` decides by the Authorization of the
    agent's client."""
    endpoint = _Endpoint(blobs, authoriser)
    return [web.get(PATH, endpoint.status), web.get(f"{PATH}/index", endpoint.index)]


class _Endpoint:
    def __init__(self, blobs: Blobs, authoriser: Authoriser) -> None:
        self._blobs = blobs
        self._authoriser = authoriser

    async def status(self, request: web.Request) -> web.Response:
        """GET: the blob's size; nothing is fetched."""
        blob = await self._allowed(request)
        found = BlobStatus(request.match_info["digest"], await self._blobs.size(blob))
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    async def index(self, request: web.Request) -> web.StreamResponse:
        """GET ?from=RECORD&size=BYTES: the raw pack's index stream; it is fetched unless it is here."""
        start = _number(request, "from") or 0
        blob = await self._allowed(request)
        async with aclosing(self._blobs.index(blob, start, _number(request, "size"))) as stream:
            return await send_stream(request, self._still_allowed(request, stream))

    async def _still_allowed(
        self, request: web.Request, stream: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """The same, unless another registry has begun to deliver it since it was allowed: then it is that one's."""
        first = await anext(stream, b"")
        await self._allowed(request)
        yield first
        async for piece in stream:
            yield piece

    async def _allowed(self, request: web.Request) -> Reference:
        blob = _blob(request)
        shown = request.headers.get("Authorization")
        (await self._authoriser.allowed(blob.name, f"blobs/{blob.digest}", shown)).check()
        return blob


def _blob(request: web.Request) -> Reference:
    digest, name = request.match_info["digest"], request.query.get("name", "")
    if not is_digest(digest):
        raise UsageError(f"blob {digest[:80]!r}: expected sha256: and 64 hex digits")
    return parse(f"{name}@{digest}")


def _number(request: web.Request, key: str) -> int | None:
    text = request.query.get(key)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 19:
        raise UsageError(f"{key}={text[:80]!r}: expected a number")
    return int(text)

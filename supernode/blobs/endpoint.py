"""Blobs in the control API: what agents ask before they fetch a blob's chunks."""

from __future__ import annotations

from contextlib import aclosing

from aiohttp import web

from imgdist.errors import UsageError
from imgdist.oci.reference import Reference, is_digest, parse
from imgdist.wire.control import BLOB_SIZE
from supernode.blobs.source import Blobs
from supernode.streaming import send_stream

PATH = "/v1/blobs/{digest}/index"


def routes(blobs: Blobs) -> list[web.RouteDef]:
    """GET and HEAD of `PATH`, with `name=host/repository`."""
    endpoint = _Endpoint(blobs)
    return [web.head(PATH, endpoint.size), web.get(PATH, endpoint.index, allow_head=False)]


class _Endpoint:
    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def size(self, request: web.Request) -> web.Response:
        """HEAD: the blob's size; nothing is fetched."""
        return web.Response(headers={BLOB_SIZE: str(await self._blobs.size(_blob(request)))})

    async def index(self, request: web.Request) -> web.StreamResponse:
        """GET ...?from=RECORD&size=BYTES: the raw pack's index stream; it is fetched unless it is here."""
        start = _number(request, "from") or 0
        async with aclosing(self._blobs.index(_blob(request), start, _number(request, "size"))) as stream:
            return await send_stream(request, stream)


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

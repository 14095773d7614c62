"""The pull API over HTTP: one handler for every endpoint, which turns a `Registry`'s answers into responses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from aiohttp import web
from multidict import CIMultiDict

from imgdist.distribution import byterange
from imgdist.distribution.blobresponse import send_file, send_pieces
from imgdist.distribution.refusal import RefusedError, refusal
from imgdist.distribution.registry import Document, Registry
from imgdist.distribution.request import Kind, Request, parse
from imgdist.errors import ImgdistError, TemporaryError
from imgdist.oci.blobs import Blob

log = logging.getLogger("imgdist.registry")

FIRST_BYTE_S = 12.0
"""Until a client has the beginning of an answer or a refusal. containerd 1.6 waits for ever, 2.4 30 s a request, and
both go elsewhere at once when refused; what a registry needs for a cold manifest or first byte lies far below."""

_UNKNOWN = {Kind.MANIFEST: "MANIFEST_UNKNOWN", Kind.BLOB: "BLOB_UNKNOWN"}
_API_VERSION = ("Docker-Distribution-API-Version", "registry/2.0")
_ALLOW = [("Allow", "GET, HEAD")]

T = TypeVar("T")

Count = Callable[[str, int], None]
"""Told (endpoint, status) of each answer, once its first byte can be sent."""


class PullApi:
    """The handlers. `routes()` belong into an application of the daemon's."""

    def __init__(self, registry: Registry, count: Count, *, first_byte_s: float = FIRST_BYTE_S) -> None:
        self._registry = registry
        self._count = count
        self._first_byte_s = first_byte_s

    def routes(self) -> list[web.RouteDef]:
        """Everything below /v2/."""
        return [web.route("*", "/v2", self.answer), web.route("*", "/v2/{rest:.*}", self.answer)]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Any request. What goes wrong before the first byte is told in the words of the specification."""
        kind = Kind.BASE
        try:
            if request.method not in ("GET", "HEAD"):
                raise RefusedError(405, "UNSUPPORTED", f"{request.method}: only GET and HEAD are served here", _ALLOW)
            asked = parse(request.path, request.query.get("ns", ""))
            kind = asked.kind
            return await self._respond(request, asked)
        except Exception as error:
            if not isinstance(error, ImgdistError):
                log.exception("%s %s failed", request.method, request.path)
                error = TemporaryError(f"{type(error).__name__}: {error}; the log says more")
            told = refusal(error, _UNKNOWN.get(kind, "NAME_UNKNOWN"))
            log.log(
                logging.INFO if told.status == 503 else logging.DEBUG, "%s: %d: %s", request.path, told.status, told
            )
            self._count(kind.value, told.status)
            headers = CIMultiDict([_API_VERSION, *told.headers])
            return web.Response(status=told.status, body=told.body, headers=headers, content_type="application/json")

    async def _respond(self, request: web.Request, asked: Request) -> web.StreamResponse:
        if asked.kind is Kind.BASE:
            self._count("base", 200)
            return web.Response(body=b"{}", headers=dict([_API_VERSION]), content_type="application/json")
        if asked.kind is Kind.BLOB:
            return await self._blob(request, asked)
        document = await self._in_time(request, self._document(request, asked))
        self._count(asked.kind.value, 200)
        headers = CIMultiDict([_API_VERSION, ("Content-Type", document.media_type), *document.headers])
        if document.digest:
            headers.update({"Docker-Content-Digest": document.digest, "ETag": f'"{document.digest}"'})
        return web.Response(body=document.raw, headers=headers)

    async def _document(self, request: web.Request, asked: Request) -> Document:
        authorization = request.headers.get("Authorization")
        if asked.kind is Kind.MANIFEST:
            return await self._registry.manifest(asked, request.headers.getall("Accept", []), authorization)
        query = [(key, value) for key, value in request.query.items() if key != "ns"]
        ask = self._registry.tags if asked.kind is Kind.TAGS else self._registry.referrers
        return await ask(asked, query, authorization)

    async def _blob(self, request: web.Request, asked: Request) -> web.StreamResponse:
        authorization = request.headers.get("Authorization")
        if request.method == "HEAD":
            size = await self._in_time(request, self._registry.blob_size(asked, authorization))
            return self._head(asked, request.headers.get("Range"), size)
        async with await self._in_time(request, self._registry.blob(asked, authorization)) as blob:
            return await self._send(request, asked, blob)

    def _head(self, asked: Request, wanted: str | None, size: int) -> web.Response:
        start, end, status, headers = _span(asked, wanted, size)
        self._count("blob", status)
        return web.Response(status=status, headers={**headers, "Content-Length": str(end - start)})

    async def _send(self, request: web.Request, asked: Request, blob: Blob) -> web.StreamResponse:
        start, end, status, headers = _span(asked, request.headers.get("Range"), blob.size)
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = end - start
        if blob.file is not None:
            self._count("blob", status)
            await send_file(request, response, blob.file, start, end)
            return response
        async with aclosing(blob.stream(start, end)) as pieces:
            # The first piece, or the error instead of it, decides the status.
            first = await self._in_time(request, anext(pieces, b""))
            self._count("blob", status)
            await send_pieces(request, response, first, pieces)
        return response

    async def _in_time(self, request: web.Request, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._first_byte_s):
                return await answer
        except TimeoutError:
            raise TemporaryError(f"{request.path}: nothing came within {self._first_byte_s:g} s") from None


def _span(asked: Request, wanted: str | None, size: int) -> tuple[int, int, int, dict[str, str]]:
    """What of a blob is sent, with which status and headers. RefusedError: nothing of it is there."""
    digest = asked.where.digest or ""
    headers = {
        **dict([_API_VERSION]),
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
    }
    try:
        span = byterange.chosen(wanted, size)
    except byterange.UnsatisfiableError:
        beyond = [("Content-Range", f"bytes */{size}")]
        raise RefusedError(416, "SIZE_INVALID", f"{wanted}: the blob has {size} bytes", beyond) from None
    if span is None:
        return 0, size, 200, headers
    return *span, 206, {**headers, "Content-Range": byterange.content_range(*span, size)}

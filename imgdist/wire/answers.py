"""The daemons' side of their JSON APIs: requests decoded, answers and errors encoded (imgdist.wire.control)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from imgdist.errors import ImgdistError, UsageError
from imgdist.wire.control import failure

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


async def decoded(request: web.Request, kind: type[T]) -> T:
    """The document that a request brings. UsageError if it is another."""
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{request.method} {request.path}: {error}") from None


def answer(document: Any, status: int = 200) -> web.Response:
    """A document as JSON."""
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")


@web.middleware
async def errors_answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Middleware: errors of ours, and the framework's own, as `failure` has them."""
    try:
        return await handler(request)
    except ImgdistError as error:
        status, document = failure(error)
        return answer(document, status)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return answer({"error": f"{request.path}: {error.text or error.reason}", "kind": "usage"}, error.status)

"""Answers of the control API whose bytes are made while they are sent."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator

from aiohttp import web

from imgdist.errors import ImgdistError

log = logging.getLogger("imgdist.api")

STREAM = "application/octet-stream"


async def send_stream(request: web.Request, stream: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """Answer with what `stream` gives. Its first piece, or the error instead of it, decides the status; an error in the
    middle cuts the connection, so that the stream does not look whole."""
    first = await anext(stream, b"")
    response = web.StreamResponse(headers={"Content-Type": STREAM})
    response.enable_chunked_encoding()
    await response.prepare(request)
    try:
        await response.write(first)
        async for piece in stream:
            await response.write(piece)
        await response.write_eof()
    except ConnectionResetError:
        log.debug("%s: the reader left", request.path)
    except ImgdistError as error:
        log.info("%s ends early: %s", request.path, error)
        if request.transport is not None:
            request.transport.abort()
    return response

"""Answers of the control API whose bytes are made while they are sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from aiohttp import web

from imgdist.distribution.blobresponse import send_pieces

STREAM = "application/octet-stream"


async def send_stream(request: web.Request, stream: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """Answer with what `stream` gives. Its first piece, or the error instead of it, decides the status; an error in the
    middle cuts the connection, so that the stream does not look whole."""
    first = await anext(stream, b"")
    response = web.StreamResponse(headers={"Content-Type": STREAM})
    response.enable_chunked_encoding()
    await send_pieces(request, response, first, stream)
    return response

"""Bodies of blobs: sent by the kernel from a file, or piece by piece while they arrive."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator

from aiohttp import web

from imgdist.errors import ImgdistError
from imgdist.oci.blobs import BlobFile

log = logging.getLogger("imgdist.registry")

AHEAD = 4 << 20
"""Bytes that the kernel is told to read while those before them are sent: sendfile(2) on the event loop must not wait
for a disk. A guess: a tenth of a second of a slow one."""


async def send_file(request: web.Request, response: web.StreamResponse, file: BlobFile, start: int, end: int) -> None:
    """Send the bytes [start, end) of a blob that lies whole in `file`."""
    await response.prepare(request)
    loop, source = asyncio.get_running_loop(), os.fdopen(os.dup(file.fd), "rb", buffering=0)
    try:
        await loop.run_in_executor(None, _read_ahead, file, start)
        for position in range(start, end, AHEAD):
            length = min(AHEAD, end - position)
            ahead = loop.run_in_executor(None, _read_ahead, file, position + length)
            try:
                await loop.sendfile(_transport(request), source, file.offset + position, length)
            finally:
                await ahead  # it uses the descriptor
        await response.write_eof()
    except ConnectionError:
        log.debug("%s: the client left", request.path)
    except OSError as error:
        _cut(request, error)
    finally:
        source.close()


async def send_pieces(
    request: web.Request, response: web.StreamResponse, first: bytes, rest: AsyncGenerator[bytes, None]
) -> None:
    """Send `first` and what follows. An error in the middle cuts the connection: the body must not look whole, and the
    client resumes where it ended."""
    await response.prepare(request)
    try:
        await response.write(first)
        async for piece in rest:
            await response.write(piece)
        await response.write_eof()
    except ConnectionError:
        log.debug("%s: the client left", request.path)
    except ImgdistError as error:
        _cut(request, error)


def _transport(request: web.Request) -> asyncio.Transport:
    if not isinstance(request.transport, asyncio.Transport) or request.transport.is_closing():
        raise ConnectionResetError
    return request.transport


def _read_ahead(file: BlobFile, position: int) -> None:
    os.posix_fadvise(file.fd, file.offset + position, AHEAD, os.POSIX_FADV_WILLNEED)


def _cut(request: web.Request, error: Exception) -> None:
    log.warning("%s ends early: %s", request.path, error)
    if request.transport is not None:
        request.transport.abort()

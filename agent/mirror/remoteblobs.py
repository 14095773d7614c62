"""Blobs by way of a supernode's registry, where no chunks are exchanged: on nodes that show no layers lazily, and for
digests that no pack is made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import aiohttp

from agent.mirror.remote import RemoteRegistry
from imgdist.distribution.request import Kind, Request
from imgdist.errors import ImgdistError, TemporaryError
from imgdist.oci.blobs import Unheld
from imgdist.oci.reference import Reference

PATIENCE_S = 20.0
"""How long a body that broke off is tried again where it ended, counted from its last byte: a supernode that is
started again takes a second or two, clients wait for half a minute."""
PAUSE_S = 0.2


class RemoteBlobs:
    """A `BlobSource` that keeps nothing."""

    def __init__(self, remote: RemoteRegistry) -> None:
        self._remote = remote

    async def size(self, blob: Reference, *, authorization: str | None = None) -> int:
        """As BlobSource.size."""
        return await self._remote.blob_size(Request(Kind.BLOB, blob), authorization)

    async def open(self, blob: Reference, *, authorization: str | None = None, size: int | None = None) -> RemoteBlob:
        """As BlobSource.open."""
        size = await self.size(blob, authorization=authorization) if size is None else size
        return RemoteBlob(self._remote, Request(Kind.BLOB, blob), authorization, size)


class RemoteBlob(Unheld):
    """A `Blob`; the supernode verifies it, and holds back its end until it did."""

    def __init__(self, remote: RemoteRegistry, request: Request, authorization: str | None, size: int) -> None:
        self._remote = remote
        self._request = request
        self._authorization = authorization
        self.size = size

    @property
    def digest(self) -> str:
        """As Blob.digest."""
        return self._request.where.digest or ""

    async def read(self, offset: int, length: int) -> bytes:
        """As Blob.read."""
        async with aclosing(self.stream(offset, offset + length)) as pieces:
            return await anext(pieces, b"")

    async def stream(self, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """As Blob.stream; what breaks off is resumed, at another supernode if need be."""
        end = self.size if end is None else min(end, self.size)
        position, loop = start, asyncio.get_running_loop()
        last = loop.time()
        while position < end:
            problem: ImgdistError = TemporaryError(f"{self._request.where}: broke off after {position} bytes")
            try:
                async with aclosing(self._pieces(position, end)) as pieces:
                    async for piece in pieces:
                        position += len(piece)
                        last = loop.time()
                        yield piece
            except TemporaryError as error:
                problem = error
            if position < end:
                if position == start or loop.time() - last > PATIENCE_S:
                    raise problem
                await asyncio.sleep(PAUSE_S)

    async def _pieces(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        wanted = [("Range", f"bytes={start}-{end - 1}")]
        tail = f"blobs/{self._request.where.digest}"
        async with self._remote.ask("GET", self._request, tail, self._authorization, wanted) as response:
            try:
                left = end - start
                while left and (piece := await response.content.readany()):
                    yield piece[:left]
                    left -= min(left, len(piece))
            except (aiohttp.ClientError, TimeoutError) as error:
                raise TemporaryError(f"{self._request.where}: the connection broke: {error}") from None

"""The bytes of a blob: resumed where they break off, and right once they end (distribution-spec "Pulling blobs")."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import aiohttp

from imgdist.errors import CorruptError, ImgdistError, ProtocolError, TemporaryError
from imgdist.oci.manifest import Descriptor
from imgdist.oci.requests import Request, Requests
from imgdist.oci.transport import Interrupted

PROGRESS = 256 * 1024
"""Bytes after which a broken body counts as progress, so that a long download outlives many cuts."""
HASH_INLINE = 64 * 1024
"""Bytes hashed on the event loop: 0.2 ms without SHA-NI; larger pieces are hashed in a thread meanwhile."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Download:
    """One blob of a repository, from whichever of registry and mirrors has it in order."""

    def __init__(self, requests: Requests, repository: str, descriptor: Descriptor) -> None:
        self._requests = requests
        self._transport = requests.transport
        self._upstreams = requests.upstreams
        self._repository = repository
        self._blob = descriptor
        self._what = f"{requests.host}/{repository}: blob {descriptor.digest}"

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The bytes in order. Ends normally only if size and digest match.

        Raises CorruptError, or what the requests raise."""
        running = hashlib.new(self._blob.digest.partition(":")[0])
        loop = asyncio.get_running_loop()
        offset, failures = 0, 0
        while offset < self._blob.size:
            started = offset
            problem: ImgdistError = CorruptError(f"{self._what}: ended after {offset} of {self._blob.size} bytes")
            try:
                async with aclosing(self._body(offset)) as pieces:
                    async for piece in pieces:
                        offset += len(piece)
                        if offset > self._blob.size:
                            raise CorruptError(
                                f"{self._what}: longer than the {self._blob.size} bytes of its descriptor"
                            )
                        if len(piece) <= HASH_INLINE:
                            running.update(piece)
                            yield piece
                            continue
                        hashing = loop.run_in_executor(None, running.update, piece)
                        try:
                            yield piece
                        finally:
                            await hashing
            except Interrupted as error:
                problem = error
            if offset < self._blob.size:
                failures = 1 if offset - started >= PROGRESS else failures + 1
                await self._pause(failures, problem)
        if running.hexdigest() != self._blob.digest.partition(":")[2]:
            for mirror in self._upstreams.mirrors:  # one of them, if any took part
                mirror.failed(time.monotonic(), lied=True)
            raise CorruptError(f"{self._what}: its bytes have the digest {running.name}:{running.hexdigest()}")

    async def _pause(self, failures: int, problem: ImgdistError) -> None:
        if isinstance(problem, TemporaryError):
            return await self._transport.pause(failures, problem)
        try:
            return await self._transport.pause(failures, TemporaryError(str(problem)))
        except TemporaryError:
            raise problem from None

    async def _body(self, offset: int) -> AsyncGenerator[bytes, None]:
        """What follows `offset` in a blob, from one request: by Range, or by skipping where that is not served."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        # Each attempt starts at the registry: a presigned URL of the last one may have expired.
        request = Request("GET", self._repository, f"blobs/{self._blob.digest}", headers)
        upstream, opened = await self._requests.open(request)
        async with opened as response:
            try:
                skip = await self._skipped(response, offset)
            except (CorruptError, ProtocolError) as error:
                if upstream is self._upstreams.origin:
                    raise
                upstream.failed(time.monotonic(), lied=True)
                raise Interrupted(str(error)) from error
            if skip:
                self._transport.retried("no_range")
            try:
                async for piece in self._requests.pieces(response):
                    if skip < len(piece):
                        yield piece[skip:] if skip else piece
                    skip = max(0, skip - len(piece))
            except Interrupted:
                upstream.failed(time.monotonic())
                raise

    async def _skipped(self, response: aiohttp.ClientResponse, offset: int) -> int:
        """Bytes at the start of an answer that are not wanted: those before `offset`, where Range is not served."""
        if response.status == 416:
            raise CorruptError(
                f"{self._what}: the registry has less than the {self._blob.size} bytes of its descriptor"
            )
        await self._requests.expect(response, self._repository, f"blob {self._blob.digest}")
        skip = offset
        if response.status == 206:
            span = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != offset:
                raise ProtocolError(
                    f"{self._what}: asked from byte {offset}, got {response.headers.get('Content-Range')}"
                )
            skip = 0
        expected = self._blob.size - offset + skip
        if response.content_length not in (None, expected):
            raise CorruptError(
                f"{self._what}: descriptor says {expected} bytes, the registry offers {response.content_length}"
            )
        return skip

"""What becomes of a body when its client leaves."""

from __future__ import annotations

import asyncio
import tempfile
from types import SimpleNamespace
from typing import Any

from imgdist.distribution.blobresponse import send_file
from imgdist.oci.blobs import BlobFile


class Closing(asyncio.Transport):
    """Of a client that has just gone, which nobody was told yet."""

    def is_closing(self) -> bool:
        return True


async def test_a_client_that_leaves_between_two_pieces_is_no_failure() -> None:
    sent: list[str] = []

    async def prepare(request: object) -> None:
        sent.append("head")

    async def write_eof() -> None:
        sent.append("end")

    request: Any = SimpleNamespace(path="/v2/a/blobs/x", transport=Closing())
    response: Any = SimpleNamespace(prepare=prepare, write_eof=write_eof)
    with tempfile.TemporaryFile() as body:
        body.write(b"bytes")
        body.flush()
        await send_file(request, response, BlobFile(body.fileno(), 0, 5), 0, 5)
    assert sent == ["head"]

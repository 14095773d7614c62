"""Blobs straight from their registry: of digests that no pack is made of (sha512), and such as came from another
registry and are not shown by the client's own yet."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from imgdist.errors import ProtocolError
from imgdist.oci.blobs import Unheld
from imgdist.oci.client import RegistryClient
from imgdist.oci.manifest import Descriptor
from imgdist.oci.reference import Reference
from supernode.registries import Registries


class DirectBlobs:
    """A `BlobSource` that keeps nothing: each reader costs the registry one read."""

    def __init__(self, registries: Registries) -> None:
        self._registries = registries

    async def size(self, blob: Reference, *, authorization: str | None = None) -> int:
        """As BlobSource.size."""
        assert blob.digest is not None
        size = await self._registries.client(blob.host).blob_size(blob.repository, blob.digest)
        if size is None:
            raise ProtocolError(f"{blob}: expected its size in the answer to HEAD, found none")
        return size

    async def open(self, blob: Reference, *, authorization: str | None = None, size: int | None = None) -> DirectBlob:
        """As BlobSource.open."""
        assert blob.digest is not None
        size = await self.size(blob) if size is None else size
        return DirectBlob(self._registries.client(blob.host), blob.repository, blob.digest, size)


class DirectBlob(Unheld):
    """A `Blob`: each `read` and `stream` reads the registry from the blob's beginning, as its digest covers all."""

    def __init__(self, client: RegistryClient, repository: str, digest: str, size: int) -> None:
        self._client = client
        self._repository = repository
        self.digest = digest
        self.size = size

    async def read(self, offset: int, length: int) -> bytes:
        """As Blob.read."""
        async with aclosing(self.stream(offset, offset + length)) as pieces:
            return await anext(pieces, b"")

    async def stream(self, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """As Blob.stream: a piece behind, so that the last one comes only once the digest is right."""
        end = self.size if end is None else min(end, self.size)
        descriptor = Descriptor("", self.digest, self.size)
        behind, position = b"", 0
        async with aclosing(self._client.blob(self._repository, descriptor)) as pieces:
            async for piece in pieces:
                if behind:
                    yield behind
                behind = piece[max(0, start - position) : max(0, end - position)]
                position += len(piece)
        if behind:
            yield behind

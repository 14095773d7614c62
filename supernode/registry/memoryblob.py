"""A blob that is known whole: an image's configuration."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from imgdist.oci.blobs import Unheld


class MemoryBlob(Unheld):
    """A `Blob` of verified bytes."""

    def __init__(self, digest: str, raw: bytes) -> None:
        self.digest = digest
        self._raw = raw

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._raw)

    async def read(self, offset: int, length: int) -> bytes:
        """As Blob.read."""
        return self._raw[offset : offset + length]

    async def stream(self, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """As Blob.stream."""
        if piece := self._raw[start:end]:
            yield piece

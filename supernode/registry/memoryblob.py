"""A blob that is known whole: an image's configuration."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

from imgdist.oci.blobs import BlobFile


class MemoryBlob:
    """A `Blob` of verified bytes."""

    file: BlobFile | None = None

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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

"""Several sources of blobs as one."""

from __future__ import annotations

from imgdist.errors import DeclinedError, NotFoundError
from imgdist.oci.blobs import Blob, BlobSource
from imgdist.oci.reference import Reference


class InOrder:
    """A `BlobSource`: what one declines or does not have is asked of the next, the last one's word stands."""

    def __init__(self, *sources: BlobSource) -> None:
        *self._others, self._last = sources

    async def size(self, blob: Reference, *, authorization: str | None = None) -> int:
        """As BlobSource.size."""
        for source in self._others:
            try:
                return await source.size(blob, authorization=authorization)
            except (DeclinedError, NotFoundError):
                continue
        return await self._last.size(blob, authorization=authorization)

    async def open(self, blob: Reference, *, authorization: str | None = None, size: int | None = None) -> Blob:
        """As BlobSource.open."""
        for source in self._others:
            try:
                return await source.open(blob, authorization=authorization, size=size)
            except (DeclinedError, NotFoundError):
                continue
        return await self._last.open(blob, authorization=authorization, size=size)

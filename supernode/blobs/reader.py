"""One reader's view of a blob on this supernode, whole or on its way (`imgdist.oci.blobs.Blob`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

from imgdist.errors import CorruptError
from imgdist.oci.blobs import BlobFile, pieces_of
from imgdist.pack import BLOCK, CHUNK_MAX, codec
from imgdist.pack.kinds import raw_chunks
from supernode.store import PackReader
from supernode.store.growing import GrowingPack


class StoredBlob:
    """Reads from the pack's files: they stay open while this is referenced, whatever becomes of the pack."""

    def __init__(self, digest: str, size: int, pack: PackReader, growing: GrowingPack | None = None) -> None:
        """`growing` while the pack is being written."""
        self.digest = digest
        self.size = size
        self._pack = pack
        self._growing = growing
        self._chunks = raw_chunks(size)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    @property
    def file(self) -> BlobFile | None:
        """As BlobSource's; None also where chunks are compressed on this disk."""
        if not self._chunks or not self._is_whole:
            return None
        padded = self.size + -self.size % BLOCK
        return BlobFile(self._pack.row(0).fd, 0, self.size) if self._pack.end(self._chunks) == padded else None

    async def read(self, offset: int, length: int) -> bytes:
        """As BlobSource's."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        await self._arrival(offset // CHUNK_MAX)
        return await asyncio.to_thread(self._read, offset, length)

    def stream(self, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """As BlobSource's."""
        return pieces_of(self, start, end)

    async def holds(self, offset: int, data: bytes) -> bool:
        """Whether these are the bytes at `offset`, all of which have been read: also of a blob that was given up."""
        return await asyncio.to_thread(self._holds, offset, memoryview(data))

    @property
    def _is_whole(self) -> bool:
        return self._growing is None or self._growing.is_sealed

    async def _arrival(self, chunk: int) -> None:
        """Until the chunk may be read: the last one not before the whole blob is known to be right."""
        growing = self._growing
        while growing is not None and not growing.is_sealed:
            if growing.error is not None:
                raise growing.error
            if chunk < min(growing.chunks, self._chunks - 1):
                return
            await growing.changed()

    def _holds(self, offset: int, data: memoryview) -> bool:
        while data:
            piece = self._read(offset, len(data))
            if piece != data[: len(piece)]:
                return False
            offset, data = offset + len(piece), data[len(piece) :]
        return True

    def _read(self, offset: int, length: int) -> bytes:
        chunk, within = divmod(offset, CHUNK_MAX)
        row = self._pack.row(chunk)
        if row.encoding == codec.RAW:
            piece = os.pread(row.fd, min(length, row.length - within), row.offset + within)
        else:
            raw = memoryview(bytearray(min(CHUNK_MAX, self.size + -self.size % BLOCK - chunk * CHUNK_MAX)))
            codec.decode_into(*self._pack.body(chunk), raw)
            piece = bytes(raw[within : within + length])
        if not piece:
            raise CorruptError(f"blob {self.digest}: chunk {chunk} is shorter than its table row says")
        return piece

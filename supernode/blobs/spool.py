"""Writes the raw pack of one blob while its bytes arrive."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from imgdist.errors import CorruptError, ImgdistError, TemporaryError
from imgdist.pack import BLOCK, CHUNK_MAX, codec, records
from imgdist.pack.kinds import Kind
from supernode.convert.encoder import encode_chunk
from supernode.store import LocalStore, PackReader
from supernode.store.growing import GrowingPack
from supernode.store.writer import PackWriter


class RefusedError(TemporaryError):
    """The disk takes no more of a blob."""


class Spool:
    """`async with`, `feed` all of the blob, `finish`. Leaving the block otherwise, also by cancellation, keeps nothing.

    One task feeds; any number follow `growing` and read what it says is there through `reader`. A second spool of the
    same blob must not run beside it. Hashing, compression and writes run in threads: [M] 0.5 ms a chunk.
    """

    growing: GrowingPack
    reader: PackReader

    def __init__(self, store: LocalStore, digest: str, size: int) -> None:
        """`size` of the blob in bytes, as its descriptor says."""
        self._store = store
        self._digest = digest
        self._size = size
        self._fed = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self._begin)
        except OSError as error:
            await self._abandon()
            raise self._refused(error) from error
        self.growing.advance(0, self._writer.index_bytes)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        if not self.growing.is_sealed:
            reason = error if isinstance(error, ImgdistError) else TemporaryError(f"blob {self._digest}: given up")
            try:
                await asyncio.shield(self._abandon())
            finally:  # told once the part is gone: who asks again must not meet it
                self.growing.fail(reason)

    async def feed(self, data: bytes) -> None:
        """The next bytes. RefusedError if the disk takes no more."""
        self._pending.append(data)
        self._pending_bytes += len(data)
        self._fed += len(data)
        if self._pending_bytes >= CHUNK_MAX:
            await self._write(last=False)

    async def finish(self) -> str:
        """All is in, and its digest is right: seal the pack; its id in hex. CorruptError if bytes are missing."""
        if self._fed != self._size:
            raise CorruptError(f"blob {self._digest}: expected {self._size} bytes, got {self._fed}")
        await self._write(last=True)
        self._writer.add_record(records.Blob(bytes.fromhex(self._digest.removeprefix("sha256:")), self._size))
        try:
            pack_id = await asyncio.to_thread(self._writer.finish)
            await asyncio.to_thread(self._store.seal, self._digest, pack_id, Kind.RAW)
        except OSError as error:
            raise self._refused(error) from error
        self.growing.seal()
        return pack_id.hex()

    def _begin(self) -> None:
        part = self._store.begin(self._digest, Kind.RAW)
        self._writer = PackWriter(part, self._digest, Kind.RAW, self._size)
        self.growing = GrowingPack(part)
        self.reader = PackReader(part)

    async def _abandon(self) -> None:
        await asyncio.to_thread(self._store.abandon, self._digest, Kind.RAW)

    async def _write(self, *, last: bool) -> None:
        try:
            await asyncio.to_thread(self._write_chunks, last)
        except OSError as error:
            raise self._refused(error) from error
        self.growing.advance(self._writer.chunks, self._writer.index_bytes)

    def _write_chunks(self, last: bool) -> None:
        data = memoryview(b"".join(self._pending))
        end = len(data) if last else len(data) - len(data) % CHUNK_MAX
        for start in range(0, end, CHUNK_MAX):
            raw = data[start : min(start + CHUNK_MAX, end)]
            padding = bytes(-len(raw) % BLOCK)
            # A padded chunk is not compressed: else no blob's end would lie on the disk as it is (sendfile).
            whole, level = (bytes(raw) + padding, None) if padding else (raw, codec.LEVEL_FAST)
            self._writer.add_chunk(*encode_chunk(whole, level))
        self._pending = [bytes(data[end:])]
        self._pending_bytes = len(data) - end

    def _refused(self, error: OSError) -> RefusedError:
        return RefusedError(f"blob {self._digest}: the supernode's disk refuses it: {error.strerror}")

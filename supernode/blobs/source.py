"""Blobs from registries into the store, each one read once, whoever asks and how often (`imgdist.oci.blobs`).

Single-flight per digest: a download is entered in `_downloads` before the first await and leaves when the blob is
sealed or has failed. It goes on when those who asked have left: what they leave half done, the next one would begin
anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field

from imgdist.errors import DeclinedError, ImgdistError, TemporaryError
from imgdist.oci.manifest import Descriptor
from imgdist.oci.reference import Reference, is_sha256
from imgdist.pack.kinds import Kind
from supernode.blobs.reader import StoredBlob
from supernode.blobs.spool import RefusedError, Spool
from supernode.blobs.unkept import rest
from supernode.registries import Registries
from supernode.store import LocalStore

log = logging.getLogger("imgdist.blobs")

MEDIA_TYPE = "application/octet-stream"
DOWNLOADS_MAX = 64
"""Blobs on their way at once, with some MiB of memory each; who asks for one more is told to come back (a guess)."""
BUSY_S = 1.0


@dataclass(slots=True)
class _Download:
    """A blob on its way. `begun` is set once bytes came or it failed, `over` when it has left `_downloads`.

    `is_wanted`: a reader asked for it, not only a conversion.
    """

    blob: Reference
    size: int | None
    is_wanted: bool = False
    spool: Spool | None = None
    error: ImgdistError | None = None
    reading: ExitStack = field(default_factory=ExitStack)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Blobs:
    """Every blob of this supernode, on its event loop. `run` carries downloads; without it none can begin."""

    def __init__(self, store: LocalStore, registries: Registries) -> None:
        self._store = store
        self._registries = registries
        self._downloads: dict[str, _Download] = {}
        self._packs: dict[str, int] = {}  # sizes of the blobs in packs, 100 bytes each
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            await asyncio.Event().wait()

    @property
    def under_way(self) -> Collection[str]:
        """Digests of the blobs on their way."""
        return self._downloads.keys()

    async def settled(self) -> None:
        """Until none is on its way."""
        while self._downloads:
            await next(iter(self._downloads.values())).over.wait()

    async def size(self, blob: Reference, *, authorization: str | None = None) -> int:
        """As BlobSource's; what the client showed is where the registry's client finds it."""
        digest = _checked(blob)
        if stored := await self._stored(digest):
            return stored.size
        download = self._downloads.get(digest)
        return download.size if download and download.size is not None else await self._ask_size(blob)

    async def open(self, blob: Reference, *, authorization: str | None = None, size: int | None = None) -> StoredBlob:
        """As BlobSource's."""
        digest = _checked(blob)
        if stored := await self._stored(digest):
            return stored
        download = await self._join(blob, size, is_wanted=True)
        assert download.size is not None and download.spool is not None
        return StoredBlob(digest, download.size, download.spool.reader, download.spool.growing)

    async def index(self, blob: Reference, start: int = 0, size: int | None = None) -> AsyncGenerator[bytes, None]:
        """The raw pack's index stream from record `start` on, followed to its seal while the blob arrives.

        Raises as `open`; the first piece comes when the registry has begun to send.
        """
        digest = _checked(blob)
        pack_id = self._store.find(digest, Kind.RAW)
        if pack_id is not None:
            self._store.used(pack_id)
            yield await asyncio.to_thread(self._store.index_bytes, pack_id, start)
            return
        download = await self._join(blob, size, is_wanted=True)
        assert download.spool is not None
        async for piece in download.spool.growing.follow(start):
            yield piece
        await download.over.wait()

    def is_here(self, digest: str) -> bool:
        """Whether the blob is kept, or on its way."""
        return digest in self._downloads or self.is_whole(digest)

    def is_whole(self, digest: str) -> bool:
        """Whether all of the blob is on this disk."""
        return self._store.find(digest, Kind.RAW) is not None

    async def read(self, blob: Reference, size: int) -> AsyncGenerator[bytes, None]:
        """A layer's bytes for its conversion, which alone is no reason to keep the blob for long, nor to fail where the
        disk refuses it: then the rest is read past the disk."""
        source, position = None, 0
        try:
            source = await self._for_conversion(blob, size)
            async with aclosing(source.stream()) as pieces:
                async for piece in pieces:
                    position += len(piece)
                    yield piece
                return
        except RefusedError:
            log.warning("blob %s is not kept: its layer is read once more, from its registry", blob.digest)
        descriptor = Descriptor(MEDIA_TYPE, _checked(blob), size)
        again = self._registries.client(blob.host).blob(blob.repository, descriptor)
        async with aclosing(rest(again, source, position)) as pieces:
            async for piece in pieces:
                yield piece

    async def _for_conversion(self, blob: Reference, size: int) -> StoredBlob:
        if stored := await self._stored(_checked(blob)):
            return stored
        download = await self._join(blob, size, is_wanted=False)
        assert download.size is not None and download.spool is not None
        return StoredBlob(_checked(blob), download.size, download.spool.reader, download.spool.growing)

    async def _stored(self, digest: str) -> StoredBlob | None:
        """The blob from its sealed pack, if there is one."""
        pack_id = self._store.find(digest, Kind.RAW)
        reader = self._store.open(pack_id) if pack_id is not None else None
        if pack_id is None or reader is None:
            return None
        if pack_id not in self._packs:  # what is here is known, not told by a manifest
            self._packs[pack_id] = (await asyncio.to_thread(self._store.index, pack_id)).blob_size
        return StoredBlob(digest, self._packs[pack_id], reader)

    async def _join(self, blob: Reference, size: int | None, *, is_wanted: bool) -> _Download:
        """The download of a blob once bytes come, begun now or by somebody before.

        If somebody else's fails before that, it is tried once more: that one may have had no access, or have been
        told a wrong size.
        """
        assert blob.digest is not None
        is_retry = blob.digest not in self._downloads
        while True:
            download = self._downloads.get(blob.digest) or self._begin(blob, size)
            download.is_wanted |= is_wanted
            await download.begun.wait()
            if download.error is None:
                return download
            if is_retry:
                raise download.error
            is_retry = True

    def _begin(self, blob: Reference, size: int | None) -> _Download:
        """No await: decides and marks at once."""
        assert blob.digest is not None
        if self._tasks is None or len(self._downloads) >= DOWNLOADS_MAX:
            raise TemporaryError(f"blob {blob.digest}: too much is on its way already; come back", BUSY_S)
        download = _Download(blob, size)
        running = self._run(download)
        try:
            self._tasks.create_task(running)
        except RuntimeError:  # the group is closed
            running.close()
            raise TemporaryError(f"blob {blob.digest}: the supernode stops") from None
        self._downloads[blob.digest] = download
        download.reading.enter_context(self._registries.reading(blob.name, blob.digest))
        return download

    async def _run(self, download: _Download) -> None:
        blob = download.blob
        try:
            await self._fetch(download)
        except asyncio.CancelledError:
            download.error = TemporaryError(f"blob {blob.digest}: the supernode stops")
            raise
        except ImgdistError as error:
            log.warning("blob %s: %s", blob.digest, error)
            download.error = error
        except Exception as error:
            log.exception("blob %s: fetching failed", blob.digest)
            download.error = TemporaryError(f"blob {blob.digest}: fetching failed: {error}")
        finally:
            assert blob.digest is not None
            del self._downloads[blob.digest]
            download.reading.close()
            download.begun.set()
            download.over.set()

    async def _fetch(self, download: _Download) -> None:
        blob = download.blob
        assert blob.digest is not None
        if download.size is None:
            download.size = await self._ask_size(blob)
        descriptor = Descriptor(MEDIA_TYPE, blob.digest, download.size)
        async with Spool(self._store, blob.digest, download.size) as spool:
            download.spool = spool
            client = self._registries.client(blob.host)
            async with aclosing(client.blob(blob.repository, descriptor)) as pieces:
                async for piece in pieces:
                    download.begun.set()
                    await spool.feed(piece)
            pack_id = await spool.finish()
        if not download.is_wanted:
            self._store.unwanted(pack_id)
        log.info("blob %s: pack %s, %d bytes", blob.digest, pack_id, download.size)

    async def _ask_size(self, blob: Reference) -> int:
        assert blob.digest is not None
        size = await self._registries.client(blob.host).blob_size(blob.repository, blob.digest)
        if size is None:
            raise DeclinedError(f"{blob}: the registry does not tell the blob's size")
        return size


def _checked(blob: Reference) -> str:
    """The blob's digest; DeclinedError if it is not one that packs are named by."""
    if blob.digest is None or not is_sha256(blob.digest):
        raise DeclinedError(f"{blob}: only blobs with a sha256 digest are kept here")
    return blob.digest

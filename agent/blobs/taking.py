"""One blob on its way to this node, or here, for as long as somebody reads it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future

from agent.catalog import Catalog
from agent.early import EarlyLayers
from agent.earlystore import EarlyStore
from agent.layer import Layer
from agent.layerstore import LayerStore
from agent.supernodes import Supernodes
from agent.transfer.transfers import Transfers
from imgdist.errors import CorruptError, ImgdistError, NotFoundError, TemporaryError
from imgdist.oci.reference import Reference
from imgdist.pack import BLOCK, CHUNK_MAX
from imgdist.pack.index import IndexFollower
from imgdist.pack.kinds import Kind, early_name, raw_chunks

log = logging.getLogger("imgdist.agent")


class Taking:
    """On the event loop, but `arrived` and `read`. `run` is its work, which ends, and takes nothing more, when the last
    of its `readers` has left; `over` is for its owner to set. `store` has the chunks: until the seal an EarlyStore,
    then the pack's."""

    def __init__(
        self,
        blob: Reference,
        supernodes: Supernodes,
        catalog: Catalog,
        transfers: Transfers,
        early: EarlyLayers,
        *,
        authorization: str | None,
        size: int | None,
        at: Callable[[int, Taking], None],
        idle_s: Callable[[], float],
    ) -> None:
        """`size` if it is known beforehand. `at(node, self)` is told the node number of each of its stores.
        `idle_s()`: for how long no chunk of any blob came to this node."""
        assert blob.digest is not None
        self.blob = blob
        self.digest = blob.digest
        self.name = early_name(blob.digest, Kind.RAW)
        self.readers = 0
        self.size: int | None = None
        self.store: EarlyStore | LayerStore | None = None
        self.layer: Layer | None = None
        self.error: ImgdistError | None = None
        self.changed = asyncio.Event()
        """Set, and replaced, when there is news: wait for the one that was here before the look."""
        self.over = asyncio.Event()
        self._supernodes = supernodes
        self._catalog = catalog
        self._transfers = transfers
        self._early = early
        self.authorization = authorization
        self._told_size = size
        self._at = at
        self.idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._is_told = False
        self._left = asyncio.Event()
        self._patience: asyncio.Timeout | None = None

    @property
    def is_leaving(self) -> bool:
        """Whether its last reader has left: a new one waits until it is `over`."""
        return self._left.is_set()

    async def run(self) -> None:
        """Have the blob, and keep it until the last reader has left."""
        try:
            await self._hold(self._local() or await self._fetch())
            await self._left.wait()
        except asyncio.CancelledError:  # the daemon's stop, which closes stores and transfers itself
            self.error = TemporaryError("the agent is stopping")
            raise
        except TimeoutError:
            self.error = TemporaryError(f"blob {self.digest}: its last reader has left")
        except ImgdistError as error:
            self.error = error
        except OSError as error:
            self.error = TemporaryError(f"blob {self.digest}: the disk refuses it: {error.strerror}")
        except Exception as error:
            log.exception("blob %s cannot be taken", self.digest)
            self.error = TemporaryError(f"blob {self.digest} cannot be taken: {error}")
        finally:
            self.notify()
        await self._release()

    def leave(self) -> None:
        """A reader has gone."""
        self.readers -= 1
        if not self.readers:
            self._left.set()
            if self._patience is not None:
                self._patience.reschedule(self._loop.time())

    def took(self, store: EarlyStore) -> None:
        """Its chunks come to this store until the seal."""
        self._show(store)

    def arrived(self) -> None:
        """A chunk is here; from any thread."""
        if not self._is_told:
            self._is_told = True
            self._loop.call_soon_threadsafe(self.notify)

    def notify(self) -> None:
        """There is news."""
        self._is_told = False
        self.changed.set()
        self.changed = asyncio.Event()

    def has(self, chunk: int) -> bool:
        """Whether a chunk's bytes may be read: the last one's not before the seal. Raises what ended the taking."""
        if self.error is not None:
            raise self.error
        store = self.store
        if store is None or chunk >= self._known():
            return False
        with store.use() as usable:
            return usable and store.has(chunk)

    def want(self, chunk: int, count: int) -> Future[None] | None:
        """Ask for so many chunks from this one on before others; ends when they are here. None: that cannot be yet."""
        store = self.store
        if store is None or chunk >= self._known():
            return None
        try:
            wanted = self._transfers.fetch_now(store, range(chunk, min(chunk + count, self._known())))
        except NotFoundError:  # it is changing hands at the seal, or just growing
            return None
        wanted.add_done_callback(lambda future: self.arrived())
        return wanted

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that are here; b"" if the store was closed since that was looked up. In any thread."""
        store = self.store
        assert store is not None
        with store.use() as usable:
            return os.pread(store.image_fd, length, BLOCK + offset) if usable else b""

    async def _fetch(self) -> Layer:
        async with self._early.layer(self.digest) as early:

            def progress(follower: IndexFollower) -> None:
                if self.size is None and follower.header is not None:
                    self.size = follower.header.size
                early.progress(follower)
                self.notify()

            try:
                async with asyncio.timeout(None) as self._patience:
                    _, data = await self._supernodes.follow_blob(
                        self.blob, progress, authorization=self.authorization, size=self._told_size
                    )
            finally:
                self._patience = None
            layer = await self._catalog.adopt(data, await early.hand_over())
            self._keep(layer)
            return layer

    def _local(self) -> Layer | None:
        layer = next((layer for layer in self._catalog.all() if _is_of(layer, self.digest)), None)
        if layer is not None:
            self._keep(layer)
        return layer

    def _keep(self, layer: Layer) -> None:
        """No await since it was found: nobody removes it from here on."""
        layer.readers += 1
        self.layer = layer

    async def _hold(self, layer: Layer) -> None:
        await self._catalog.prove(layer)
        size = layer.store.index.blob_size
        if self.size not in (None, size):
            raise CorruptError(f"blob {self.digest}: expected {self.size} bytes, its sealed index says {size}")
        self.size = size
        if not layer.store.present.clean:
            await asyncio.to_thread(self._transfers.add, layer.store)
            self._transfers.fill(layer.store)
        self._show(layer.store)

    def _show(self, store: EarlyStore | LayerStore) -> None:
        self.store = store
        self._at(store.node, self)
        self.notify()

    async def _release(self) -> None:
        if self.layer is not None:
            await asyncio.to_thread(self._transfers.remove, self.layer.store.node)
            self._catalog.leave(self.layer)

    def _known(self) -> int:
        """Chunks that can be asked for and read."""
        assert self.store is not None
        if isinstance(self.store, LayerStore):
            return self.store.index.chunk_count
        return min(self.store.index.chunk_count, raw_chunks(self.size or 0) - 1)


def _is_of(layer: Layer, digest: str) -> bool:
    index = layer.store.index
    return index.kind is Kind.RAW and index.layer_digest == digest


def run_of(taking: Taking, offset: int, length: int) -> int:
    """How many of the `length` bytes from `offset` on can be read at once; the first chunk is here."""
    chunk = offset // CHUNK_MAX
    end = min(offset + length, (chunk + 1) * CHUNK_MAX)
    while end < offset + length and taking.has(end // CHUNK_MAX):
        end = min(offset + length, end + CHUNK_MAX)
    return end - offset

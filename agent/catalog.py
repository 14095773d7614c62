"""The layers of this node: which packs are here, how each is mounted, and what becomes of it.

A layer is `indexing` until its index is sealed, `filling` while it is shown by the view and bytes are missing,
`complete` when every byte is here, `switched` when its loop device has left the view for the local file. It mounts
once, at ROOT/l/<base 36>, for all images and containers. Owner of all state: the event loop; mounts, ioctls and
whatever else may wait run in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from agent.batches import Batches, each, outcome
from agent.chunkstore import ChunkStore
from agent.earlystore import EarlyStore
from agent.layer import Layer, State
from agent.layerstore import LayerStore
from agent.mounter import Mounter
from agent.space import lastuse
from agent.space.room import MakeRoom, no_room, with_room
from agent.switching import Switching
from agent.transfer.transfers import Transfers
from agent.work import SharedWork
from imgdist.errors import ImgdistError, NotFoundError
from imgdist.pack.index import Index
from imgdist.wire.control import Body

__all__ = ["Catalog", "Layer", "State"]

log = logging.getLogger("imgdist.agent")

SMALL_BYTES = 4 << 20
"""Layers below this are fetched whole and mounted locally: no view, no switch; most layers of most images."""
COMING_BYTES = 16 << 20
"""Of small layers that are fetched whole at once, whatever images they are of; those beyond are shown by the view."""

AT_ONCE = 16
"""Layers that one thread makes, shows or mounts before those behind them have their turn (a guess)."""

_LAST_SWITCH_S = 2.0  # what a drain grants the switches that it has begun; each takes 13-52 ms unless a reader waits


class Catalog:
    """Every layer of the node.

    Mounting and unmounting run as work of `tasks`, the daemon's task group: a caller that is cancelled in the middle
    (its client hung up, its time is up) leaves a layer whose state is known, not a second mount on top of a first.
    """

    def __init__(
        self,
        chunks: ChunkStore,
        mounter: Mounter,
        transfers: Transfers,
        tasks: asyncio.TaskGroup,
        *,
        fill: bool,
        switch_idle_s: float,
        show: Callable[[LayerStore], None] = lambda store: None,
        hide: Callable[[LayerStore], None] = lambda store: None,
        make_room: MakeRoom = no_room,
    ) -> None:
        """`show(store)` is called when what is present of a layer is proven, more than once; `hide(store)` before its
        pack is removed. `make_room(bytes)` is asked to free space when the disk has none for a new layer."""
        self._chunks = chunks
        self._tasks = tasks
        self._mounter = mounter
        self._transfers = transfers
        self._fill = fill
        self._show = show
        self._hide = hide
        self._make_room = make_room
        self._layers: dict[str, Layer] = {}
        self._leaving: dict[str, Layer] = {}
        self._stranded: list[Layer] = []
        self._coming_bytes = 0
        self._switching = Switching(mounter, transfers, self.all, idle_s=switch_idle_s)
        # One thread for all of it: those of two would take the GIL from each other, and from the event loop.
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="layers")
        self._creating = Batches(self._opener, partial(each, lambda pack: chunks.create(*pack)), AT_ONCE)
        self._showing = Batches(self._opener, self._show_together, AT_ONCE)
        self._mounting = Batches(self._opener, partial(each, mounter.mount_shown), AT_ONCE)

    def close(self) -> None:
        """Begin nothing more in threads of its own."""
        self._opener.shutdown(wait=False, cancel_futures=True)

    def all(self) -> list[Layer]:
        """Every layer here."""
        return list(self._layers.values())

    def get(self, pack_id: str) -> Layer | None:
        """The layer of that pack (hex)."""
        return self._layers.get(pack_id)

    async def recover(self) -> None:
        """At start, before the view is told anything: find what is on disk and what earlier agents left mounted."""
        for store in await asyncio.to_thread(self._chunks.recover):
            layer = self._enter(store)
            try:
                await self._take_up(layer)
            except (ImgdistError, OSError) as error:
                layer.mounted, layer.state = True, State.FAILED
                log.error("layer %s: what is mounted at its place cannot be taken up: %s", layer.pack_id, error)
            if store.is_proven:
                self._show(store)

    async def _take_up(self, layer: Layer) -> None:
        store = layer.store
        left = await asyncio.to_thread(self._mounter.found, store)
        if left is None:
            return
        if not left.ours:
            place = self._mounter.directory(store)
            await asyncio.to_thread(self._chunks.renumber, store)
            log.error(
                "layer %s: another layer is mounted at its place %s, left alone; it goes to %s",
                layer.pack_id,
                place,
                self._mounter.directory(store),
            )
            return
        layer.mounted, layer.mounted_at = left.mounted, time.monotonic()
        layer.lingers = not left.mounted
        if left.local:
            layer.state = State.SWITCHED
            return
        layer.shown = True
        await asyncio.to_thread(self._transfers.add, store)
        self._mounter.announce(store)
        if not left.live:
            self._stranded.append(layer)

    async def rescue(self) -> None:
        """Go on filling, and give the loops of a view that died their file again, as soon as today's view shows it.
        Ends when each has it: what fails is tried again."""
        if self._fill:
            for layer in self.all():
                if layer.shown:
                    self._transfers.fill(layer.store)
        self._switching.wake()
        stranded, self._stranded = self._stranded, []
        await self._switching.rescue(stranded)

    async def adopt(
        self,
        index_data: bytes,
        early: EarlyStore | None = None,
        bodies: Sequence[Body] = (),
        index: Index | None = None,
    ) -> Layer:
        """The layer of a sealed index: what a restart left, or a new one with what came before the seal (`early`) or
        with the index (`bodies`, unverified). `index`, if it is loaded already."""
        store = await self._create(index_data, early, bodies, index)
        leaving = self._leaving.get(store.pack_id.hex())
        if leaving is not None and leaving.store is store:  # it was found just before it went
            async with leaving.lock:
                pass
            store = await self._create(index_data, early, bodies, index)
        layer = self._layers.get(store.pack_id.hex()) or self._enter(store)
        if store.is_proven:
            self._show(store)
        return layer

    async def _create(
        self, index_data: bytes, early: EarlyStore | None, bodies: Sequence[Body], index: Index | None
    ) -> LayerStore:
        return await with_room(
            lambda: self._creating.do((index_data, early, bodies, index)),
            lambda: self._make_room(Index.load(index_data).image_size),
        )

    async def prove(self, layer: Layer) -> None:
        """Have what is present of the layer proven, and shown to the swarm."""
        async with layer.lock:
            await self._prove(layer.store)

    def leave(self, layer: Layer) -> None:
        """A reader of the layer's blob has gone."""
        layer.readers -= 1
        lastuse.note(layer.store.directory)

    async def mount(self, layer: Layer, *, whole: bool = True) -> str:
        """Mount the layer if it is not, through the view where bytes are missing; returns the directory. `whole`: a
        small one is fetched before instead, if there is room for it among those on their way."""
        self._transfers.starting()
        if not layer.mounted or layer.lock.locked():
            await SharedWork(self._tasks, self._mount_once(layer, whole)).wait()
        return self._mounter.directory(layer.store)

    def mounted_at(self, pack_id: str) -> str | None:
        """Where the layer of that pack (hex) is mounted; None if it is not, or is being mounted or unmounted, or its
        pack is not durable yet (`settle`)."""
        layer = self._layers.get(pack_id)
        usable = layer is not None and layer.mounted and not layer.lock.locked() and layer.store.is_settled
        return self._mounter.directory(layer.store) if layer is not None and usable else None

    async def ensure_mounted(self, pack_id: str) -> str:
        """`mount` by pack id (hex). NotFoundError if the pack is not here."""
        layer = self._layers.get(pack_id)
        if layer is None:
            raise _gone(pack_id)
        return await self.mount(layer)

    async def settle(self, pack_ids: Sequence[str]) -> None:
        """Make packs (hex) durable before a snapshot names them. NotFoundError if one is not here, OSError if the disk
        refuses."""
        stores = []
        for pack_id in pack_ids:
            if (layer := self._layers.get(pack_id)) is None:
                raise _gone(pack_id)
            stores.append(layer.store)
        if not all(store.is_settled for store in stores):
            await asyncio.to_thread(LayerStore.settle, stores)

    async def unmount(self, pack_id: str) -> None:
        """Unmount a layer that nobody uses; its bytes stay. BusyError says who holds it."""
        layer = self._layers.get(pack_id)
        if layer is not None:
            await SharedWork(self._tasks, self._unmount(layer)).wait()
            await asyncio.to_thread(lastuse.note, layer.store.directory)

    async def remove(self, pack_id: str) -> bool:
        """Free the space of a layer that nobody uses. False if it is mounted, shown or being mounted."""
        layer = self._layers.get(pack_id)
        return layer is not None and await SharedWork(self._tasks, self._remove(layer)).wait()

    def completed(self, pack_id: str) -> None:
        """All bytes of the layer are here and durable."""
        layer = self._layers.get(pack_id)
        if layer is not None and layer.state is State.FILLING:
            layer.state = State.COMPLETE
        self._switching.wake()

    async def switch_forever(self) -> None:
        """As Switching.run."""
        await self._switching.run()

    async def finish(self, timeout_s: float) -> list[Layer]:
        """As Switching.finish."""
        return await self._switching.finish(timeout_s)

    async def drain(self, timeout_s: float) -> list[Layer]:
        """Complete and switch what is shown while the agent goes on; returns what the view shows still. A switch that
        waits for a reader ends in its own time, not in this call's."""
        work = SharedWork(self._tasks, self._switching.drain(timeout_s))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s + _LAST_SWITCH_S):
                await work.wait()
        return [layer for layer in self.all() if layer.shown]

    def _enter(self, store: LayerStore) -> Layer:
        layer = Layer(store)
        if store.is_complete:
            layer.state = State.COMPLETE
        self._layers[layer.pack_id] = layer
        return layer

    async def _mount_once(self, layer: Layer, whole: bool) -> None:
        async with layer.lock:
            if layer.mounted:
                return
            if layer.removed:
                raise _gone(layer.pack_id)
            store = layer.store
            await self._prove(store)
            if whole and not store.is_complete and self._comes_whole(store):
                await self._fetch_whole(store)
            if store.is_complete:
                await asyncio.to_thread(store.complete)
                await asyncio.to_thread(self._mounter.mount_local, store)
                layer.state = State.COMPLETE
            else:
                await self._mount_shown(layer)
            layer.mounted, layer.mounted_at = True, time.monotonic()

    async def _prove(self, store: LayerStore) -> None:
        if not store.is_proven:
            await asyncio.to_thread(store.prove)
            self._show(store)

    async def _unmount(self, layer: Layer) -> None:
        async with layer.lock:
            if not layer.mounted:
                return
            await asyncio.to_thread(self._mounter.unmount, layer.store)
            layer.mounted = False
            if layer.shown:
                await self._switching.leave_view(layer)
            layer.state = State.COMPLETE if layer.store.is_complete else State.FILLING

    async def _remove(self, layer: Layer) -> bool:
        if layer.lock.locked():
            return False
        async with layer.lock:
            if layer.mounted or layer.shown or layer.readers or layer.removed:
                return False
            layer.removed = True
            self._leaving[layer.pack_id] = self._layers.pop(layer.pack_id)
            try:
                self._hide(layer.store)
                await asyncio.to_thread(self._transfers.remove, layer.store.node)
                await asyncio.to_thread(self._mounter.forget, layer.store)
                await asyncio.to_thread(self._chunks.remove, layer.store)
            finally:
                del self._leaving[layer.pack_id]
            return True

    def _comes_whole(self, store: LayerStore) -> bool:
        size = store.index.image_size
        return size < SMALL_BYTES and self._coming_bytes + size <= COMING_BYTES

    async def _fetch_whole(self, store: LayerStore) -> None:
        self._coming_bytes += store.index.image_size
        try:
            await asyncio.to_thread(self._transfers.add, store)
            try:
                await asyncio.wrap_future(self._transfers.fetch_now(store, store.missing_chunks()))
            finally:
                await asyncio.to_thread(self._transfers.remove, store.node)
        finally:
            self._coming_bytes -= store.index.image_size

    async def _mount_shown(self, layer: Layer) -> None:
        store = layer.store
        try:
            fetching = await self._showing.do(store)
            if fetching is not None:
                await asyncio.wrap_future(fetching)
                await self._mounting.do(store)
        except BaseException:
            await self._switching.leave_view(layer)
            raise
        layer.shown, layer.lingers = True, False
        if store.is_complete:  # meanwhile: nobody was told, as it was not shown yet
            self._switching.wake()
        elif self._fill:
            self._transfers.fill(store)

    def _show_together(self, stores: Sequence[LayerStore]) -> list[Future[None] | BaseException | None]:
        """Have the view show layers, and mount those whose metadata is here; a future says when another's is."""
        announced = each(self._announce, stores)  # it takes them all while we go on
        return [
            fetching if isinstance(fetching, BaseException) else outcome(partial(self._show_and_mount, fetching), store)
            for store, fetching in zip(stores, announced, strict=True)
        ]

    def _announce(self, store: LayerStore) -> Future[None]:
        self._transfers.add(store)
        metadata = [chunk for chunk in store.missing_chunks() if store.index.is_metadata(chunk)]
        fetching = self._transfers.fetch_now(store, metadata)
        self._mounter.announce(store)
        return fetching

    def _show_and_mount(self, fetching: Future[None], store: LayerStore) -> Future[None] | None:
        self._mounter.show(store)
        if not fetching.done():
            return fetching
        fetching.result()
        self._mounter.mount_shown(store)
        return None


def _gone(pack_id: str) -> NotFoundError:
    return NotFoundError(f"pack {pack_id} is not on this node any more; pull the image again")

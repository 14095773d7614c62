"""The layers of this node: which packs are here, how each is mounted, and what becomes of it.

A layer is `indexing` until its index is sealed, `filling` while it is shown by the view and bytes are missing,
`complete` when every byte is here, `switched` when its loop device has left the view for the local file. It mounts
once, at ROOT/l/<base 36>, for all images and containers. Owner of all state: the event loop; mounts, ioctls and
whatever else may wait run in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import time
from dataclasses import dataclass, field

from agent.chunkstore import ChunkStore
from agent.layerstore import LayerStore
from agent.mounter import Mounter
from agent.transfer.transfers import Transfers
from agent.work import SharedWork
from imgdist.errors import ImgdistError, NotFoundError, TemporaryError

log = logging.getLogger("imgdist.agent")

SMALL_BYTES = 4 << 20
"""Layers below this are fetched whole and mounted locally: no view, no switch; most layers of most images."""


_RETRY_S = (0.1, 60.0)
_LOOK_S = 30.0
"""How often layers are looked at while nothing calls for it: one that is whole and could not be made durable."""
_AT_ONCE = 8  # rescues side by side: each is an ioctl that waits for the reads in flight on its device
_VIEW_WAIT_S = 0.5  # one wait in a thread for the view; short, as a stop waits for all threads
_DRAIN_STEP_S = 0.5
_SILENCE_S = 3.0
"""A stop that fills goes on while bytes come, and gives up after so long without any: no source serves."""


class State(enum.StrEnum):
    """What `imgdist layers` says of a layer."""

    INDEXING = "indexing"
    FILLING = "filling"
    COMPLETE = "complete"
    SWITCHED = "switched"
    PLAIN = "plain"
    FAILED = "failed"


@dataclass
class Retry:
    """When something that failed is due again: after 0.1 s, then ever later, at last each minute."""

    at: float = 0.0
    delay_s: float = 0.0

    def failed(self) -> float:
        """It failed (again); in how many seconds it is due."""
        self.delay_s = min(max(2 * self.delay_s, _RETRY_S[0]), _RETRY_S[1])
        self.at = time.monotonic() + self.delay_s
        return self.delay_s

    def is_due(self) -> bool:
        """Whether it may be tried now."""
        return time.monotonic() >= self.at


@dataclass
class Layer:
    """A layer whose index is sealed. `shown` tells whether the view has it; `mounted_at` is in seconds of the monotonic
    clock; `lingers`: unmounted, while a mount that we cannot see still reads it through the view."""

    store: LayerStore
    state: State = State.FILLING
    shown: bool = False
    mounted: bool = False
    mounted_at: float = 0.0
    lingers: bool = False
    retry: Retry = field(default_factory=Retry)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def pack_id(self) -> str:
        """The pack's identity, hex."""
        return self.store.pack_id.hex()


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
    ) -> None:
        self._chunks = chunks
        self._tasks = tasks
        self._mounter = mounter
        self._transfers = transfers
        self._fill = fill
        self._switch_idle_s = switch_idle_s
        self._layers: dict[str, Layer] = {}
        self._stranded: list[Layer] = []
        self._changed = asyncio.Event()

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
        self._changed.set()
        stranded, self._stranded = self._stranded, []
        live, few = asyncio.Event(), asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for layer in stranded:
                tasks.create_task(self._rescue(layer, live, few))
            if any(not layer.store.is_complete for layer in stranded):
                await self._await_view()
            live.set()

    async def _await_view(self) -> None:
        while True:
            try:
                return await asyncio.to_thread(self._mounter.wait_live, _VIEW_WAIT_S)
            except TemporaryError as error:
                log.info("layers of a view that died wait: %s", error)

    async def _rescue(self, layer: Layer, live: asyncio.Event, few: asyncio.Semaphore) -> None:
        retry = Retry()
        while layer.shown:
            if not layer.store.is_complete:  # a layer that is whole needs no view any more
                await live.wait()
            try:
                async with few, layer.lock:
                    if layer.store.is_complete:
                        await self._switch(layer)
                    else:
                        await asyncio.to_thread(self._mounter.rescue, layer.store)
                        layer.state = State.FILLING
            except (ImgdistError, OSError) as error:
                layer.state = State.FAILED
                wait_s = retry.failed()
                log.error("layer %s: its view died; no rescue yet, again in %.1f s: %s", layer.pack_id, wait_s, error)
                await asyncio.sleep(wait_s)
            else:
                log.warning("layer %s: its view had died; the mount is right again", layer.pack_id)
                return

    async def adopt(self, index_data: bytes) -> Layer:
        """The layer of a sealed index: what a restart left, or a new one with nothing in it yet."""
        store = await asyncio.to_thread(self._chunks.create, index_data)
        return self._layers.get(store.pack_id.hex()) or self._enter(store)

    async def mount(self, layer: Layer) -> str:
        """Mount the layer if it is not, through the view where bytes are missing; returns the directory."""
        if not layer.mounted or layer.lock.locked():
            await SharedWork(self._tasks, self._mount_once(layer)).wait()
        return self._mounter.directory(layer.store)

    async def ensure_mounted(self, pack_id: str) -> str:
        """`mount` by pack id (hex). NotFoundError if the pack is not here."""
        layer = self._layers.get(pack_id)
        if layer is None:
            raise NotFoundError(f"pack {pack_id} is not on this node any more; pull the image again")
        return await self.mount(layer)

    async def unmount(self, pack_id: str) -> None:
        """Unmount a layer that nobody uses; its bytes stay. BusyError says who holds it."""
        layer = self._layers.get(pack_id)
        if layer is not None:
            await SharedWork(self._tasks, self._unmount(layer)).wait()

    def completed(self, pack_id: str) -> None:
        """All bytes of the layer are here and durable."""
        layer = self._layers.get(pack_id)
        if layer is not None and layer.state is State.FILLING:
            layer.state = State.COMPLETE
        self._changed.set()

    async def switch_forever(self) -> None:
        """Switch complete layers to their local files, one at a time, each when it has been idle; let those go that
        lingered in the view."""
        while True:
            waiting = [layer for layer in self.all() if layer.shown and (layer.lingers or layer.store.is_complete)]
            for layer in waiting:
                if layer.lingers and layer.retry.is_due():
                    await self._look_again(layer)
                if layer.store.is_complete and layer.retry.is_due() and self._idle(layer):
                    await self._try_switch(layer)
            if not waiting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._changed.wait()
                self._changed.clear()
            else:
                await asyncio.sleep(min(0.5, self._switch_idle_s or 0.05))

    async def finish(self, timeout_s: float) -> list[Layer]:
        """Complete and switch whatever is shown, at full speed, for at most `timeout_s`; returns what could not be.

        What is complete is switched first, the rest as each completes. Ends before if no bytes come any more.
        """
        shown = [layer for layer in self.all() if layer.shown]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._finish(shown)
        return [layer for layer in shown if layer.shown]

    async def _finish(self, shown: list[Layer]) -> None:
        had, came_at = -1, time.monotonic()
        while True:
            for layer in shown:
                if layer.shown and layer.store.is_complete:
                    await self._try_switch(layer)
            left = [layer for layer in shown if layer.shown and not layer.store.is_complete]
            have = sum(layer.store.present.count() for layer in left)
            if have != had:
                had, came_at = have, time.monotonic()
            if not left or time.monotonic() - came_at >= _SILENCE_S:
                return
            missing = await asyncio.to_thread(self._transfers.drain, _DRAIN_STEP_S)
            if not missing and not any(layer.store.is_complete for layer in left):
                return

    def _enter(self, store: LayerStore) -> Layer:
        layer = Layer(store)
        if store.is_complete:
            layer.state = State.COMPLETE
        self._layers[layer.pack_id] = layer
        return layer

    async def _mount_once(self, layer: Layer) -> None:
        async with layer.lock:
            if layer.mounted:
                return
            store = layer.store
            if not store.is_proven:
                await asyncio.to_thread(store.prove)
            if store.index.image_size < SMALL_BYTES and not store.is_complete:
                await self._fetch_whole(store)
            if store.is_complete:
                await asyncio.to_thread(store.complete)
                await asyncio.to_thread(self._mounter.mount_local, store)
                layer.state = State.COMPLETE
            else:
                await self._mount_shown(layer)
            layer.mounted, layer.mounted_at = True, time.monotonic()

    async def _unmount(self, layer: Layer) -> None:
        async with layer.lock:
            if not layer.mounted:
                return
            await asyncio.to_thread(self._mounter.unmount, layer.store)
            layer.mounted = False
            if layer.shown:
                await self._leave_view(layer)
            layer.state = State.COMPLETE if layer.store.is_complete else State.FILLING

    async def _fetch_whole(self, store: LayerStore) -> None:
        await asyncio.to_thread(self._transfers.add, store)
        try:
            await asyncio.wrap_future(self._transfers.fetch_now(store, store.missing_chunks()))
        finally:
            await asyncio.to_thread(self._transfers.remove, store.node)

    async def _mount_shown(self, layer: Layer) -> None:
        store = layer.store
        await asyncio.to_thread(self._transfers.add, store)
        metadata = [chunk for chunk in store.missing_chunks() if store.index.is_metadata(chunk)]
        try:
            fetching = self._transfers.fetch_now(store, metadata)  # on its way while the view is told
            await asyncio.to_thread(self._mounter.show, store)
            await asyncio.wrap_future(fetching)
            await asyncio.to_thread(self._mounter.mount_shown, store)
        except BaseException:
            await self._leave_view(layer)
            raise
        layer.shown, layer.lingers = True, False
        if store.is_complete:  # meanwhile: nobody was told, as it was not shown yet
            self._changed.set()
        elif self._fill:
            self._transfers.fill(store)

    def _idle(self, layer: Layer) -> bool:
        present = layer.store.present
        quiet_s = time.monotonic() - present.last_read_ns / 1e9
        return present.parked == 0 and quiet_s >= self._switch_idle_s

    async def _try_switch(self, layer: Layer) -> None:
        async with layer.lock:
            if not layer.shown:
                return
            try:
                await self._switch(layer)
            except (ImgdistError, OSError) as error:
                layer.state = State.FAILED
                wait_s = layer.retry.failed()
                log.error(
                    "layer %s stays behind the view, tried again in %.1f s: it could not be switched: %s",
                    layer.pack_id,
                    wait_s,
                    error,
                )
                if not layer.store.is_complete:
                    await self._fetch_again(layer)

    async def _fetch_again(self, layer: Layer) -> None:
        """The disk lost bytes that the transfers believe to be here."""
        store = layer.store
        await asyncio.to_thread(self._transfers.remove, store.node)
        await asyncio.to_thread(self._transfers.add, store)
        layer.state = State.FILLING
        self._transfers.fill(store)

    async def _look_again(self, layer: Layer) -> None:
        async with layer.lock:
            if layer.lingers:
                await self._leave_view(layer)

    async def _switch(self, layer: Layer) -> None:
        await asyncio.to_thread(layer.store.complete)  # durable first: from here on nobody proves its bytes
        await asyncio.to_thread(self._mounter.switch, layer.store)
        await self._leave_view(layer)
        layer.state = State.SWITCHED if layer.mounted else State.COMPLETE

    async def _leave_view(self, layer: Layer) -> None:
        """Unless something reads the layer through the view: then it is looked at again later."""
        if await asyncio.to_thread(self._mounter.is_read, layer.store):
            if not layer.lingers:
                log.info("layer %s stays in the view: a mount that is not ours still reads it", layer.pack_id)
            layer.shown = layer.lingers = True
            layer.retry.failed()
            self._changed.set()
            return
        layer.lingers, layer.retry = False, Retry()
        await asyncio.to_thread(self._transfers.remove, layer.store.node)
        await asyncio.to_thread(self._mounter.hide, layer.store)
        layer.shown = False

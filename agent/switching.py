"""The way of layers out of the view: rescue where a view died, switch to the local file, and what lingers.

`shown` layers only. State belongs to the event loop; what waits for the kernel or the disk runs in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable

from agent.layer import Layer, Retry, State
from agent.mounter import Mounter
from agent.transfer.transfers import Transfers
from imgdist.errors import ImgdistError, TemporaryError

log = logging.getLogger("imgdist.agent")

_LOOK_S = 30.0
"""How often layers are looked at while nothing calls for it: one that is whole and could not be made durable."""
_AT_ONCE = 8  # rescues side by side: each is an ioctl that waits for the reads in flight on its device
_VIEW_WAIT_S = 0.5  # one wait in a thread for the view; short, as a stop waits for all threads
_DRAIN_STEP_S = 0.5
_SILENCE_S = 3.0
"""A stop that fills goes on while bytes come, and gives up after so long without any: no source serves."""


class Switching:
    """Switches complete layers of `layers()` when each has been idle for `idle_s`."""

    def __init__(
        self, mounter: Mounter, transfers: Transfers, layers: Callable[[], list[Layer]], *, idle_s: float
    ) -> None:
        self._mounter = mounter
        self._transfers = transfers
        self._layers = layers
        self._idle_s = idle_s
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """A layer that is shown became whole, or lingers: look at once."""
        self._changed.set()

    async def rescue(self, stranded: list[Layer]) -> None:
        """Give the loops of a view that died their file again, as soon as today's view shows it. Ends when each has
        it: what fails is tried again."""
        live, few = asyncio.Event(), asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for layer in stranded:
                tasks.create_task(self._rescue(layer, live, few))
            if any(not layer.store.is_complete for layer in stranded):
                await self._await_view()
            live.set()

    async def run(self) -> None:
        """Switch complete layers to their local files, one at a time, each when it has been idle; let those go that
        lingered in the view. Until cancelled."""
        while True:
            waiting = [layer for layer in self._layers() if layer.shown and (layer.lingers or layer.store.is_complete)]
            for layer in waiting:
                if layer.lingers and layer.retry.is_due():
                    await self._look_again(layer)
                if layer.store.is_complete and layer.retry.is_due() and self._is_idle(layer):
                    await self._try_switch(layer)
            if not waiting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._changed.wait()
                self._changed.clear()
            else:
                await asyncio.sleep(min(0.5, self._idle_s or 0.05))

    async def finish(self, timeout_s: float) -> list[Layer]:
        """Complete and switch whatever is shown, at full speed, for at most `timeout_s`; returns what could not be.

        What is complete is switched first, the rest as each completes. Ends before if no bytes come any more.
        """
        shown = [layer for layer in self._layers() if layer.shown]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._finish(shown, math.inf)
        return [layer for layer in shown if layer.shown]

    async def drain(self, timeout_s: float) -> None:
        """As `finish`, in an agent that goes on: no switch is cut short, so this may end later."""
        shown = [layer for layer in self._layers() if layer.shown]
        await self._finish(shown, time.monotonic() + timeout_s)

    async def leave_view(self, layer: Layer) -> None:
        """Unless something reads the layer through the view: then it is looked at again later."""
        if await asyncio.to_thread(self._mounter.is_read, layer.store):
            if not layer.lingers:
                log.info("layer %s stays in the view: a mount that is not ours still reads it", layer.pack_id)
            layer.shown = layer.lingers = True
            layer.retry.failed()
            self.wake()
            return
        layer.lingers, layer.retry = False, Retry()
        await asyncio.to_thread(self._transfers.remove, layer.store.node)
        await asyncio.to_thread(self._mounter.hide, layer.store)
        layer.shown = False

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

    async def _finish(self, shown: list[Layer], deadline: float) -> None:
        had, came_at = -1, time.monotonic()
        while time.monotonic() < deadline:
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

    def _is_idle(self, layer: Layer) -> bool:
        present = layer.store.present
        quiet_s = time.monotonic() - present.last_read_ns / 1e9
        return present.parked == 0 and quiet_s >= self._idle_s

    async def _look_again(self, layer: Layer) -> None:
        async with layer.lock:
            if layer.lingers:
                await self.leave_view(layer)

    async def _try_switch(self, layer: Layer) -> None:
        async with layer.lock:
            if not layer.shown:
                return
            try:
                await self._switch(layer)
            except (ImgdistError, OSError) as error:
                layer.state = State.FAILED if layer.store.is_complete else State.FILLING
                log.error(
                    "layer %s stays behind the view, tried again in %.1f s: it could not be switched: %s",
                    layer.pack_id,
                    layer.retry.failed(),
                    error,
                )

    async def _switch(self, layer: Layer) -> None:
        try:
            await asyncio.to_thread(layer.store.complete)  # durable first: from here on nobody proves its bytes
        except ImgdistError:
            if not layer.store.is_complete:
                await self._fill_again(layer)
            raise
        await asyncio.to_thread(self._mounter.switch, layer.store)
        await self.leave_view(layer)
        layer.state = State.SWITCHED if layer.mounted else State.COMPLETE

    async def _fill_again(self, layer: Layer) -> None:
        """The disk lost bytes that the transfers believe to be here. They serve the layer all the while: a reader that
        misses one meanwhile must not find it unknown."""
        await asyncio.to_thread(self._transfers.add, layer.store)
        self._transfers.fill(layer.store)

"""Tells the supernode what starts on this node read, and lays out what it tells us of other starts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from agent.supernodes import Supernodes
from agent.tracing import TraceRecorder, TraceUpdate, pack
from imgdist.errors import ImgdistError

log = logging.getLogger("imgdist.agent")

_ROUND_S = 0.5
_FLUSH_S = 2.0


class TraceKeeper:
    """Uploads what the recorder has gathered, soon after each burst of reads. Owner: the event loop."""

    def __init__(self, recorder: TraceRecorder, supernodes: Supernodes, clock: Callable[[], float]) -> None:
        """`clock()`: as the recorder's `now`."""
        self._recorder = recorder
        self._supernodes = supernodes
        self._clock = clock

    def touched(self, touches: Iterable[tuple[int, int, int]]) -> None:
        """The view's report: (node, first block, blocks) in order of first touch."""
        self._recorder.touched(touches, self._clock())

    async def run(self) -> None:
        """Upload until cancelled."""
        while True:
            await asyncio.sleep(_ROUND_S)
            await self._upload(self._recorder.due(self._clock()))

    async def flush(self) -> None:
        """The agent stops: tell what is left, if the supernode listens; a stop does not wait for a hint."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                await self._upload(self._recorder.due(self._clock(), everything=True))

    async def _upload(self, updates: list[TraceUpdate]) -> None:
        for update in updates:
            try:
                await self._supernodes.put_trace(update.manifest_digest, pack(update))
            except ImgdistError as error:
                # A trace is a hint: the next start records it again.
                log.info("trace of %s was not kept: %s", update.manifest_digest, error)
            else:
                log.info("trace of %s: %d chunks told", update.manifest_digest, len(update.entries))

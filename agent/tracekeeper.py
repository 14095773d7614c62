"""Tells the supernode what starts on this node read, and lays out what it tells us of other starts."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Iterable

from agent.supernodes import Supernodes
from agent.tracing import TraceRecorder, TraceUpdate
from imgdist.errors import ImgdistError, ProtocolError
from imgdist.wire.control import Trace

log = logging.getLogger("imgdist.agent")

VERSION = 0
_ENTRY = struct.Struct("<HI")
_ROUND_S = 0.5


class TraceKeeper:
    """Uploads what the recorder has gathered, soon after each burst of reads. Owner: the event loop."""

    def __init__(self, recorder: TraceRecorder, supernodes: Supernodes) -> None:
        self._recorder = recorder
        self._supernodes = supernodes

    def touched(self, touches: Iterable[tuple[int, int, int]]) -> None:
        """The view's report: (node, first block, blocks) in order of first touch."""
        self._recorder.touched(touches, time.monotonic())

    async def run(self) -> None:
        """Upload until cancelled."""
        while True:
            await asyncio.sleep(_ROUND_S)
            await self._upload(self._recorder.due(time.monotonic()))

    async def flush(self) -> None:
        """The agent stops: tell what is left."""
        await self._upload(self._recorder.due(time.monotonic(), everything=True))

    async def _upload(self, updates: list[TraceUpdate]) -> None:
        for update in updates:
            try:
                await self._supernodes.put_trace(update.manifest_digest, pack(update.entries))
            except ImgdistError as error:
                # A trace is a hint: the next start records it again.
                log.info("trace of %s was not kept: %s", update.manifest_digest, error)
            else:
                log.info("trace of %s: %d chunks told", update.manifest_digest, len(update.entries))


def pack(entries: Iterable[tuple[str, int]]) -> Trace:
    """(layer digest, chunk) in order, as a document."""
    numbers: dict[str, int] = {}
    packed = bytearray()
    for digest, chunk in entries:
        packed += _ENTRY.pack(numbers.setdefault(digest, len(numbers)), chunk)
    return Trace(VERSION, tuple(numbers), bytes(packed))


def unpack(trace: Trace) -> list[tuple[str, int]]:
    """(layer digest, chunk) in order. ProtocolError for a version or an entry that makes no sense."""
    if trace.v != VERSION:
        raise ProtocolError(f"trace has version {trace.v}, this release reads {VERSION}")
    try:
        return [(trace.layers[layer], chunk) for layer, chunk in _ENTRY.iter_unpack(trace.entries)]
    except (struct.error, IndexError):
        raise ProtocolError("trace holds an entry cut short, or of a layer that it does not name") from None

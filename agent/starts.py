"""Starts of images: what earlier ones touched is fetched first, and what this one touches is recorded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping

from agent.catalog import Catalog, Layer
from agent.known_images import KnownImage, KnownImages
from agent.supernodes import Supernodes
from agent.tracing import TraceRecorder, unpack
from agent.transfer.transfers import Transfers
from agent.work import SharedWork
from imgdist.errors import ImgdistError

log = logging.getLogger("imgdist.agent")

TOGETHER_S = 0.1
"""Of layers that open within so long the trace is told at once (a guess)."""
TOGETHER_ENTRIES = 4096
"""Of a longer trace it is told less often: each time it is gone through, while misses wait (a guess)."""


class ImageStarts:
    """The traces of the images that start on this node. All calls come from the event loop."""

    def __init__(
        self,
        supernodes: Supernodes,
        catalog: Catalog,
        known: KnownImages,
        transfers: Transfers,
        recorder: TraceRecorder,
        *,
        traces: bool,
        prefetch: bool,
    ) -> None:
        """`traces`: starts are recorded; `prefetch`: what earlier ones touched is fetched first."""
        self._supernodes = supernodes
        self._catalog = catalog
        self._known = known
        self._transfers = transfers
        self._recorder = recorder
        self._traces = traces
        self._prefetch = prefetch

    async def follow(self, image: KnownImage, openings: Mapping[str, SharedWork[Layer]], *, has_trace: bool) -> None:
        """Fetch what earlier starts of this image read, of each layer as soon as it is open, then watch what this one
        reads.

        `has_trace`: its supernode has something to tell.
        """
        if not self._traces:
            return
        entries: list[tuple[str, int]] = []
        if has_trace and self._prefetch:
            try:
                trace = await self._supernodes.trace(image.manifest_digest)
                entries = unpack(trace) if trace is not None else []
            except ImgdistError as error:
                log.info("no trace for %s: %s", image.reference, error)
        told, goes_on = 0, False
        async for lazy in _as_they_open(openings, TOGETHER_S * max(1.0, len(entries) / TOGETHER_ENTRIES)):
            if entries and len(lazy) > told:
                order = [(lazy[digest].store, chunk) for digest, chunk in entries if digest in lazy]
                goes_on = self._transfers.trace(order, goes_on=goes_on) or goes_on
                told = len(lazy)
        # As it is known by now: when its layers' opening began, a new image's packs had no ids.
        self._record(self._known.get(image.manifest_digest) or image, self._transfers.running_s())

    def began(self, pack_id: str) -> None:
        """A container is being created over this pack: what its image's layers are read for now is a start."""
        self._transfers.starting()
        now = self._transfers.running_s()
        for image in self._known.with_pack(pack_id):
            if image.layers[-1].pack_id == pack_id:
                self._record(image, now)
                self._recorder.started(image.manifest_digest, now)

    def _record(self, image: KnownImage, now: float) -> None:
        shown = {}
        for layer in image.layers:
            found = self._catalog.get(layer.pack_id) if layer.pack_id else None
            if found is not None and found.shown:
                shown[found.store.node] = (layer.digest, found.store.index)
        if shown and self._traces:
            self._recorder.open(image.manifest_digest, shown, now)


async def _as_they_open(
    openings: Mapping[str, SharedWork[Layer]], pause_s: float
) -> AsyncIterator[Mapping[str, Layer]]:
    """The layers that the view shows by now, by digest: when some have opened, and at last when all have."""
    opening = {asyncio.ensure_future(one.settled()) for one in openings.values()}
    try:
        while opening:
            _, opening = await asyncio.wait(opening, return_when=asyncio.FIRST_COMPLETED)
            yield _lazy_layers(openings)
            if opening:
                await asyncio.sleep(pause_s)
    finally:
        for one in opening:
            one.cancel()


def _lazy_layers(openings: Mapping[str, SharedWork[Layer]]) -> Mapping[str, Layer]:
    found = {digest: opening.result for digest, opening in openings.items()}
    return {digest: layer for digest, layer in found.items() if layer is not None and layer.shown}

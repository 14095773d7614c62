"""Taking a layer over: deciding it, checking it against the manifest that containerd verified, recording it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from weakref import WeakValueDictionary

from agent.layers import fixup
from agent.snapshotter import labels
from agent.snapshotter.metadata import Row
from agent.snapshotter.model import LayerRequest, TakenLayer
from agent.snapshotter.packs import Packs
from agent.snapshotter.store import Store
from imgdist.errors import DeclinedError

log = logging.getLogger("imgdist.snapshotter")

AHEAD_TIMEOUT_S = 5.0
"""For recording a layer that nobody has asked for yet; who does meanwhile waits as long (a guess)."""


class TakeOver:
    """Answers one question of Prepare: is this layer here, without containerd unpacking it?

    Never raises for a layer that cannot be had: an error of Prepare would fail the pull, a decline only makes it an
    ordinary one. What it does raise (an unknown parent) the ordinary Prepare would raise too.
    """

    def __init__(self, store: Store, packs: Packs, timeout_s: float, release_soon: Callable[[], None]) -> None:
        """`release_soon` is called when a pack was mounted for nothing."""
        self._store = store
        self._packs = packs
        self._timeout_s = timeout_s
        self._release_soon = release_soon
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        # What more pulls at once would add is recorded when it is asked for.
        self._answered: asyncio.Queue[tuple[LayerRequest, Row]] = asyncio.Queue(maxsize=8)

    async def taken(self, parent: str, snapshot_labels: Mapping[str, str], remaining_s: float | None) -> bool:
        """True if a committed snapshot with this `snapshot.ref` on this parent is there now.

        `remaining_s` is what the client's deadline leaves; the wait for a layer ends before it, in a decline.
        """
        chain_id = snapshot_labels.get(labels.SNAPSHOT_REF, "")
        if self._packs.layers is None or not labels.is_digest(chain_id):
            return False
        timeout_s = self._timeout_s if remaining_s is None else min(self._timeout_s, remaining_s * 0.8)
        # Single flight per (layer, parent): of two pulls of one image the second waits and finds the first one's
        # row. If the first one's take-over fails or is cancelled, the second tries itself.
        async with self._lock(chain_id, parent):
            base = self._store.reading.parent(parent)
            parent_chain_id = base.chain_id if base else None
            if not _is_anchored(snapshot_labels, base, parent_chain_id):
                return False
            request = LayerRequest(
                chain_id=chain_id,
                parent_chain_id=parent_chain_id,
                diff_id=snapshot_labels.get(labels.DIFF_ID),
                source=labels.source(snapshot_labels),
                labels=snapshot_labels,
            )
            row = self._store.reading.taken_over(chain_id, parent)
            if row is None:
                row = await self._take(request, parent, timeout_s)
            elif not await self._is_usable(row):
                row = None
        if row is not None and not self._answered.full():
            self._answered.put_nowait((request, row))
        return row is not None

    async def run(self) -> None:
        """Record the layer above each one that was taken over, while the client deals with that: an image's layers are
        asked for one after the other. Runs until cancelled."""
        while True:
            below, base = await self._answered.get()
            found = self._packs.layers.above(below) if self._packs.layers is not None else None
            if found is not None:
                await self._record_ahead(below, base, *found)

    async def _record_ahead(self, below: LayerRequest, base: Row, chain_id: str, layer: TakenLayer) -> None:
        """A row that no client asks for goes when containerd collects its garbage, as one that a dead client left. What
        fails here is said when the layer is asked for."""
        parent = base.info.name
        try:
            async with self._lock(chain_id, parent), asyncio.timeout(AHEAD_TIMEOUT_S):
                if self._store.reading.taken_over(chain_id, parent) is None:
                    await self._record(LayerRequest(chain_id, below.chain_id, None, None, {}), parent, layer)
        except Exception as error:
            log.debug("layer %s is not recorded before it is asked for: %s", chain_id, error)
            self._release_soon()

    def _lock(self, chain_id: str, parent: str) -> asyncio.Lock:
        return self._locks.setdefault((chain_id, parent), asyncio.Lock())

    async def _is_usable(self, row: Row) -> bool:
        assert row.pack_id is not None
        try:
            await self._packs.mounted(row.pack_id)
        except Exception as error:
            log.warning("layer %s was taken over before but does not mount, declined now: %s", row.info.name, error)
            return False
        return True

    async def _take(self, request: LayerRequest, parent: str, timeout_s: float) -> Row | None:
        assert self._packs.layers is not None
        try:
            async with asyncio.timeout(timeout_s):
                layer = await self._packs.layers.take_over(request)
                row = await self._record(request, parent, layer)
        except DeclinedError as error:
            log.info("layer %s declined, an ordinary pull follows: %s", request.chain_id, error)
        except TimeoutError:
            log.warning("layer %s declined: not ready within %.1f s", request.chain_id, timeout_s)
        except Exception:
            log.exception("layer %s declined: taking it over failed", request.chain_id)
        else:
            return row
        self._release_soon()
        return None

    async def _record(self, request: LayerRequest, parent: str, layer: TakenLayer) -> Row:
        """Check the layer, plan its fix-up lower, write its row."""
        # First of all, so that no cancellation from here on leaves a mounted layer that nobody will ever release.
        self._packs.suspect(layer.pack_id)
        expected = labels.chain_id(request.parent_chain_id, layer.diff_id)
        if expected != request.chain_id:
            # Trust hangs on this: the chain ID comes from the image configuration that containerd verified.
            raise DeclinedError(
                f"pack {layer.pack_id} says diff ID {layer.diff_id}, which makes chain ID {expected} over"
                f" {request.parent_chain_id or 'nothing'}; expected {request.chain_id}: not the layer of this image"
            )
        if layer.hides and not parent:
            # Nothing lies below to be hidden, and containerd unpacks it in another way than the layers above it: a
            # whiteout removes what the layer itself has put there by then.
            raise DeclinedError(
                f"the first layer of an image hides {layer.hides[:200]!r}, which may be its own: only unpacking tells"
            )
        below: Sequence[fixup.Below] = []
        if layer.implied_directories:
            below = await self._packs.layered(self._store.reading.chain(parent))
        async with self._packs.lock(layer.pack_id):
            assert self._packs.layers is not None
            directory = await self._packs.layers.ensure_mounted(layer.pack_id)
            # In a thread of its own: reads of a lazy layer's directories may have to wait for their blocks.
            wanted: Mapping[bytes, fixup.Attributes] = {}
            if parent and layer.implied_directories:
                wanted = await asyncio.to_thread(fixup.plan, layer.implied_directories, directory, below)
            row = await self._store.do(
                self._store.record_taken, request.chain_id, parent, request.labels, layer.pack_id, wanted
            )
        log.info("layer %s taken over as pack %s", request.chain_id, layer.pack_id)
        return row


def _is_anchored(snapshot_labels: Mapping[str, str], base: Row | None, parent_chain_id: str | None) -> bool:
    """True if the parent's chain ID is known and is what the client says it is.

    A client that unpacks in parallel prepares all layers on the empty parent and links them at Commit; answering
    ALREADY_EXISTS there destroys the image (containerd#13264). It shows by naming another parent chain than it gives.
    """
    if base is not None and parent_chain_id is None:
        log.info("layer declined: chain ID of parent snapshot %s is not known", base.info.name)
        return False
    said = snapshot_labels.get(labels.PARENT_CHAIN_ID)
    if said is not None and said != parent_chain_id:
        log.info("layer declined: client says parent chain %s, gives %s", said, parent_chain_id)
        return False
    return True

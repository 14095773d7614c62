"""Taking a layer over: deciding it, checking it against the manifest that containerd verified, recording it."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from weakref import WeakValueDictionary

from agent.layers import fixup
from agent.snapshotter import labels
from agent.snapshotter.metadata import Row
from agent.snapshotter.model import LayerRequest, TakenLayer
from agent.snapshotter.packs import Packs
from agent.snapshotter.store import Store, Taken
from imgdist.errors import DeclinedError

log = logging.getLogger("imgdist.snapshotter")

AHEAD_TIMEOUT_S = 30.0
"""For recording layers that nobody has asked for yet; who does meanwhile waits as long (a guess: 33 syncs of a disk
that takes 0.5 s for one, and some)."""
AHEAD = 8
"""Layers that are recorded together before they are asked for (a guess)."""
AHEAD_LEFT = 12
"""With so many recorded and not asked for, more can wait: the more are recorded together, the cheaper is each, but it
takes up to 40 ms on a busy disk, in which a client deals with eight (a guess)."""
DECLINED_MAX = 256
"""Layers of which it is remembered why they were not taken over, the last ones."""


_Asked = tuple[LayerRequest, TakenLayer]


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
        self._declined: OrderedDict[str, str] = OrderedDict()

    def declined(self, chain_id: str) -> str | None:
        """Why a layer was not taken over when it was last asked for."""
        return self._declined.get(chain_id)

    async def taken(self, parent: str, snapshot_labels: Mapping[str, str], remaining_s: float | None) -> bool:
        """True if a committed snapshot with this `snapshot.ref` on this parent is there now.

        `remaining_s` is what the client's deadline leaves; the wait for a layer ends before it, in a decline.
        """
        chain_id = snapshot_labels.get(labels.SNAPSHOT_REF, "")
        self._declined.pop(chain_id, None)
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
            row = self._row(chain_id, parent)
            if row is None:
                row = await self._take(request, parent, timeout_s)
            elif not await self._is_usable(row):
                row = None
        if row is not None and not self._answered.full():
            self._answered.put_nowait((request, row))
        return row is not None

    async def run(self) -> None:
        """Record the layers above one that was taken over, while the client deals with that: an image's layers are
        asked for one after the other. Runs until cancelled."""
        while True:
            below, base = await self._answered.get()
            try:
                async with asyncio.timeout(AHEAD_TIMEOUT_S):
                    await self._record_ahead(below, base)
            except Exception as error:  # said when the layer is asked for
                log.debug("layers above %s are not recorded before they are asked for: %s", below.chain_id, error)
                self._release_soon()

    async def _record_ahead(self, below: LayerRequest, base: Row) -> None:
        """Rows that no client asks for go when containerd collects its garbage, as those that a dead client left."""
        assert self._packs.layers is not None
        above = deque(self._packs.layers.above(below, AHEAD_LEFT + AHEAD))
        left = [base.info.name, *(chain_id for chain_id, _ in above)][: AHEAD_LEFT + 1]
        if len(left) > 1 and self._row(left[-1], left[-2]) is not None:
            return
        while above and (row := self._row(above[0][0], base.info.name)) is not None:
            below, base = _unasked(above.popleft()[0], below), row
        stack: list[_Asked] = []
        for chain_id, layer in islice(above, AHEAD):
            below = _unasked(chain_id, below)
            stack.append((below, layer))
        if stack:
            await self._record_unless_there(base.info.name, stack)

    async def _record_unless_there(self, base: str, stack: Sequence[_Asked]) -> None:
        async with AsyncExitStack() as locks:
            parent = base
            for request, _ in stack:  # from below up; nobody else takes more than one
                await locks.enter_async_context(self._lock(request.chain_id, parent))
                parent = request.chain_id
            # Without the first none of those above it has a row either.
            if self._row(stack[0][0].chain_id, base) is None:
                await self._record(base, stack)

    def _row(self, chain_id: str, parent: str) -> Row | None:
        return self._store.reading.taken_over(chain_id, parent)

    def _lock(self, chain_id: str, parent: str) -> asyncio.Lock:
        return self._locks.setdefault((chain_id, parent), asyncio.Lock())

    async def _is_usable(self, row: Row) -> bool:
        assert row.pack_id is not None
        try:
            await self._packs.mounted(row.pack_id)
        except Exception as error:
            log.warning("layer %s was taken over before but does not mount, declined now: %s", row.info.name, error)
            self._note(row.chain_id or row.info.name, f"it does not mount: {error}")
            return False
        return True

    async def _take(self, request: LayerRequest, parent: str, timeout_s: float) -> Row | None:
        assert self._packs.layers is not None
        try:
            async with asyncio.timeout(timeout_s):
                layer = await self._packs.layers.take_over(request)
                (row,) = await self._record(parent, [(request, layer)])
        except DeclinedError as error:
            log.info("layer %s declined, an ordinary pull follows: %s", request.chain_id, error)
            self._note(request.chain_id, str(error))
        except TimeoutError:
            log.warning("layer %s declined: not ready within %.1f s", request.chain_id, timeout_s)
            self._note(request.chain_id, f"it was not ready within {timeout_s:.1f} s")
        except Exception as error:
            log.exception("layer %s declined: taking it over failed", request.chain_id)
            self._note(request.chain_id, f"taking it over failed: {error!r}")
        else:
            return row
        self._release_soon()
        return None

    def _note(self, chain_id: str, reason: str) -> None:
        self._declined.pop(chain_id, None)
        self._declined[chain_id] = reason
        if len(self._declined) > DECLINED_MAX:
            self._declined.popitem(last=False)

    async def _record(self, parent: str, stack: Sequence[_Asked]) -> list[Row]:
        """Check layers, each on the one before and the first on `parent`, plan their fix-up lowers, write their rows in
        one go. What lies above the first that gets a fix-up lower is left out."""
        packs = [layer.pack_id for _, layer in stack]
        for place, (request, layer) in enumerate(stack):
            # First of all, so that no cancellation from here on leaves a mounted layer that nobody will ever release.
            self._packs.suspect(layer.pack_id)
            _check(request, layer, is_first=not parent and place == 0)
        below: Sequence[fixup.Below] = []
        is_planned = parent and any(layer.implied_directories for _, layer in stack)
        if is_planned:
            below = await self._packs.layered(self._store.reading.chain(parent))
        async with self._packs.locked(packs):
            assert self._packs.layers is not None
            places = [await self._packs.layers.ensure_mounted(pack_id) for pack_id in packs]
            try:
                await self._packs.layers.settle(packs)
            except OSError as error:
                raise DeclinedError(f"its pack cannot be made durable: {error}") from error
            plans: Sequence[Mapping[bytes, fixup.Attributes]] = [{}] * len(stack)
            if is_planned:
                # In a thread of its own: reads of a lazy layer's directories may have to wait for their blocks.
                implied = [layer.implied_directories for _, layer in stack]
                plans = await asyncio.to_thread(_planned, list(zip(implied, places, strict=True)), below)
            taken = [
                Taken(request.chain_id, request.labels, layer.pack_id, wanted)
                for (request, layer), wanted in zip(stack, plans, strict=False)
            ]
            rows = await self._store.do(self._store.record_taken, parent, taken)
        for one in taken:
            log.info("layer %s taken over as pack %s", one.chain_id, one.pack_id)
        return rows


def _unasked(chain_id: str, below: LayerRequest) -> LayerRequest:
    """The request for the layer above that of another, as far as it is known before it is made."""
    return LayerRequest(chain_id, below.chain_id, None, None, {})


def _check(request: LayerRequest, layer: TakenLayer, *, is_first: bool) -> None:
    """DeclinedError unless a layer is what was asked for, and can be shown where it is in its image."""
    expected = labels.chain_id(request.parent_chain_id, layer.diff_id)
    if expected != request.chain_id:
        # Trust hangs on this: the chain ID comes from the image configuration that containerd verified.
        raise DeclinedError(
            f"pack {layer.pack_id} says diff ID {layer.diff_id}, which makes chain ID {expected} over"
            f" {request.parent_chain_id or 'nothing'}; expected {request.chain_id}: not the layer of this image"
        )
    if layer.hides and is_first:
        # Nothing lies below to be hidden, and containerd unpacks it in another way than the layers above it: a
        # whiteout removes what the layer itself has put there by then.
        raise DeclinedError(
            f"the first layer of an image hides {layer.hides[:200]!r}, which may be its own: only unpacking tells"
        )


def _planned(
    layers: Sequence[tuple[Sequence[bytes], str]], below: Sequence[fixup.Below]
) -> list[Mapping[bytes, fixup.Attributes]]:
    """The fix-up lowers of layers, each (implied directories, where it is mounted) on the one before and the first on
    `below`, up to one that gets any: where that will be is not known yet."""
    plans: list[Mapping[bytes, fixup.Attributes]] = []
    for implied, directory in layers:
        plans.append(fixup.plan(implied, directory, below))
        if plans[-1]:
            break
        below = [[directory], *below]
    return plans


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

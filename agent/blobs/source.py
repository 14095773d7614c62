"""The blobs of this node, each taken once for all who read it at the same time (`imgdist.oci.blobs.BlobSource`)."""

from __future__ import annotations

import asyncio
import logging
import time

from agent.blobs.reader import NodeBlob
from agent.blobs.taking import Taking
from agent.catalog import Catalog
from agent.chunkstore import ChunkStore
from agent.early import EarlyLayers, Swarm
from agent.earlystore import EarlyStore
from agent.supernodes import Supernodes
from agent.transfer.transfers import Transfers
from agent.work import SharedWork
from imgdist.errors import DeclinedError, ImgdistError
from imgdist.oci.reference import Reference, is_sha256
from imgdist.pack.index import IndexFollower
from imgdist.pack.kinds import Kind

log = logging.getLogger("imgdist.agent")

RENEW_S = 5.0
"""Between two requests to fetch a blob again that a supernode has lost (a guess)."""


class Blobs:
    """On the event loop. What is here is read without asking anybody; who may have it is asked before, elsewhere."""

    def __init__(
        self,
        supernodes: Supernodes,
        catalog: Catalog,
        chunks: ChunkStore,
        transfers: Transfers,
        tasks: asyncio.TaskGroup,
        swarm: Swarm | None = None,
    ) -> None:
        """`swarm` is told of the stores of blobs that have no seal yet."""
        self._supernodes = supernodes
        self._catalog = catalog
        self._transfers = transfers
        self._tasks = tasks
        self._swarm = swarm
        self._takings: dict[str, Taking] = {}
        self._by_node: dict[int, Taking] = {}
        self._renewing: set[str] = set()
        self._arrived_at = float("-inf")
        self._early = EarlyLayers(chunks, transfers, tasks, swarm=self, kind=Kind.RAW)
        transfers.listen(self._here)

    async def size(self, blob: Reference, *, authorization: str | None = None) -> int:
        """As BlobSource's; always asked of a supernode, which asks whether who shows `authorization` may have it."""
        _checked(blob)
        return await self._supernodes.blob_size(blob, authorization)

    async def open(self, blob: Reference, *, authorization: str | None = None, size: int | None = None) -> NodeBlob:
        """As BlobSource's. Who joins a taking that fails before its size is known tries once more: the first may have
        had no access."""
        digest = _checked(blob)
        is_retry = False
        while True:
            taking = self._takings.get(digest)
            if taking is not None and (taking.is_leaving or taking.error is not None):
                await taking.over.wait()
                continue
            is_mine = taking is None
            if taking is None:
                taking = self._begin(blob, authorization, size)
            taking.readers += 1
            try:
                while taking.size is None and taking.error is None:
                    await taking.changed.wait()
                if taking.error is None:
                    return NodeBlob(taking)
            except BaseException:
                taking.leave()
                raise
            taking.leave()
            if is_mine or is_retry:
                raise taking.error
            is_retry = True

    def lost(self, pack_id: str) -> None:
        """A supernode has the pack no more: the blob is fetched anew there, which makes the same pack."""
        for taking in self._takings.values():
            if taking.layer is not None and taking.layer.pack_id == pack_id and taking.digest not in self._renewing:
                self._renewing.add(taking.digest)
                SharedWork(self._tasks, self._renew(taking))

    # What EarlyLayers tells of stores without a seal (early.Swarm).

    def begin(self, early: EarlyStore) -> None:
        """As early.Swarm."""
        if self._swarm is not None:
            self._swarm.begin(early)
        for taking in self._takings.values():
            if taking.name == early.name:
                taking.took(early)

    def end(self, early: EarlyStore) -> None:
        """As early.Swarm."""
        self._by_node.pop(early.node, None)
        if self._swarm is not None:
            self._swarm.end(early)

    def _begin(self, blob: Reference, authorization: str | None, size: int | None) -> Taking:
        taking = Taking(
            blob,
            self._supernodes,
            self._catalog,
            self._transfers,
            self._early,
            authorization=authorization,
            size=size,
            at=self._by_node.__setitem__,
            idle_s=lambda: time.monotonic() - self._arrived_at,
        )
        SharedWork(self._tasks, self._run(taking))
        self._takings[taking.digest] = taking
        return taking

    async def _run(self, taking: Taking) -> None:
        try:
            await taking.run()
        finally:
            del self._takings[taking.digest]
            if taking.layer is not None:
                self._by_node.pop(taking.layer.store.node, None)
            taking.over.set()

    def _here(self, node: int, chunk: int) -> None:
        """From any thread."""
        taking = self._by_node.get(node)
        if taking is not None:
            self._arrived_at = time.monotonic()
            taking.arrived()

    async def _renew(self, taking: Taking) -> None:
        log.warning("blob %s is wanted and its supernode has it no more: it is fetched again", taking.blob)

        def ignore(follower: IndexFollower) -> None:
            return

        try:
            await self._supernodes.follow_blob(
                taking.blob, ignore, authorization=taking.authorization, size=taking.size
            )
        except ImgdistError as error:
            log.warning("%s cannot be fetched again yet: %s", taking.blob, error)
        await asyncio.sleep(RENEW_S)
        self._renewing.discard(taking.digest)


def _checked(blob: Reference) -> str:
    """The blob's digest; DeclinedError if it is not one that packs are named by."""
    if blob.digest is None or not is_sha256(blob.digest):
        raise DeclinedError(f"{blob}: only blobs with a sha256 digest are kept here")
    return blob.digest

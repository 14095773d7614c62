"""What becomes of a revoked pack on this node: named, given up for new mounts, replaced, and at last removed.

Running containers keep what they have: a read-only file system is not taken from under them, they are named instead.
Their image's next container is built on the pack that the layer converts to, as soon as a supernode has it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress

from agent.catalog import Catalog
from agent.images import Images
from agent.layer import Layer
from agent.mounts import user_of
from agent.revocations import Revocation, Revocations, RevokedLayer
from agent.snapshotter.packs import Sharing
from agent.space.disk import shown_by_loops
from agent.work import SharedWork
from imgdist.errors import ImgdistError, TemporaryError
from imgdist.proving.verdict import Verdict
from imgdist.wire.tracker import Revocation as Told

log = logging.getLogger("imgdist.agent")

ROUNDS_S = (1.0, 30.0)
"""Between two looks at revoked packs, whether another can be had, whether nobody uses them any more: first after
something happened, at most; doubling (guesses)."""
THIS_NODE = "this node"


class Withdrawal:
    """On the event loop. `report(pack_id)` has supernodes look at a pack; with `block` nothing new is built on a
    revoked one."""

    def __init__(
        self,
        revocations: Revocations,
        images: Images,
        catalog: Catalog,
        sharing: Sharing,
        tasks: asyncio.TaskGroup,
        *,
        block: bool,
        report: Callable[[str], Awaitable[Iterable[tuple[str, Verdict | ImgdistError]]]],
    ) -> None:
        self._revocations = revocations
        self._images = images
        self._catalog = catalog
        self._sharing = sharing
        self._tasks = tasks
        self._block = block
        self._report = report
        self._wake = asyncio.Event()
        self._named: set[tuple[str, str]] = set()  # (pack, user): in the log once
        self.used_by: Mapping[str, list[str]] = {}
        """By revoked pack, the containers and mounts that are built on it, as of the latest look."""

    def refused(self, pack_id: str) -> str | None:
        """Why nothing new may be built on a pack; None if it may."""
        return self._revocations.reason(pack_id) if self._block else None

    def found(self, layer: Layer, verdict: Verdict) -> None:
        """This node has looked at a layer of its own."""
        if verdict.outcome == "false":
            self.revoke(layer.pack_id, verdict.reason, THIS_NODE)
        if verdict.outcome in ("false", "unproven"):
            self.suspect(layer.pack_id)
        if verdict.outcome == "damaged":
            with suppress(TemporaryError):
                SharedWork(self._tasks, self._drop(layer.pack_id))

    def suspect(self, pack_id: str) -> None:
        """Have the supernodes look at a pack."""
        with suppress(TemporaryError):  # the agent is stopping
            SharedWork(self._tasks, self._tell(pack_id))

    def told(self, by: str, revoked: Iterable[Told]) -> None:
        """A supernode has revoked packs: who hands out packs may well take them back."""
        for one in revoked:
            self.revoke(one.pack, one.reason, by)

    def revoke(self, pack_id: str, reason: str, by: str) -> None:
        """The pack is not what its layers convert to."""
        layers = tuple(
            RevokedLayer(f"{image.name}@{image.manifest_digest}", image.manifest_digest, layer.digest, layer.diff_id)
            for image in self._images.known.with_pack(pack_id)
            for layer in image.layers
            if layer.pack_id == pack_id
        )
        if not self._revocations.add(Revocation(pack_id, reason, by, time.time(), layers)):
            return
        self._images.give_up(pack_id)
        if layers or self._catalog.get(pack_id) is not None:
            names = sorted({layer.reference for layer in layers})
            log.error("pack %s is revoked by %s: %s; images: %s", pack_id, by, reason, ", ".join(names) or "none known")
        self._wake.set()

    def wake(self) -> None:
        """Something came out of use."""
        self._wake.set()

    async def run(self) -> None:
        """Withdraw what is revoked, until cancelled."""
        first_s, most_s = ROUNDS_S
        wait_s = first_s
        while True:
            try:
                await self.look()
            except (ImgdistError, OSError, sqlite3.Error) as error:
                log.warning("revoked packs are looked at later: %s", error)
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
                wait_s = first_s
            except TimeoutError:
                wait_s = min(2 * wait_s, most_s)
            self._wake.clear()

    async def look(self) -> None:
        """Replace what can be replaced, remove what nobody uses, name who runs on the rest."""
        for revocation in self._revocations.all():
            if await self._sharing.is_used(revocation.pack_id):
                await self._replace(revocation)
            if self._catalog.get(revocation.pack_id) is not None:
                await self._drop(revocation.pack_id)
        self.used_by = await self._users() if self._revocations.all() else {}
        for pack_id, users in self.used_by.items():
            for user in users:
                if (pack_id, user) not in self._named:
                    self._named.add((pack_id, user))
                    log.error("%s runs on revoked pack %s; start it anew", user, pack_id)

    async def _users(self) -> Mapping[str, list[str]]:
        """Who is built on a revoked pack, or was when it was replaced: what is mounted stays as it is."""
        built_on = await self._sharing.built_on()
        active = {info.name: info for infos in built_on.values() for info in infos}
        found = {}
        for revocation in self._revocations.all():
            names = [info.name for info in built_on.get(revocation.pack_id, ())]
            if self._catalog.get(revocation.pack_id) is not None:
                names += [name for name in revocation.outlived if name in active]
            if names:
                found[revocation.pack_id] = sorted({user_of(active[name]) for name in names})
        return found

    async def _replace(self, revocation: Revocation) -> None:
        """Build the snapshots of the pack on another pack of the same layer, if one can be had."""
        pack_id = revocation.pack_id
        for layer in revocation.layers:
            try:
                found = await self._images.layer(layer.reference, layer.digest, layer.manifest_digest)
                is_same = found.store.index.diff_id == layer.diff_id
                is_replaced = is_same and await self._replace_by(pack_id, found.pack_id)
            except (ImgdistError, OSError) as error:
                log.warning("layer %s has no pack yet that could replace a revoked one: %s", layer.digest, error)
                continue
            if is_replaced:
                log.warning("layer %s: what is new is built on pack %s", layer.digest, found.pack_id)
                return

    async def _replace_by(self, pack_id: str, by: str) -> bool:
        """False if the other pack is gone already: nobody used it, and space was short."""
        async with self._sharing.lock(by):
            if self._catalog.get(by) is None:
                return False
            await self._catalog.settle([by])
            built_on = await self._sharing.built_on()
            # Before the rows: else a death in between would lose who runs on it. After, those that came meanwhile.
            self._revocations.replaced(pack_id, [info.name for info in built_on.get(pack_id, ())])
            outlived = await self._sharing.replace(pack_id, by)
            self._revocations.replaced(pack_id, [info.name for info in outlived])
        return True

    async def _drop(self, pack_id: str) -> None:
        """Remove a pack that no snapshot uses and no loop device shows: what is left of it in running containers reads
        on, and it is tried again."""
        async with self._sharing.lock(pack_id):
            layer = self._catalog.get(pack_id)
            if layer is None or await self._sharing.is_used(pack_id):
                return
            with suppress(ImgdistError, OSError):  # busy
                await self._catalog.unmount(pack_id)
                shown = await asyncio.to_thread(shown_by_loops, layer.store.directory.parent)
                if pack_id not in shown and await self._catalog.remove(pack_id):
                    log.warning("pack %s is removed", pack_id)

    async def _tell(self, pack_id: str) -> None:
        for url, answer in await self._report(pack_id):
            log.info("pack %s, looked at by the supernode at %s: %s", pack_id, url, answer)
            if isinstance(answer, Verdict) and answer.outcome == "false":
                self.revoke(pack_id, answer.reason, url)

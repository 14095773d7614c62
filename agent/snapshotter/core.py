"""The snapshotter: every call of containerd's snapshots.v1, without its transport.

Ordinary layers are kept as containerd's own overlayfs snapshotter keeps them. Layers that this node can show without
unpacking are taken over: committed at once under their chain ID, which the client learns from AlreadyExistsError.
Both kinds mix in one chain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from agent.layers.idmap import IdMaps
from agent.snapshotter import disk, filters, labels
from agent.snapshotter.metadata import Row
from agent.snapshotter.model import AlreadyExistsError, Info, Kind, Layers, Mount, PreconditionError, Usage
from agent.snapshotter.mounts import mounts
from agent.snapshotter.packs import Packs, Sharing
from agent.snapshotter.store import Store
from agent.snapshotter.takeover import TakeOver
from agent.space.room import MakeRoom, no_room, with_room
from imgdist.errors import ImgdistError, UnsupportedError

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("imgdist.snapshotter")

TAKE_OVER_TIMEOUT_S = 600.0
"""Upper bound of one take-over. Layers decline by themselves long before (1.2 times a plain pull's estimate); this
one is for bugs, and for clients without a deadline (ctr, nerdctl)."""

_RECOVERED_AT_ONCE = 8  # one that waits for a supernode that is away does not keep the others; a guess

_RETRY_S = (0.5, 60.0)  # first and longest wait between attempts to remove what was in use: a guess


@dataclass(frozen=True)
class Recovered:
    """What a start found: snapshots whose directory is gone, and packs that could not be mounted, with the reason."""

    missing: tuple[str, ...]
    unmounted: Mapping[str, str]


class Snapshotter:
    """All calls come from one event loop. Errors: NotFoundError, AlreadyExistsError, PreconditionError, UsageError
    (imgdist.errors and model.py); what `Layers` raises when a layer of a chain does not mount."""

    def __init__(
        self,
        root: Path,
        layers: Layers | None,
        *,
        take_over_timeout_s: float = TAKE_OVER_TIMEOUT_S,
        sharing: Sharing | None = None,
        user: str = "a snapshot",
        make_room: MakeRoom = no_room,
    ) -> None:
        """State lives in `root`/snapshots and `root`/snapshots.db. `layers` None: an ordinary overlayfs snapshotter.

        Snapshotters that have the same `layers` must have one `sharing`, or one unmounts what the other uses; `user`
        is what people call the snapshots of this one. `make_room` is asked to free space when the disk is full.
        """
        self._store = Store(root)
        self._metadata = self._store.metadata
        self._reading = self._store.reading
        self._directories = self._store.directories
        self._packs = Packs(self._store, layers, sharing or Sharing(), user)
        self._make_room = make_room
        # containerd's choice: with index, a lower directory mounted twice with other uppers is refused.
        self._overlay_options = ("index=off",) if Path("/sys/module/overlay/parameters/index").exists() else ()
        self._id_maps = IdMaps()
        self._cleaning = asyncio.Lock()
        self._work_left = asyncio.Event()
        self._take_over = TakeOver(self._store, self._packs, take_over_timeout_s, self._work_left.set)

    def close(self) -> None:
        """Close the database. No call may be running."""
        self._store.close()

    async def recover(self) -> Recovered:
        """Mount every layer that snapshots use, and say what is not as the rows have it. Serve meanwhile: a container's
        Prepare mounts what it needs by itself."""
        lost = await self._store.do(self._store.mend)
        unmounted: dict[str, str] = {}
        few = asyncio.Semaphore(_RECOVERED_AT_ONCE)

        async def mount_one(pack_id: str) -> None:
            try:
                async with few:
                    await self._packs.mounted(pack_id)
            except Exception as error:
                log.error("layer %s, which snapshots use, does not mount: %s", pack_id, error)
                unmounted[pack_id] = str(error)

        await asyncio.gather(*(mount_one(pack_id) for pack_id in await self.packs_in_use()))
        missing = [row.info.name for row in lost if not await self._remade(row)]
        return Recovered(tuple(missing), unmounted)

    async def run(self) -> None:
        """What is done beside calls, until cancelled: layers that will be asked for next are recorded, and what Remove
        left, and what was in use when Cleanup came, is removed."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_over.run())
            tasks.create_task(self._remove_forever())

    async def _remove_forever(self) -> None:
        delay_s = _RETRY_S[0]
        while True:
            self._work_left.clear()
            try:
                done = await self._clean()
            except (OSError, sqlite3.Error):
                log.exception("cleaning up failed, will be tried again")
                done = False
            wait_s = None if done else delay_s
            delay_s = _RETRY_S[0] if done else min(delay_s * 2, _RETRY_S[1])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._work_left.wait()

    async def packs_in_use(self) -> list[str]:
        """Packs that snapshots refer to, in the order of first use."""
        return await self._store.do(self._metadata.packs)

    async def users(self) -> list[tuple[str, Info]]:
        """(pack, snapshot) for each active snapshot or view and each pack that it is built on."""
        return await self._store.do(self._metadata.users)

    async def prepare(
        self, key: str, parent: str, snapshot_labels: Mapping[str, str], remaining_s: float | None = None
    ) -> list[Mount]:
        """A writable snapshot over `parent`. With `snapshot.ref` among the labels it is a layer's, and may be taken
        over: AlreadyExistsError. `remaining_s`: what the client's deadline leaves."""
        if await self._take_over.taken(parent, snapshot_labels, remaining_s):
            # Not which: a text that is always the same is one byte of HPACK, another is encoded letter by letter.
            raise AlreadyExistsError("the layer is here already")
        return await self._create(Kind.ACTIVE, key, parent, snapshot_labels)

    def declined(self, chain_id: str) -> str | None:
        """Why a layer was not taken over when `prepare` was last asked for it."""
        return self._take_over.declined(chain_id)

    async def view(self, key: str, parent: str, snapshot_labels: Mapping[str, str]) -> list[Mount]:
        """A read-only snapshot of `parent`."""
        return await self._create(Kind.VIEW, key, parent, snapshot_labels)

    async def mounts(self, key: str) -> list[Mount]:
        """The mounts of an active snapshot or a view, as Prepare or View gave them."""
        row = self._reading.get(key)
        if row.info.kind == Kind.COMMITTED:
            raise PreconditionError(f"snapshot {key!r} is committed, only active ones and views have mounts")
        return await self._mounts(row)

    async def commit(self, name: str, key: str, snapshot_labels: Mapping[str, str], parent: str = "") -> None:
        """Make `key` the committed snapshot `name`; `parent` if it was prepared without one."""
        row = await self._store.do(self._metadata.get, key)
        used = await asyncio.to_thread(disk.usage, self._directories.place(row.id).upper)
        await self._write(self._metadata.commit, name, key, snapshot_labels, parent, used)

    async def remove(self, key: str) -> None:
        """Forget a snapshot. Only rows change here: containerd holds its metadata lock meanwhile, with no deadline."""
        await self._write(self._metadata.remove, key)
        self._work_left.set()

    async def stat(self, key: str) -> Info:
        return self._reading.get(key).info

    async def update(self, info: Info, paths: Sequence[str]) -> Info:
        """Replace the labels named by `paths` ("labels", "labels.x"; none: all)."""
        return (await self._write(self._metadata.update, info, paths)).info

    async def walk(self, wanted: Sequence[str] = ()) -> list[Info]:
        """Snapshots that match any of the filters (filters.py), oldest first."""
        match = filters.parse(wanted)
        if match.required(("parent",)) is not None:
            return [row.info for row in self._reading.matching(match)]
        return [row.info for row in await self._store.do(self._metadata.matching, match)]

    async def usage(self, key: str) -> Usage:
        """Local disk space of a snapshot, its parents excluded. An active one is measured now, a committed one was
        measured when it was committed, a taken-over layer counts what its pack has on this disk."""
        row = self._reading.get(key)
        used = row.usage
        if row.info.kind == Kind.ACTIVE or (row.pack_id is not None and row.has_directory):
            used = await asyncio.to_thread(disk.usage, self._directories.place(row.id).upper)
        return used if row.pack_id is None else used + await self._packs.usage(row)

    async def cleanup(self) -> None:
        """Remove what no snapshot uses. What is in use goes later, by itself."""
        if not await self._clean():
            self._work_left.set()

    async def _remade(self, row: Row) -> bool:
        """Whether the lost directory of a snapshot could be made again: what a layer's fix-up lower holds follows from
        the layers, what a container or an unpacked layer had written is gone."""
        name, place = row.info.name, self._directories.place(row.id).upper
        try:
            if row.pack_id is not None:
                chain = self._reading.chain(row.info.parent)
                wanted = await self._packs.fixup_of(row.pack_id, await self._packs.layered(chain))
                await self._store.do(self._store.remake_fixup, row, wanted)
                log.warning("snapshot %s had lost its directory %s: made again", name, place)
                return True
        except (ImgdistError, OSError) as error:
            log.error("snapshot %s has lost its directory %s, not made again: %s", name, place, error)
        else:
            log.error("snapshot %s has lost its directory %s and what was written there", name, place)
        return False

    async def _create(self, kind: Kind, key: str, parent: str, snapshot_labels: Mapping[str, str]) -> list[Mount]:
        row = await self._write(self._store.create, kind, key, parent, snapshot_labels)
        try:
            if labels.SNAPSHOT_REF not in snapshot_labels:
                await self._packs.starting(self._reading.chain(parent))
            return await self._mounts(row)
        except BaseException:
            # The client will not learn of the key, or not believe in it: it must be free for the next attempt.
            await asyncio.shield(self.remove(key))
            raise

    async def _mounts(self, row: Row) -> list[Mount]:
        chain = self._reading.chain(row.info.parent)
        lowers = await self._packs.lowers(chain)
        is_lazy = any(below.pack_id is not None for below in chain)
        id_mapping = labels.id_mapping(row.info.labels)
        if id_mapping and is_lazy and not await asyncio.to_thread(self._id_maps.can_map, lowers):
            raise UnsupportedError(
                f"snapshot {row.info.name!r}: expected lower directories whose ids can be mapped for a user namespace, "
                "this kernel cannot map those of layers on demand (EROFS: from Linux 5.19 on); run the pod without a "
                "user namespace, or pull its image with snapshotter overlayfs"
            )
        return mounts(
            row.info.kind,
            self._directories.place(row.id),
            lowers,
            separate_file_systems=is_lazy,
            overlay_options=self._overlay_options,
            id_mapping=id_mapping,
        )

    async def _write(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`Store.do` for what changes the disk: tried again if the disk is full and space can be had, at last that of
        the ballast, so that containers start and snapshots are removed on a full disk, too."""
        return await with_room(
            lambda: self._store.do(function, *args, **kwargs),
            lambda: self._make_room(0),
            lambda: self._store.do(self._store.give_up_ballast),
        )

    async def _clean(self) -> bool:
        """One round; False if something is left. Rounds do not overlap: two would remove the same trees."""
        async with self._cleaning:
            rubbish = await self._store.do(lambda: self._directories.rubbish(self._metadata.directories()))
            removed = await asyncio.to_thread(lambda: [disk.remove(directory) for directory in rubbish])
            held = await self._packs.release_unreferenced()
            await self._store.do(self._store.restore_ballast)
            return all(removed) and not held

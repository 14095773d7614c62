"""The packs on an agent's disk: ROOT/packs/<pack id>/{index,image,present,node,frames}.

A chunk counts as present only if its bytes are proven (see `LayerStore`): within one boot the page cache vouches for
what was written after verification, over a clean mark the disk does, and otherwise present chunks are hashed again,
before the pack is mounted and not at the start, which has a socket to serve. A pack keeps its own node number: it names
the mount that shows the pack, which may outlive agent.db.
Directories that are half made (`.new-*`), half removed (`.gone-*`) or of layers without a seal (`.part-*`, see
`EarlyStore`) are cleared away at the next start.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from agent.database import Database, Twin
from agent.earlystore import EarlyStore
from agent.frames import Frames
from agent.imagefile import ImageFile
from agent.layerstore import LayerStore, write_new
from agent.space.disk import directory_bytes, is_full
from fuse.present import PresentMap, current_boot_id
from imgdist.errors import CorruptError, NewerFormatError, ProtocolError
from imgdist.pack import BLOCK
from imgdist.pack.codec import decode_into
from imgdist.pack.index import Index, IndexFollower
from imgdist.wire.control import Body

__all__ = ["ChunkStore", "LayerStore"]

_PACK_ID = re.compile("[0-9a-f]{64}")
_UNFINISHED = (".new-", ".gone-", ".part-")

_log = logging.getLogger("imgdist.agent")


class ChunkStore:
    """All packs under one directory. Creation, removal and look-up may come from any thread.

    `keep_frames`: chunks are also kept as they came, for other agents; otherwise what was kept before is removed.
    """

    def __init__(self, packs: Path, database: Database, *, keep_frames: bool = False) -> None:
        self._packs = packs
        self._keep_frames = keep_frames
        self.frames_paused = False
        """Whether packs that are made now keep no bodies: space is short."""
        self._database = database
        self._boot_id = current_boot_id()
        self._lock = threading.Lock()  # guards the table; held for look-ups only
        self._making = threading.Lock()  # one pack is made, opened or removed at a time: two jobs may share a layer
        self._stores: dict[bytes, LayerStore] = {}
        self._early: dict[int, EarlyStore] = {}
        self._early_nodes = itertools.count(-1, -1)  # never a layer's: the view does not know them
        packs.mkdir(parents=True, exist_ok=True)

    def recover(self) -> list[LayerStore]:
        """At start: open what is on disk, unread (`LayerStore.is_proven`); what is broken is removed and named."""
        found = sorted(self._packs.iterdir())
        # First of all, so that no new number is one that another pack has kept.
        self._database.reserve(max((_kept_node(path) or 0 for path in found), default=0))
        for path in found:
            if path.name.startswith(_UNFINISHED):
                shutil.rmtree(path)
            elif _PACK_ID.fullmatch(path.name):
                self._recover(path)
        for node, pack_id in self._database.packs().items():
            if pack_id not in self._stores:
                self._forget(node, pack_id)
        return self.stores()

    def stores(self) -> list[LayerStore]:
        """Every open pack."""
        with self._lock:
            return list(self._stores.values())

    def get(self, pack_id: bytes) -> LayerStore | None:
        """The open pack of that id."""
        with self._lock:
            return self._stores.get(pack_id)

    def twins(self, store: LayerStore) -> list[tuple[int, LayerStore, int]]:
        """(chunk, other store, its chunk): where else on this disk a pack's chunks are, or will be, to copy from."""
        return self._to_copy(self._database.twins(store.node))

    def copies(self, store: EarlyStore, chunks: Iterable[int]) -> list[tuple[int, LayerStore, int]]:
        """As `twins`, for chunks of a layer without a seal."""
        return self._to_copy(self._database.holders((chunk, store.index.digest(chunk)) for chunk in chunks))

    def begin(self, name: str, follower: IndexFollower) -> EarlyStore:
        """A store for the chunks of the layer `name`, whose index is being followed; `create` takes it over, `discard`
        ends it in any case. One of a name at a time. OSError leaves nothing behind."""
        directory = self._packs / f".part-{name}"
        with self._making:
            try:
                store = EarlyStore(directory, name, next(self._early_nodes), follower)
            except OSError:
                shutil.rmtree(directory, ignore_errors=True)
                raise
            store.frames = self._frames(directory / "frames")
            with self._lock:
                self._early[store.node] = store
        return store

    def discard(self, store: EarlyStore) -> None:
        """Close it, once nobody uses it; what `create` did not take over is removed."""
        with self._lock:
            self._early.pop(store.node, None)
        store.close()

    def create(
        self,
        index_data: bytes,
        early: EarlyStore | None = None,
        bodies: Sequence[Body] = (),
        index: Index | None = None,
    ) -> LayerStore:
        """The store of the pack whose sealed index stream is given (`index`, if it is loaded already); the same one if
        it is here already.

        Disk space for the whole image is taken now: OSError (ENOSPC) leaves nothing behind. Raises CorruptError or
        ProtocolError for a bad index. What came before the seal is in `early`, to which nobody writes any more; it can
        be read on until it is discarded. Of chunks that came with the index (`bodies`), what is right is taken.
        """
        index = index or Index.load(index_data)
        with self._making:
            store = self.get(index.pack_id)
            if store is not None:
                return store
            fresh = early.directory if early is not None else self._packs / f".new-{index.pack_id.hex()}"
            try:
                present, image = self._lay_out(fresh, index, index_data, early)
                store = self._open_as_pack(fresh, index, present, image)
            except BaseException:
                if early is None:  # else it stays for another try: who discards it removes it
                    shutil.rmtree(fresh, ignore_errors=True)
                raise
            if early is not None:
                store.received += early.received
            _take(store, bodies)
            return store

    def renumber(self, store: LayerStore) -> None:
        """Give a pack another node number: what is mounted under its own is another pack. Nothing may know it yet."""
        with self._making:
            self._database.forget(store.node)
            store.node = self._node_of(store.pack_id)
            self._add_chunks(store.node, store.index)
            (store.directory / "node").write_text(str(store.node))

    def remove(self, store: LayerStore) -> None:
        """Free a pack's space once transfers let go of it. No view and no loop device may use it any more.

        The files go first: on a full disk there is no room to forget it in agent.db, which a start does as well.
        """
        gone = self._packs / f".gone-{store.pack_id.hex()}"
        with self._making:
            with self._lock:
                self._stores.pop(store.pack_id, None)
            store.abandon()
            shutil.rmtree(gone, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                store.directory.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
            self._forget(store.node, store.pack_id)

    def clear_leftovers(self, *, dry_run: bool = False) -> list[tuple[str, int]]:
        """Remove what dead attempts left; (name, bytes) of each that went, or would."""
        with self._making:
            with self._lock:
                alive = {early.directory.name for early in self._early.values()}
            names = [entry.name for entry in os.scandir(self._packs) if entry.name.startswith(_UNFINISHED)]
            found = [(name, directory_bytes(self._packs / name)) for name in names if name not in alive]
            for name, _ in () if dry_run else found:
                shutil.rmtree(self._packs / name, ignore_errors=True)
        return found

    def close(self) -> None:
        """Sync and close every pack; layers without a seal go."""
        with self._lock:
            stores, self._stores = list(self._stores.values()), {}
            early, self._early = list(self._early.values()), {}
        for unsealed in early:
            unsealed.close()
        for store in stores:
            try:
                store.close()
            except OSError as error:
                _log.error("pack %s: cannot be synced, a reboot will hash it: %s", store.pack_id.hex(), error)

    def _to_copy(self, found: Sequence[Twin]) -> list[tuple[int, LayerStore, int]]:
        if not found:
            return []
        by_node = {}
        for store in self.stores():
            with store.use() as usable:  # one that is being removed has no map any more
                if usable and store.is_proven:
                    by_node[store.node] = store
        return [(t.number, by_node[t.other_node], t.other_number) for t in found if t.other_node in by_node]

    def _lay_out(
        self, directory: Path, index: Index, index_data: bytes, early: EarlyStore | None
    ) -> tuple[PresentMap, ImageFile]:
        if early is not None:
            (directory / "present").unlink(missing_ok=True)  # of a try that found the disk full
            landed = early.landed_of(index)
            present = LayerStore.lay_out(directory, index, index_data, self._boot_id, early.image, landed)
            return present, _with(present, directory / "image")
        try:
            directory.mkdir()
        except FileExistsError:  # of a try that was cut short
            shutil.rmtree(directory)
            directory.mkdir()
        image = ImageFile(directory / "image", new=True)
        try:
            return LayerStore.lay_out(directory, index, index_data, self._boot_id, image), image
        except BaseException:
            image.close()
            raise

    def _open_as_pack(self, fresh: Path, index: Index, present: PresentMap, image: ImageFile) -> LayerStore:
        """Give a directory the name of its pack, and enter it; it keeps its own name if that fails."""
        directory = self._packs / index.pack_id.hex()
        try:
            fresh.rename(directory)
        except BaseException:
            _close(present, image)
            raise
        try:
            return self._enter(directory, index, present, image)
        except BaseException:
            directory.rename(fresh)
            raise

    def _node_of(self, pack_id: bytes, kept: int | None = None) -> int:
        """As Database.node_of. OSError where agent.db cannot be written."""
        try:
            return self._database.node_of(pack_id, kept)
        except sqlite3.Error as error:
            raise OSError(errno.ENOSPC if is_full(error) else errno.EIO, f"agent.db: {error}") from error

    def _add_chunks(self, node: int, index: Index) -> None:
        """So that others copy them; on a full disk there may be no room for that."""
        try:
            self._database.add_chunks(node, _findable(index))
        except sqlite3.Error as error:
            _log.warning("pack %s: nothing is copied from it until the next start: %s", index.pack_id.hex(), error)

    def _forget(self, node: int, pack_id: bytes) -> None:
        try:
            self._database.forget(node)
        except sqlite3.Error as error:
            _log.warning("pack %s is gone; agent.db forgets it at the next start: %s", pack_id.hex(), error)

    def _recover(self, directory: Path) -> None:
        try:
            self._open(directory, Index.load((directory / "index").read_bytes()))
        except NewerFormatError as error:
            _log.error("%s is of a newer release and is left alone: %s", directory, error)
        except (CorruptError, ProtocolError, FileNotFoundError) as error:
            _log.error("%s is broken and is removed; it is fetched again when needed: %s", directory, error)
            shutil.rmtree(directory)
        except OSError as error:
            _log.error("%s cannot be opened and is left alone until the next start: %s", directory, error)

    def _open(self, directory: Path, index: Index) -> LayerStore:
        if index.pack_id.hex() != directory.name:
            raise CorruptError(f"{directory} holds the index of pack {index.pack_id.hex()}")
        image_size = (directory / "image").stat().st_size
        present = PresentMap.open(directory / "present")
        if (image_size, present.blocks) != (index.image_size, index.image_size // BLOCK):
            present.close()
            raise CorruptError(f"{directory}: image of {image_size} bytes, its index says {index.image_size}")
        return self._enter(directory, index, present, _with(present, directory / "image"), _kept_node(directory))

    def _enter(
        self, directory: Path, index: Index, present: PresentMap, image: ImageFile, kept: int | None = None
    ) -> LayerStore:
        """The store of a pack's open files, which are closed if that fails."""
        try:
            node = self._node_of(index.pack_id, kept)
            if node != kept:
                write_new(directory / "node", b"%d" % node)
            self._add_chunks(node, index)
            store = LayerStore(directory, index, node, present, image, self._boot_id)
            store.begin()
        except BaseException:
            _close(present, image)
            raise
        store.frames = self._frames(directory / "frames")
        with self._lock:
            self._stores[index.pack_id] = store
        return store

    def _frames(self, path: Path) -> Frames | None:
        """The pack's log of bodies; it is a cache, so a disk that refuses it costs nothing else."""
        try:
            if self._keep_frames and not self.frames_paused:
                return Frames(path, self._boot_id)
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s: no bodies are kept for other agents, they get raw chunks: %s", path, error)
        return None


def _with(present: PresentMap, path: Path) -> ImageFile:
    """The image that the map is of."""
    try:
        return ImageFile(path)
    except BaseException:
        present.close()
        raise


def _close(present: PresentMap, image: ImageFile) -> None:
    present.close()
    image.close()


def _take(store: LayerStore, bodies: Sequence[Body]) -> None:
    """Chunks that nobody else writes yet. What is wrong, or finds no room, is fetched like any other chunk."""
    for chunk in bodies:
        try:
            if not 0 <= chunk.number < store.index.chunk_count or store.has(chunk.number):
                continue
            raw = memoryview(bytearray(store.index.size(chunk.number)))
            decode_into(chunk.encoding, chunk.body, raw)
            store.verify(chunk.number, raw)
            store.write(chunk.number, raw)
        except (CorruptError, ProtocolError, OSError) as error:
            _log.warning("pack %s, chunk %d came with its index: %s", store.pack_id.hex(), chunk.number, error)
        else:
            store.received["supernode"] += len(chunk.body)


def _kept_node(directory: Path) -> int | None:
    """The node number that a pack keeps; None if it has none yet, or a power cut took it along with all mounts."""
    try:
        node = int((directory / "node").read_text("ascii"))
    except (OSError, ValueError):
        return None
    return node if 2 <= node < 1 << 63 else None


def _findable(index: Index) -> Iterator[tuple[int, bytes]]:
    return ((chunk, index.digest(chunk)) for chunk in range(index.chunk_count) if not index.is_zero(chunk))

"""Packs on a local disk. What is visible under a pack id is whole: it was synced before it got that name.

Crash rules. A part directory is never trusted after its process is gone: `open` removes it. Sealing renames the part,
then links the layer: a crash between the two leaves a pack without a link, and `open` makes it from the header.
Every pack is scrubbed at `open`: its seal verifies and its file sizes agree, or it goes, together with its links.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock

from imgdist.errors import CorruptError, DeclinedError, ImgdistError, NotFoundError
from imgdist.pack import records
from imgdist.pack.index import Index
from imgdist.pack.kinds import Kind
from supernode.store.layout import GRAVE_PREFIX, INDEX, PART_PREFIX, TABLE, Layout, disk_bytes, source_of_link
from supernode.store.reader import PackReader
from supernode.store.revoked import RevokedPacks
from supernode.store.scrub import bad_chunks, check_sizes, check_tar_split, sync_directory

log = logging.getLogger("imgdist.store")
_READERS_MAX = 512
"""Open packs kept at hand, two descriptors each; a guess well below the usual limit of descriptors."""


class LocalStore:
    """The packs under one root. One process seals and removes; any number of processes and threads read."""

    def __init__(self, root: Path) -> None:
        self._layout = Layout(root)
        self._readers: OrderedDict[str, PackReader] = OrderedDict()
        self._lock = Lock()
        """Guards `_readers`."""
        self._sizes: dict[str, int] = {}
        self._changing = Lock()
        """Held while names change: twins that are sealed at once must not both find their pack missing."""
        self.revoked = RevokedPacks(self._layout.revoked)
        """Packs that no layer may be any more."""
        self._damaged: set[str] = set()

    def recover(self) -> None:
        """At the start of the writing process, before anything else: remove leftovers and what is broken."""
        for directory in (self._layout.packs, self._layout.layers):
            directory.mkdir(parents=True, exist_ok=True)
        self.revoked.load()
        for entry in sorted(self._layout.packs.iterdir()):
            if entry.name.startswith("."):
                log.info("removing what an earlier run left of %s", entry.name)
                shutil.rmtree(entry)
            else:
                self._recover_pack(entry)
        for link in self._layout.layers.iterdir():
            if not link.exists():
                link.unlink()

    def open(self, name: str) -> PackReader | None:
        """The reader of a pack id or of `sha256-<layer>-v0`, sealed or being written; None if there is no such."""
        with self._lock:
            reader = self._readers.get(name)
            if reader is not None and not reader.gone:
                self._readers.move_to_end(name)
                reader.used()
                return reader
            reader = self._open(name)
            if reader is not None:
                reader.used()
                self._readers[name] = reader
                if len(self._readers) > _READERS_MAX:
                    self._readers.popitem(last=False)
            return reader

    def find(self, digest: str, kind: Kind = Kind.LAYER) -> str | None:
        """Pack id of the sealed pack of a layer or blob."""
        try:
            return os.path.basename(os.readlink(self._layout.link(digest, kind)))
        except FileNotFoundError:
            return None

    def index_bytes(self, pack_id: str, start: int = 0) -> bytes:
        """The record stream of a sealed pack from record `start` on. `NotFoundError` if there is no such pack."""
        try:
            stream = (self._layout.pack(pack_id) / INDEX).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"pack {pack_id} is not in this store") from None
        offset = records.offset_of(stream, start)
        return b"" if offset is None else stream[offset:]

    def index(self, pack_id: str) -> Index:
        """The index of a sealed pack, verified."""
        return Index.load(self.index_bytes(pack_id))

    def begin(self, digest: str, kind: Kind = Kind.LAYER) -> Path:
        """A new part directory for a layer or blob. What an earlier try left is removed."""
        part = self._layout.part(digest, kind)
        with self._changing:  # a look at leftovers may have found the earlier try's, and be about to remove it
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
        return part

    def abandon(self, digest: str, kind: Kind = Kind.LAYER) -> None:
        """Remove the part directory of a layer or blob, if there is one."""
        shutil.rmtree(self._layout.part(digest, kind), ignore_errors=True)

    def seal(self, digest: str, pack_id: bytes, kind: Kind = Kind.LAYER) -> Index:
        """Make the finished part of a layer or blob the pack `pack_id`. One that exists already gets another link.

        The part's files but the index are synced (`PackWriter.finish`). Raises `CorruptError` and keeps nothing if the
        part is not that pack, `DeclinedError` if that pack was revoked: the same converter made it again.
        """
        part = self._layout.part(digest, kind)
        try:
            if (why := self.revoked.reason(pack_id.hex())) is not None:
                raise DeclinedError(f"{digest} becomes a pack that was revoked: {why}")
            index = _add_seal(part, pack_id)
            check_sizes(part, index)
        except ImgdistError:
            self.abandon(digest, kind)
            raise
        target = self._layout.pack(pack_id.hex())
        with self._changing:
            if target.exists() and target.name in self._damaged:
                log.info("pack %s, which was damaged, is replaced", target.name)
                self._bury(target)
                part.rename(target)
            elif target.exists():
                log.info("layer %s has the pack of a twin, %s", digest, target.name)
                self.abandon(digest, kind)
                self.used(target.name)
            else:
                part.rename(target)
            self._link(digest, kind, target.name)
            # After both names: the first makes the second all but free. What a crash before leaves, `recover` mends.
            sync_directory(self._layout.packs)
            sync_directory(self._layout.layers)
        return index

    def revoke(self, pack_id: str, reason: str) -> list[str]:
        """From now on no layer or blob is this pack, also after a restart; returns the digests of the layers that were.
        Its bytes stay for those that run on it, until space is needed."""
        with self._changing:
            self.revoked.add(pack_id, reason)
            found = [(digest, kind) for digest, kind, target in self.sources() if target == pack_id]
            for digest, kind in found:
                self._layout.link(digest, kind).unlink(missing_ok=True)
        return [digest for digest, kind in found if kind is Kind.LAYER]

    def damaged(self, pack_id: str) -> list[str]:
        """The pack is to be replaced when one of its layers, whose digests are returned, is sealed again."""
        self._damaged.add(pack_id)
        return [digest for digest, target in self.layers() if target == pack_id]

    def is_damaged(self, digest: str) -> bool:
        """Whether the pack of a layer waits to be replaced."""
        return self.find(digest) in self._damaged

    def directory(self, pack_id: str) -> Path:
        """Where a sealed pack lies, if it does. `UsageError` for what is no pack id."""
        return self._layout.pack(pack_id)

    def verify(self, pack_id: str) -> list[str]:
        """What is wrong with a pack, every byte read and hashed; an empty list if nothing is."""
        index, directory = self.index(pack_id), self._layout.pack(pack_id)
        wrong = [f"chunk {number}: {reason}" for number, reason in bad_chunks(directory, index)]
        try:
            if index.kind is Kind.LAYER:
                check_tar_split(directory, index)
        except CorruptError as error:
            wrong.append(str(error))
        return wrong

    def pack_ids(self) -> list[str]:
        """Every sealed pack."""
        return sorted(entry.name for entry in self._layout.packs.iterdir() if not entry.name.startswith("."))

    def layers(self) -> Iterator[tuple[str, str]]:
        """(layer digest, pack id) of every link of a layer of this format version."""
        return ((digest, pack_id) for digest, kind, pack_id in self.sources() if kind is Kind.LAYER)

    def sources(self) -> Iterator[tuple[str, Kind, str]]:
        """(digest, kind, pack id) of every link of this format version: what the packs were made from."""
        for link in sorted(self._layout.layers.iterdir()):
            source = source_of_link(link.name)
            if source is not None and (pack_id := self.find(*source)) is not None:  # not removed meanwhile
                yield *source, pack_id

    def remove(self, pack_id: str, *, unused_since: float | None = None) -> bool:
        """Remove a pack and its links. Readers that have it open finish what they read. With `unused_since` only if its
        last use is no later; whether it went."""
        with self._changing:
            if unused_since is not None and self.last_use(pack_id) > unused_since:
                return False
            for link in self._layout.layers.iterdir():
                if os.path.basename(os.readlink(link)) == pack_id:
                    link.unlink()
            return self._bury(self._layout.pack(pack_id))

    def used(self, pack_id: str) -> None:
        """The pack was resolved or followed: it is not the next to go."""
        with suppress(OSError):
            os.utime(self._layout.pack(pack_id) / TABLE)

    def unwanted(self, pack_id: str) -> None:
        """Nobody has asked for the pack yet: it goes first."""
        with suppress(OSError):
            os.utime(self._layout.pack(pack_id) / TABLE, (0, 0))

    def last_use(self, pack_id: str) -> float:
        """When the pack was sealed, resolved or served last (seconds since 1970); 0 if it is not here."""
        try:
            return os.stat(self._layout.pack(pack_id) / TABLE).st_mtime
        except FileNotFoundError:
            return 0.0

    def pack_bytes(self, pack_id: str) -> int:
        """What a sealed pack takes on disk: taken once, it does not change."""
        size = self._sizes.get(pack_id)
        if size is None:
            size = self._sizes[pack_id] = disk_bytes(self._layout.pack(pack_id))
        return size

    def packs_bytes(self) -> int:
        """What all sealed packs take."""
        return sum(map(self.pack_bytes, self.pack_ids()))

    def clear_leftovers(self, under_way: Callable[[], Collection[tuple[str, Kind]]]) -> None:
        """Remove what removals and conversions left that ended badly; `under_way()` is what is being written."""
        with self._changing:
            found = [
                entry for entry in self._layout.packs.iterdir() if entry.name.startswith((PART_PREFIX, GRAVE_PREFIX))
            ]
            # Asked afterwards: a layer is on its way before its part is made.
            alive = {self._layout.part(digest, kind).name for digest, kind in under_way()}
            for entry in found:
                if entry.name not in alive:
                    shutil.rmtree(entry, ignore_errors=True)

    def forget_gone(self) -> None:
        """Let go of removed packs that readers at hand keep on the disk."""
        with self._lock:
            for name in [name for name, reader in self._readers.items() if reader.gone]:
                del self._readers[name]

    def _bury(self, pack: Path) -> bool:
        """Remove a pack's directory; readers that have it open read on. Whether it was there."""
        grave = self._layout.packs / f"{GRAVE_PREFIX}{pack.name}"
        try:
            pack.rename(grave)
        except FileNotFoundError:
            return False
        self._sizes.pop(pack.name, None)
        self._damaged.discard(pack.name)
        shutil.rmtree(grave)
        return True

    def _open(self, name: str) -> PackReader | None:
        for directory in self._layout.candidates(name):
            try:
                return PackReader(directory)
            except FileNotFoundError:
                continue
        self._readers.pop(name, None)
        return None

    def _recover_pack(self, directory: Path) -> None:
        try:
            index = self.index(directory.name)
            if index.pack_id.hex() != directory.name:
                raise CorruptError(f"it holds pack {index.pack_id.hex()}")
            check_sizes(directory, index)
        except (ImgdistError, OSError) as error:
            log.warning("removing pack %s, which is broken: %s", directory.name, error)
            shutil.rmtree(directory)
            return
        is_revoked = self.revoked.reason(directory.name) is not None
        if index.layer_digest is not None and self.find(index.layer_digest, index.kind) is None and not is_revoked:
            self._link(index.layer_digest, index.kind, directory.name)

    def _link(self, digest: str, kind: Kind, pack_id: str) -> None:
        link = self._layout.link(digest, kind)
        fresh = link.with_name(f".{link.name}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.join("..", "packs", pack_id))
        fresh.rename(link)


def _add_seal(part: Path, pack_id: bytes) -> Index:
    with open(part / INDEX, "ab") as file:
        file.write(records.encode(records.Seal(pack_id)))
        file.flush()
        os.fsync(file.fileno())
    sync_directory(part)
    return Index.load((part / INDEX).read_bytes())

"""Packs that this node knows to be false: ROOT/revoked/<pack id>, one small JSON file each, for good.

What is in here is mounted for nobody new once another pack of the same layer can be had. Owner: the event loop.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

log = logging.getLogger("imgdist.agent")


class RevokedLayer(msgspec.Struct, frozen=True):
    """A layer that was the pack, and an image to have it converted again by: "name@manifest digest"."""

    reference: str
    manifest_digest: str
    digest: str
    diff_id: str


class Revocation(msgspec.Struct, frozen=True):
    """`by`: "this node", which proved it, or the supernode that told; `at`: seconds since 1970. `outlived`: names of
    active snapshots that were built on it when it was replaced below them."""

    pack_id: str
    reason: str
    by: str
    at: float
    layers: tuple[RevokedLayer, ...] = ()
    outlived: tuple[str, ...] = ()


class Revocations:
    """All under `directory`, in memory and on disk."""

    def __init__(self, directory: Path) -> None:
        """Read what is there; a file that makes no sense still revokes its pack."""
        self._directory = directory
        self._all: dict[str, Revocation] = {}
        directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(directory.iterdir()):
            if not path.name.startswith("."):
                self._all[path.name] = _read(path)

    def reason(self, pack_id: str) -> str | None:
        """Why a pack is revoked; None if it is not."""
        found = self._all.get(pack_id)
        return found.reason if found is not None else None

    def all(self) -> Sequence[Revocation]:
        """Every one, oldest first."""
        return tuple(self._all.values())

    def add(self, revocation: Revocation) -> bool:
        """Whether that is news; the first word about a pack stands. It holds for this run if the disk refuses it."""
        if revocation.pack_id in self._all:
            return False
        self._write(revocation)
        return True

    def replaced(self, pack_id: str, outlived: Iterable[str]) -> None:
        """Snapshots of the pack are of another one now; these active ones were mounted before."""
        known = self._all[pack_id]
        names = tuple(dict.fromkeys((*known.outlived, *outlived)))
        if names != known.outlived:
            self._write(msgspec.structs.replace(known, outlived=names))

    def _write(self, revocation: Revocation) -> None:
        self._all[revocation.pack_id] = revocation
        path = self._directory / revocation.pack_id
        fresh = self._directory / f".{revocation.pack_id}"
        try:
            with fresh.open("wb") as file:
                file.write(msgspec.json.encode(revocation))
                if (
                    revocation.layers
                ):  # images forget them next: after a power cut nobody else could tell what replaces it
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(fresh, path)
        except OSError as error:
            log.error("pack %s: its revocation is not remembered over a restart: %s", revocation.pack_id, error)


def _read(path: Path) -> Revocation:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Revocation)
    except (OSError, msgspec.DecodeError) as error:
        return Revocation(path.name, f"{path} cannot be read: {error}", "this node", 0.0)

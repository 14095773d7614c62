"""Which packs were revoked, and why: a small file each, for good. A pack id that was a lie once stays one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from supernode.store.scrub import sync_directory


class RevokedPacks:
    """The files of one directory, in memory once they are loaded."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reasons: dict[str, str] = {}

    def load(self) -> None:
        """Read what earlier runs left."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime):
            if not path.name.startswith("."):
                self._reasons[path.name] = path.read_text(errors="replace")

    def add(self, pack_id: str, reason: str) -> None:
        """Durable when it returns. Again: the first reason stands."""
        if pack_id in self._reasons:
            return
        fresh = self._directory / f".{pack_id}"
        with open(fresh, "w") as file:
            file.write(reason)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self._directory / pack_id)
        sync_directory(self._directory)
        # Another thread may be going through the old ones.
        self._reasons = {**self._reasons, pack_id: reason}

    def reason(self, pack_id: str) -> str | None:
        """Why a pack was revoked; None if it was not."""
        return self._reasons.get(pack_id)

    def all(self) -> Mapping[str, str]:
        """Reasons by pack id, the latest last."""
        return self._reasons

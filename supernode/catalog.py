"""What the supernode remembers of registries: manifests and configurations by digest, tags, declined layers."""

from __future__ import annotations

import sqlite3

import imgdist
from imgdist.pack import FORMAT_VERSION
from supernode.database import Database

DOCUMENTS_MAX = 20_000
"""Manifests and configurations kept, the oldest go first: some hundred MiB. A guess."""

RELEASE = f"{imgdist.__version__}-v{FORMAT_VERSION}"
"""A newer release may take over what this one declined."""


class Catalog:
    """Documents, tags and declined layers, kept in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def document(self, digest: str) -> tuple[str, bytes] | None:
        """(media type, bytes) of a manifest, index or configuration."""
        row = await self._database.call(
            lambda db: db.execute("SELECT media_type, raw FROM documents WHERE digest = ?", (digest,)).fetchone()
        )
        return (row[0], row[1]) if row else None

    async def keep_document(self, digest: str, media_type: str, raw: bytes) -> None:
        """Remember a document whose digest was checked."""

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (digest, media_type, raw))
            # A replaced row gets a new rowid, so the lowest ones are the longest untouched.
            db.execute("DELETE FROM documents WHERE rowid <= (SELECT max(rowid) FROM documents) - ?", (DOCUMENTS_MAX,))

        await self._database.call(write)

    async def tag(self, name: str, tag: str) -> str | None:
        """The digest that the tag of `name` ("host/repository") had when it was last seen."""
        row = await self._database.call(
            lambda db: db.execute("SELECT digest FROM tags WHERE name = ? AND tag = ?", (name, tag)).fetchone()
        )
        return row[0] if row else None

    async def keep_tag(self, name: str, tag: str, digest: str) -> None:
        """Remember what a tag names now."""
        await self._database.write("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", (name, tag, digest))

    async def declined(self) -> dict[str, str]:
        """Reasons by layer digest, of the layers that this release cannot convert."""
        rows = await self._database.call(
            lambda db: db.execute("SELECT layer_digest, reason FROM declined WHERE release = ?", (RELEASE,)).fetchall()
        )
        return dict(rows)

    async def keep_declined(self, layer_digest: str, reason: str) -> None:
        """Remember that a layer cannot be converted, and why."""
        await self._database.write("INSERT OR REPLACE INTO declined VALUES (?, ?, ?)", (layer_digest, RELEASE, reason))

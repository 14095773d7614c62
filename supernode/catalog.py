"""What the supernode remembers of registries: manifests and configurations by digest, tags, declined layers."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

import imgdist
from imgdist.limits import DEFAULT_LIMITS, Limits
from imgdist.pack import FORMAT_VERSION
from supernode.database import Database

DOCUMENTS_MAX = 20_000
"""Manifests and configurations kept, the oldest go first: some hundred MiB. A guess."""

RELEASE = f"{imgdist.__version__}-v{FORMAT_VERSION}"
"""A newer release may take over what this one declined."""


class KnownTag(NamedTuple):
    """The digest that a tag named when its registry was last asked, and when that was (seconds since 1970; None: an
    earlier release did not say)."""

    digest: str
    confirmed_at: float | None


class Catalog:
    """Documents, tags and declined layers, kept in the database."""

    def __init__(self, database: Database, limits: Limits = DEFAULT_LIMITS) -> None:
        """`limits`: what layers are declined by; what was declined by others is tried again."""
        self._database = database
        self._terms = RELEASE if limits == DEFAULT_LIMITS else f"{RELEASE} {limits}"

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

    async def tag(self, name: str, tag: str) -> KnownTag | None:
        """What the tag of `name` ("host/repository") named when it was last seen."""
        row = await self._database.call(
            lambda db: db.execute(
                "SELECT tags.digest, confirmed_at FROM tags LEFT JOIN confirmed USING (name, tag, digest)"
                " WHERE name = ? AND tag = ?",
                (name, tag),
            ).fetchone()
        )
        return KnownTag(*row) if row else None

    async def keep_tag(self, name: str, tag: str, digest: str, now: float) -> None:
        """Remember what a tag names at `now` (seconds since 1970)."""

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", (name, tag, digest))
            db.execute("INSERT OR REPLACE INTO confirmed VALUES (?, ?, ?, ?)", (name, tag, digest, now))

        await self._database.call(write)

    async def declined(self) -> dict[str, str]:
        """Reasons by layer digest, of the layers that this release cannot convert within its limits."""
        wanted = "SELECT layer_digest, reason FROM declined WHERE release = ?"
        return dict(await self._database.call(lambda db: db.execute(wanted, (self._terms,)).fetchall()))

    async def keep_declined(self, layer_digest: str, reason: str) -> None:
        """Remember that a layer cannot be converted, and why."""
        row = (layer_digest, self._terms, reason)
        await self._database.write("INSERT OR REPLACE INTO declined VALUES (?, ?, ?)", row)

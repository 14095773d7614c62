"""Which registry has delivered what: a digest alone opens nothing.

Content is kept once, under its digest, whoever had it read. A tenant who knows the digest of somebody else's layer
could name it in an image in a registry of its own, which says that it has it and never shows it. So what is here counts
for a repository only once its registry has itself delivered those bytes, for it or for another repository that it has.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from imgdist.errors import TemporaryError
from supernode.database import Database

log = logging.getLogger("imgdist.access")

ROWS_MAX = 500_000
"""(repository, digest) pairs kept on disk, some 200 bytes each; the oldest go first, and are proven anew."""
PROVEN_MAX = 50_000
"""Pairs of which no disk is asked."""
AGAIN_S = 5.0
"""Between two attempts to write while the disk is full (a guess)."""
_WRITES_MAX = 10_000


class Provenance:
    """What came from where, also before the last restart (a `Witness` of the registries' clients)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._names: dict[str, set[str]] = {}  # by digest: what is not written yet
        self._proven: dict[tuple[str, str], None] = {}
        self._reading: Counter[tuple[str, str]] = Counter()  # (host, digest)
        self._unwritten: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    @contextmanager
    def reading(self, name: str, digest: str) -> Iterator[None]:
        """Bytes of a blob are on their way from `name` ("host/repository"), and may be handed out before the end."""
        place = (_host(name), digest)
        self._reading[place] += 1
        try:
            yield
        finally:
            self._reading[place] -= 1
            if not self._reading[place]:
                del self._reading[place]

    def delivered(self, name: str, digest: str) -> None:
        """All bytes came from there, and are right."""
        names = self._names.setdefault(digest, set())
        if name not in names:
            names.add(name)
            self._unwritten.put_nowait((name, digest))

    async def has(self, name: str, digest: str) -> bool:
        """Whether this repository has delivered it."""
        if (name, digest) in self._proven:
            return True
        if name not in await self._known(digest):
            return False
        self._proven[name, digest] = None
        if len(self._proven) > PROVEN_MAX:
            del self._proven[next(iter(self._proven))]
        return True

    async def hosts(self, digest: str) -> set[str]:
        """Registries that have delivered it."""
        return {_host(name) for name in await self._known(digest)}

    def readers(self, digest: str) -> set[str]:
        """Registries that it is being read from."""
        return {host for host, read in self._reading if read == digest}

    async def run(self) -> None:
        """Write down what is delivered, until cancelled."""
        while True:
            rows = [await self._unwritten.get()]
            while not self._unwritten.empty() and len(rows) < _WRITES_MAX:
                rows.append(self._unwritten.get_nowait())
            while True:
                try:
                    await self._write(rows)
                    break
                except TemporaryError as error:  # a full disk: until then it is known in memory
                    log.warning("what registries delivered is not written down yet: %s", error)
                    await asyncio.sleep(AGAIN_S)

    async def _write(self, rows: list[tuple[str, str]]) -> None:
        def write(db: sqlite3.Connection) -> None:
            db.executemany("INSERT OR IGNORE INTO delivered VALUES (?, ?)", rows)
            db.execute("DELETE FROM delivered WHERE rowid <= (SELECT max(rowid) FROM delivered) - ?", (ROWS_MAX,))

        await self._database.call(write)
        for name, digest in rows:  # others of the digest may have been delivered meanwhile
            names = self._names.get(digest, set())
            names.discard(name)
            if not names:
                self._names.pop(digest, None)

    async def _known(self, digest: str) -> set[str]:
        rows = await self._database.call(
            lambda db: db.execute("SELECT name FROM delivered WHERE digest = ?", (digest,)).fetchall()
        )
        return {name for (name,) in rows} | self._names.get(digest, set())


def _host(name: str) -> str:
    return name.partition("/")[0]

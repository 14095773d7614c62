"""What an agent remembers in ROOT/agent.db: its packs, their node numbers, and which chunk digests they hold.

One SQLite connection, one call at a time, in the caller's thread. A cache: packs keep their node numbers themselves
and are entered again at each start. So a damaged file is set aside, and where none can be opened (after an orderly stop
SQLite has to make two files anew, and the disk may be full) memory takes its place.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")

log = logging.getLogger("imgdist.agent")

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE packs (node INTEGER PRIMARY KEY AUTOINCREMENT, pack_id BLOB NOT NULL UNIQUE);
CREATE TABLE chunks (prefix INTEGER, node INTEGER, number INTEGER, PRIMARY KEY (prefix, node, number)) WITHOUT ROWID;
CREATE INDEX chunks_of_node ON chunks (node);
INSERT INTO sqlite_sequence (name, seq) VALUES ('packs', 1);
"""
HOLDERS_MAX = 8
"""Packs that are named for a digest, the newest first: a node that keeps many releases of an image has many."""
_TWINS = f"""
WITH wanted AS (SELECT DISTINCT prefix FROM chunks WHERE node = ?1),
ranked AS (
    SELECT prefix, node, MIN(number) AS number, ROW_NUMBER() OVER (PARTITION BY prefix ORDER BY node DESC) AS place
    FROM wanted CROSS JOIN chunks USING (prefix) WHERE node != ?1 GROUP BY prefix, node
)
SELECT mine.number, ranked.node, ranked.number FROM ranked
JOIN chunks AS mine ON mine.node = ?1 AND mine.prefix = ranked.prefix WHERE place <= {HOLDERS_MAX}
"""
"""One chunk of each pack: two packs of 2,000 equal chunks have 4,000,000 pairs [measured: 5.7 s, now 8 ms; where all
differ 0.5 instead of 0.7 ms, where half are the same in 50 packs 38 instead of 20]."""
_KNOWN = "SELECT 1 FROM chunks WHERE node = ? LIMIT 1"
_HOLDERS = f"""
SELECT node, MIN(number) FROM chunks WHERE prefix = ? GROUP BY node ORDER BY node DESC LIMIT {HOLDERS_MAX}
"""
_CACHE_KIB = 512  # the file is in the page cache as well
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Twin:
    """Chunk `number` of the pack asked about has (by the first 8 bytes of its digest) a copy in another pack."""

    number: int
    other_node: int
    other_number: int


def node_name(node: int) -> str:
    """A node number in base 36: the layer's file name in the view, its mount point's name, at most 13 bytes."""
    digits = ""
    while node:
        node, digit = divmod(node, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"


class Database:
    """Opens or creates the file at `path`. Any thread may call; what it asks for is done when the call returns."""

    def __init__(self, path: Path) -> None:
        # A lock and not a thread of its own: each layer that is opened asks three times.
        self._lock = threading.Lock()
        self._connection = _open_or_renew(path)

    def node_of(self, pack_id: bytes, kept: int | None = None) -> int:
        """The pack's node number, >= 2: given at the first call, the same until `forget`, never given twice.

        `kept`: the number that the pack itself says it has. It counts, unless it is another pack's already.
        """

        def job(connection: sqlite3.Connection) -> int:
            if kept is not None:
                taken = connection.execute("SELECT 1 FROM packs WHERE node = ? AND pack_id != ?", (kept, pack_id))
                if taken.fetchone() is None:
                    _forget(connection, "pack_id = ? AND node != ?", pack_id, kept)
                    connection.execute("INSERT OR IGNORE INTO packs (node, pack_id) VALUES (?, ?)", (kept, pack_id))
            row = connection.execute("SELECT node FROM packs WHERE pack_id = ?", (pack_id,)).fetchone()
            if row is not None:
                return int(row[0])
            return int(connection.execute("INSERT INTO packs (pack_id) VALUES (?)", (pack_id,)).lastrowid or 0)

        return self._run(job)

    def reserve(self, node: int) -> None:
        """Give no pack a number up to this one, except that which it kept."""
        self._write("UPDATE sqlite_sequence SET seq = ?1 WHERE name = 'packs' AND seq < ?1", (node,))

    def packs(self) -> dict[int, bytes]:
        """Node number to pack id of every pack known."""
        rows = self._run(
            lambda connection: connection.execute("SELECT node, pack_id FROM packs ORDER BY node").fetchall()
        )
        return dict(rows)

    def add_chunks(self, node: int, digests: Iterable[tuple[int, bytes]]) -> None:
        """Record (chunk number, digest) of a pack, all of them at once. Where they are recorded already, `digests` are
        not looked at: a start would spend most of its time on them."""

        def job(connection: sqlite3.Connection) -> None:
            if connection.execute(_KNOWN, (node,)).fetchone() is None:
                rows = [(_prefix(digest), node, number) for number, digest in digests]
                connection.executemany("INSERT OR IGNORE INTO chunks VALUES (?, ?, ?)", rows)

        self._run(job)

    def twins(self, node: int) -> list[Twin]:
        """Chunks of a pack that other packs have too, wherever their bytes are present by now or not: at most one
        chunk of each pack and `HOLDERS_MAX` packs for each."""
        rows = self._run(lambda connection: connection.execute(_TWINS, (node,)).fetchall())
        return [Twin(*row) for row in rows]

    def holders(self, digests: Iterable[tuple[int, bytes]]) -> list[Twin]:
        """As `twins`, for (chunk number, digest) of what is no pack yet."""
        rows = [(number, _prefix(digest)) for number, digest in digests]

        def job(connection: sqlite3.Connection) -> list[Twin]:
            found = {prefix: connection.execute(_HOLDERS, (prefix,)).fetchall() for prefix in {row[1] for row in rows}}
            return [Twin(number, *other) for number, prefix in rows for other in found[prefix]]

        return self._run(job)

    def forget(self, node: int) -> None:
        """The pack is gone, and its chunks."""
        self._run(lambda connection: _forget(connection, "node = ?", node))

    def close(self) -> None:
        """Close the file, after what is being done."""
        with self._lock:
            self._connection.close()

    def _write(self, statement: str, *rows: tuple[object, ...]) -> None:
        """Execute one statement for each row. Not by `_run` with a lambda: that would return the cursor, which freed by
        its thread meets another one's next use of the same statement."""

        def job(connection: sqlite3.Connection) -> None:
            connection.executemany(statement, rows)

        self._run(job)

    def _run(self, job: Callable[[sqlite3.Connection], _T]) -> _T:
        with self._lock, self._connection:
            return job(self._connection)


def _forget(connection: sqlite3.Connection, which: str, *values: object) -> None:
    connection.execute(f"DELETE FROM chunks WHERE node IN (SELECT node FROM packs WHERE {which})", values)
    connection.execute(f"DELETE FROM packs WHERE {which}", values)


def _open_or_renew(path: Path) -> sqlite3.Connection:
    try:
        return _open(path)
    except sqlite3.OperationalError as error:
        log.warning("%s cannot be opened, memory takes its place until the next start: %s", path, error)
    except sqlite3.DatabaseError as error:
        log.error("%s is damaged: set aside as %s.bad and made anew from the packs: %s", path, path.name, error)
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(f"{path}{suffix}"):
                os.replace(f"{path}{suffix}", f"{path}.bad{suffix}")
        try:
            return _open(path)
        except sqlite3.DatabaseError as again:
            log.warning("%s cannot be made, memory takes its place until the next start: %s", path, again)
    return _open(Path(":memory:"))


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
        elif version != _SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"{path}: schema version {version}, this release reads {_SCHEMA_VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


def _prefix(digest: bytes) -> int:
    """Eight bytes are enough to find a twin; its bytes are verified against the whole digest before use."""
    return int.from_bytes(digest[:8], "little", signed=True)

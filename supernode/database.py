"""The supernode's SQLite database: small facts that must outlive a restart. One thread owns the connection."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from imgdist.errors import TemporaryError

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (digest TEXT PRIMARY KEY, media_type TEXT NOT NULL, raw BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS tags (name TEXT, tag TEXT, digest TEXT NOT NULL, PRIMARY KEY (name, tag));
CREATE TABLE IF NOT EXISTS confirmed (
    name TEXT, tag TEXT, digest TEXT NOT NULL, confirmed_at REAL NOT NULL, PRIMARY KEY (name, tag)
);
CREATE TABLE IF NOT EXISTS declined (layer_digest TEXT PRIMARY KEY, release TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS chains (
    chain_id TEXT PRIMARY KEY, layer_digest TEXT NOT NULL, diff_id TEXT NOT NULL,
    name TEXT NOT NULL, manifest_digest TEXT NOT NULL, platform TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS delivered (name TEXT, digest TEXT, PRIMARY KEY (digest, name));
"""


class Database:
    """A database file; `call` runs a function with its connection, one at a time, each in a transaction."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file. Raises sqlite3.Error or OSError."""
        # Made here and used in the thread below only: a constructor's error is the caller's to report.
        self._connection = sqlite3.connect(path, check_same_thread=False)
        # What is lost with the last commits of a crashed machine is asked of the registry again: NORMAL is enough.
        self._connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;" + _SCHEMA)
        self._owner = ThreadPoolExecutor(1, "database")

    async def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The result of `work(connection)`; committed, or rolled back if it raises. TemporaryError if SQLite fails.

        `work` must not return a cursor: freed by the caller's thread, it meets the owner's next use of the same
        statement ("bad parameter or other API misuse", seen in half the runs of a test).
        """

        def transaction() -> T:
            try:
                with self._connection:
                    return work(self._connection)
            except sqlite3.Error as error:  # as a rule a full disk
                raise TemporaryError(f"the supernode's database: {error}") from error

        return await asyncio.get_running_loop().run_in_executor(self._owner, transaction)

    async def write(self, statement: str, *rows: tuple[Any, ...]) -> None:
        """Execute one statement for each of `rows`, in one transaction. TemporaryError if SQLite fails."""

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(statement, rows)

        await self.call(work)

    def close(self) -> None:
        """Finish what was called and close the file."""
        self._owner.shutdown()
        self._connection.close()

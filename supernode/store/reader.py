"""Reading chunks of a pack, sealed or still being written."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from imgdist.errors import CorruptError, NotFoundError
from imgdist.pack import CHUNK_MAX, codec
from imgdist.wire.answer import Row
from supernode.store.layout import CHUNKS, ROW, TABLE

_OFFSET_MAX = 1 << 62
NOTE_S = 60.0
"""Between two notes of a pack's use; far less than any retention."""


class PackReader:
    """The encoded chunks of one pack. Thread-safe; its descriptors live as long as it is referenced,
    whatever happens to the directory."""

    def __init__(self, directory: Path) -> None:
        """Raises `FileNotFoundError` if no pack is there."""
        self._table = os.open(directory / TABLE, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._table)
        self._chunks = os.open(directory / CHUNKS, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._chunks)

        self._noted = 0.0

    arrivals = None  # it has everything

    def used(self) -> None:
        """Somebody was served: note it on the disk, once a minute at most."""
        now = time.monotonic()
        if now - self._noted > NOTE_S or not self._noted:
            self._noted = now
            with contextlib.suppress(OSError):
                os.utime(self._table)

    @property
    def count(self) -> int:
        """Chunks that are there; more while the pack is being written."""
        return os.fstat(self._table).st_size // ROW.size

    @property
    def identity(self) -> tuple[int, int]:
        """The same for all readers of one pack, under whatever name, while one of them is open."""
        status = os.fstat(self._chunks)
        return status.st_dev, status.st_ino

    @property
    def gone(self) -> bool:
        """Whether the pack was removed since: a new look may find another one under the same name."""
        return os.fstat(self._chunks).st_nlink == 0

    def row(self, number: int) -> Row:
        """Where a chunk's body is.

        `NotFoundError` where it is not there (yet), `CorruptError` for a row that cannot be.
        """
        row = os.pread(self._table, ROW.size, number * ROW.size)
        if len(row) < ROW.size:
            raise NotFoundError(f"chunk {number} is not in this pack, or not yet")
        offset, length, encoding = ROW.unpack(row)
        if offset > _OFFSET_MAX or length > CHUNK_MAX or encoding > codec.ZERO:
            raise CorruptError(f"table row of chunk {number} says {length} bytes at {offset}, encoding {encoding}")
        return Row(self._chunks, offset, length, encoding)

    def end(self, count: int) -> int:
        """Where the bodies of the first `count` chunks end in the file."""
        if not count:
            return 0
        _, offset, length, _ = self.row(count - 1)
        return offset + length

    def wait(self, numbers: Sequence[int], seconds: float) -> bool:
        """Nothing is on its way here that somebody would know of."""
        return False

    def body(self, number: int) -> tuple[int, bytes]:
        """(encoding, body) of a chunk. `CorruptError` if the file ends before the body does."""
        _, offset, length, encoding = self.row(number)
        body = os.pread(self._chunks, length, offset)
        if len(body) != length:
            raise CorruptError(f"body of chunk {number} has {len(body)} bytes, its table row says {length}")
        return encoding, body

"""A pack while it is being written, as those see it who follow it on the event loop."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

from imgdist.errors import ImgdistError
from imgdist.pack import records
from supernode.store.layout import INDEX

_READ_MAX = 256 * 1024
"""Bytes of index that a follower gets at once."""


class GrowingPack:
    """One task writes and tells how far it is; any number follow, also after the end."""

    def __init__(self, part: Path) -> None:
        """`part` has an index file by the time that there is anything to tell of it."""
        self._part = part
        self._fd: int | None = None
        self._changed = asyncio.Event()
        self.index_bytes = 0
        """Bytes of index that can be followed."""
        self.chunks = 0
        """Chunks that can be read."""
        self.is_sealed = False
        """Whether it has become a pack."""
        self.error: ImgdistError | None = None
        """Why it will never be one."""

    def advance(self, chunks: int, index_bytes: int) -> None:
        """So much may be read, if it was written; to be told once before the part gets another name."""
        self.chunks, self.index_bytes = chunks, min(index_bytes, os.fstat(self._index).st_size)
        self._notify()

    def seal(self) -> None:
        """It is whole, right, and has its name."""
        self.is_sealed = True
        self.advance(self.chunks, os.fstat(self._index).st_size)

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.is_sealed or self.error is not None

    def fail(self, error: ImgdistError) -> None:
        """It is given up."""
        self.error = error
        self._notify()

    async def changed(self) -> None:
        """Return when it has grown or ended since the caller looked."""
        await self._changed.wait()

    async def follow(self, start: int = 0) -> AsyncIterator[bytes]:
        """The index stream from record `start` on, as it grows. Ends after the seal; raises the error that stops it."""
        offset = None if start else 0
        while True:
            changed, sealed, size = self._changed, self.is_sealed, self.index_bytes
            if self.error is not None:
                raise self.error
            if offset is None and size:
                offset = records.offset_of(os.pread(self._index, size, 0), start)
            if offset is not None and offset < size:
                piece = os.pread(self._index, min(size - offset, _READ_MAX), offset)
                offset += len(piece)
                yield piece
            elif sealed:
                return
            else:
                await changed.wait()

    @property
    def _index(self) -> int:
        """The index file: followers keep it whatever becomes of the part directory."""
        if self._fd is None:
            self._fd = os.open(self._part / INDEX, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._fd)
        return self._fd

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

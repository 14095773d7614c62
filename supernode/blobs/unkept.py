"""The rest of a blob that the disk refuses to keep, for whoever has read its beginning."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from imgdist.errors import CorruptError
from supernode.blobs.reader import StoredBlob


async def rest(again: AsyncGenerator[bytes, None], begun: StoredBlob | None, start: int) -> AsyncGenerator[bytes, None]:
    """What follows byte `start` of a blob that is read `again`, from its beginning: its digest covers all of it. What
    was read before, of `begun`, was not vouched for by any: CorruptError if it was something else."""
    position = 0
    async with aclosing(again) as pieces:
        async for piece in pieces:
            known = piece[: max(0, start - position)]
            if known and begun is not None and not await begun.holds(position, known):
                raise CorruptError(f"blob {begun.digest}: the registry sent other bytes than before")
            position += len(piece)
            if len(known) < len(piece):
                yield piece[len(known) :]

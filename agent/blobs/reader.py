"""One reader's view of a blob on this node (`imgdist.oci.blobs.Blob`)."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from agent.blobs.taking import Taking, run_of
from agent.layerstore import LayerStore
from imgdist.errors import NotFoundError
from imgdist.oci.blobs import BlobFile, pieces_of
from imgdist.pack import BLOCK, CHUNK_MAX

READ_MAX = 4 * CHUNK_MAX
"""Bytes of one read: 1 MiB, so that handing it to a thread is a small part of it."""
AHEAD_CHUNKS = 4
"""What a reader asks for where nothing of any blob comes: 1 MiB, as much as a request or two bring (a guess)."""
FIRST_S = (0.5, 2.5)
"""When the first chunk is asked for out of turn, unless it came: at random, so that of nodes which pull together the
later ones find it with the earlier. At once each had a copy from the supernode: 1.7 F of 20 MB to 4 nodes [M]."""
STALL_S, OVERDUE_S = 2.0, 10.0
"""How long nothing of any blob came, or a reader's next chunk did not, before that is asked for out of turn (guesses).
Nodes that pull together fetch the rarest chunks first, and all are as fast as the link in the end; who asks in order
takes from the others."""
_LOOK_S = 0.05  # while the first chunk is not known yet: nobody tells when a store has made room for it


class NodeBlob:
    """Leaves its taking at the end; may be read by one task at a time."""

    def __init__(self, taking: Taking) -> None:
        """`taking` counts it as a reader, and knows the size."""
        assert taking.size is not None
        self.digest = taking.digest
        self.size = taking.size
        self._taking = taking
        self._wanted: Future[None] | None = None
        self._patience_s = random.uniform(*FIRST_S)
        self._is_started = False
        self._file: BlobFile | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wanted is not None:
            self._wanted.cancel()
        if self._file is not None:
            os.close(self._file.fd)
        self._taking.leave()

    @property
    def file(self) -> BlobFile | None:
        """As BlobSource's: the pack's own image, no copy."""
        store = self._taking.store
        if self._file is None and isinstance(store, LayerStore):
            with store.use() as usable:
                if usable and store.is_complete:
                    self._file = BlobFile(os.dup(store.image_fd), BLOCK, self.size)
        return self._file

    async def read(self, offset: int, length: int) -> bytes:
        """As BlobSource's."""
        length = min(length, self.size - offset, READ_MAX)
        while length > 0:
            await self._arrival(offset // CHUNK_MAX)
            piece = await asyncio.to_thread(self._taking.read, offset, run_of(self._taking, offset, length))
            if piece:
                return piece
        return b""

    def stream(self, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """As BlobSource's."""
        return pieces_of(self, start, end)

    async def _arrival(self, chunk: int) -> None:
        """Until the chunk is here; asked for out of turn if that takes long."""
        loop = asyncio.get_running_loop()
        overdue_at = loop.time() + OVERDUE_S
        while not self._taking.has(chunk):
            changed = self._taking.changed
            self._check_wanted()
            left_s = overdue_at - loop.time()
            try:
                async with asyncio.timeout(None if self._wanted else self._patience_s if left_s > 0 else _LOOK_S):
                    await changed.wait()
            except TimeoutError:
                is_stalled = self._is_started and left_s > 0
                if is_stalled and self._taking.idle_s() < STALL_S:
                    continue  # other blobs are being filled, this one is next
                self._wanted = self._taking.want(chunk, AHEAD_CHUNKS if is_stalled else 1)
                self._is_started |= self._wanted is not None
                self._patience_s = STALL_S if self._is_started else _LOOK_S

    def _check_wanted(self) -> None:
        """Forget what was asked for once that is answered. TemporaryError if no source served it in time."""
        if self._wanted is not None and self._wanted.done():
            wanted, self._wanted = self._wanted, None
            if not isinstance(error := wanted.exception(), NotFoundError | None):
                raise error

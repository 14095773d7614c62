"""Reading a blob from a registry only to see that it has it: once for each registry, one after the other there."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

from imgdist.errors import ImgdistError
from imgdist.oci.manifest import Descriptor
from imgdist.oci.reference import Reference
from supernode.registries import Registries

log = logging.getLogger("imgdist.access")

WAITING_MAX = 256
"""Proofs that wait; what is beyond is asked for again by the next pull."""
HOST_MAX = 64
"""Of these, of one registry: who names blobs that it is slow to show keeps nobody else from theirs."""
PARALLEL = 4
"""Registries that are read side by side: one that is slow, or means to be, does not keep the others waiting."""
LONGEST_S = 900.0
"""A registry that has not shown a blob by then has not shown it (a guess: 10 GB at 100 Mbit/s)."""
_MEDIA_TYPE = "application/octet-stream"


class Proofs:
    """The bytes are thrown away; that they came and were right is noted by the registry's client (`Witness`)."""

    def __init__(self, registries: Registries) -> None:
        self._registries = registries
        self._waiting: dict[tuple[str, str], tuple[Reference, int | None]] = {}
        self._over: dict[tuple[str, str], asyncio.Event] = {}
        self._busy: set[str] = set()
        self._changed = asyncio.Event()

    def begin(self, blob: Reference, size: int | None) -> None:
        """Have a blob proven, soon. `size` in bytes, None: the registry is asked."""
        assert blob.digest is not None
        if len(self._waiting) < WAITING_MAX and sum(host == blob.host for host, _ in self._waiting) < HOST_MAX:
            self._waiting.setdefault((blob.host, blob.digest), (blob, size))
            self._changed.set()

    def hosts(self, digest: str) -> set[str]:
        """Registries that are still to show that they have it."""
        return {host for host, waiting in self._waiting if waiting == digest}

    async def settled(self, host: str, digest: str) -> None:
        """Return when a registry has shown a blob, or failed to; at once if nobody has asked it to."""
        if (host, digest) in self._waiting:
            await self._over.setdefault((host, digest), asyncio.Event()).wait()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(PARALLEL):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = next((key for key in self._waiting if key[0] not in self._busy), None)
            if key is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._busy.add(key[0])
            try:
                await self._prove(*self._waiting[key])
            finally:
                self._busy.discard(key[0])
                self._waiting.pop(key, None)
                if over := self._over.pop(key, None):
                    over.set()
                self._changed.set()

    async def _prove(self, blob: Reference, size: int | None) -> None:
        try:
            async with asyncio.timeout(LONGEST_S):
                await self._read(blob, size)
        except (ImgdistError, TimeoutError) as error:
            log.info("%s: its registry has not shown it: %s", blob, error or f"not within {LONGEST_S:.0f} s")
        except Exception:  # whatever a registry has made: a task that fails here would end the daemon
            log.exception("%s: its registry has not shown it", blob)

    async def _read(self, blob: Reference, size: int | None) -> None:
        assert blob.digest is not None
        client = self._registries.client(blob.host)
        size = await client.blob_size(blob.repository, blob.digest) if size is None else size
        if size is not None:
            async with aclosing(client.blob(blob.repository, Descriptor(_MEDIA_TYPE, blob.digest, size))) as pieces:
                async for _ in pieces:
                    pass

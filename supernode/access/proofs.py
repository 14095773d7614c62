"""Reading a blob from a registry only to see that it has it: once for each registry, one after the other."""

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
_MEDIA_TYPE = "application/octet-stream"


class Proofs:
    """The bytes are thrown away; that they came and were right is noted by the registry's client (`Witness`)."""

    def __init__(self, registries: Registries) -> None:
        self._registries = registries
        self._waiting: dict[tuple[str, str], tuple[Reference, int | None]] = {}
        self._over: dict[tuple[str, str], asyncio.Event] = {}
        self._changed = asyncio.Event()

    def begin(self, blob: Reference, size: int | None) -> None:
        """Have a blob proven, soon. `size` in bytes, None: the registry is asked."""
        assert blob.digest is not None
        if len(self._waiting) < WAITING_MAX:
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
        while True:
            self._changed.clear()
            for key, (blob, size) in list(self._waiting.items()):
                try:
                    await self._read(blob, size)
                except ImgdistError as error:
                    log.info("%s: its registry has not shown it: %s", blob, error)
                finally:
                    self._waiting.pop(key, None)
                    if over := self._over.pop(key, None):
                        over.set()
            if not self._waiting:
                await self._changed.wait()

    async def _read(self, blob: Reference, size: int | None) -> None:
        assert blob.digest is not None
        client = self._registries.client(blob.host)
        size = await client.blob_size(blob.repository, blob.digest) if size is None else size
        if size is not None:
            async with aclosing(client.blob(blob.repository, Descriptor(_MEDIA_TYPE, blob.digest, size))) as pieces:
                async for _ in pieces:
                    pass

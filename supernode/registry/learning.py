"""What pulls teach: a manifest that was served makes its image startable lazily, and tells the sizes of its blobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from imgdist.errors import ImgdistError
from imgdist.oci.manifest import Index, Manifest, parse_manifest
from imgdist.oci.reference import Reference
from supernode.fetch import Origin
from supernode.resolve import Resolver

log = logging.getLogger("imgdist.registry")

SIZES_MAX = 200_000
"""Blobs whose sizes are remembered, the longest unseen are forgotten: ~200 bytes each."""


class Learning:
    """Reads the configuration of each image whose manifest is served, beside serving it: its chain IDs are how a node
    knows a layer whose containerd says nothing else. `learn` is told where layers come from."""

    def __init__(self, resolver: Resolver, learn: Callable[[Sequence[Origin]], None]) -> None:
        self._resolver = resolver
        self._learn = learn
        self._tasks: asyncio.TaskGroup | None = None
        self._sizes: dict[tuple[str, str], int] = {}  # by repository too: anybody's manifest may name any digest
        self._reading: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Read what is to be learnt until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            await asyncio.get_running_loop().create_future()

    def size(self, blob: Reference) -> int | None:
        """Bytes of a blob that some manifest of its repository named."""
        return self._sizes.get((blob.name, blob.digest or ""))

    def manifest(self, reference: Reference, media_type: str, raw: bytes) -> Manifest | Index | None:
        """Take note of a manifest that is about to be served; it, if it is one that is understood."""
        document = understood(media_type, raw)
        if isinstance(document, Manifest):
            self._note(reference.name, document)
            config = document.config.digest
            if self._tasks is not None and config not in self._reading:
                task = self._reading[config] = self._tasks.create_task(self._image(reference, document))
                task.add_done_callback(lambda _: self._reading.pop(config, None))
        return document

    async def settled(self, digest: str) -> None:
        """Return when nothing is being learnt of the configuration with that digest: whoever reads it next unpacks."""
        if reading := self._reading.get(digest):
            await asyncio.wait((reading,))

    async def _image(self, reference: Reference, manifest: Manifest) -> None:
        try:
            image = await self._resolver.image(reference, manifest)
        except ImgdistError as error:
            log.debug("%s: no image that could start lazily: %s", reference, error)
            return
        except Exception:  # whatever a registry has made: a task that fails here would end the daemon
            log.exception("%s: learning of its image failed", reference)
            return
        self._learn(
            [
                Origin(reference.host, reference.repository, layer, diff_id)
                for layer, diff_id in zip(manifest.layers, image.config.diff_ids, strict=True)
            ]
        )

    def _note(self, name: str, manifest: Manifest) -> None:
        for descriptor in (manifest.config, *manifest.layers):
            self._sizes.pop((name, descriptor.digest), None)
            self._sizes[name, descriptor.digest] = descriptor.size
        while len(self._sizes) > SIZES_MAX:
            del self._sizes[next(iter(self._sizes))]


def understood(media_type: str, raw: bytes) -> Manifest | Index | None:
    """The manifest or index; None for what is neither, which is handed on all the same."""
    try:
        return parse_manifest(raw, media_type)
    except ImgdistError as error:
        log.debug("nothing is learnt of a manifest: %s", error)
        return None

"""`imgdist mount`: an image's root file system without containerd, through the same snapshots."""

from __future__ import annotations

import asyncio
import hashlib
import logging

from agent.images import Images
from agent.layers import mount
from agent.snapshotter import labels
from agent.snapshotter.core import Snapshotter
from agent.snapshotter.model import AlreadyExistsError, Mount, PreconditionError
from imgdist.errors import DeclinedError, ImgdistError, NotFoundError, UsageError

log = logging.getLogger("imgdist.agent")


class ImageMounts:
    """Mounts made by hand. `snapshotter` is one of their own: containerd's garbage collector removes every snapshot
    that it does not know from the one that it is given."""

    def __init__(self, images: Images, snapshotter: Snapshotter) -> None:
        self._images = images
        self._snapshotter = snapshotter
        self._lock = asyncio.Lock()

    async def mount(self, reference: str, directory: str, *, writable: bool) -> str:
        """Show image `reference` at `directory`; returns the manifest's digest.

        DeclinedError if one of its layers cannot be lazy, UsageError if something of ours is mounted there already,
        and what resolving the reference raises.
        """
        async with self._lock:
            job = await self._images.open(reference)
            parent = ""
            for layer in job.image.layers:
                await self._take(layer.chain_id, layer.digest, parent, reference, job.image.manifest_digest)
                parent = layer.chain_id
            key = _key(directory)
            create = self._snapshotter.prepare if writable else self._snapshotter.view
            try:
                mounts = await create(key, parent, {_ROOT_LABEL: directory})
            except AlreadyExistsError:
                raise UsageError(f"{directory}: an image is mounted there already; imgdist umount it first") from None
            try:
                await asyncio.to_thread(_mount, mounts, directory)
            except BaseException:
                await self._snapshotter.remove(key)
                raise
        return job.image.manifest_digest

    async def umount(self, directory: str) -> None:
        """Undo `mount`. NotFoundError if nothing of ours is mounted there; BusyError says who uses it."""
        async with self._lock:
            key = _key(directory)
            try:
                info = await self._snapshotter.stat(key)
            except NotFoundError:
                raise NotFoundError(f"{directory}: no image is mounted there by imgdist") from None
            await asyncio.to_thread(mount.umount, directory)
            await self._snapshotter.remove(key)
            await self._forget(info.parent)

    async def all(self) -> list[str]:
        """Directories where images are mounted."""
        found = await self._snapshotter.walk([f'labels."{_ROOT_LABEL}"'])
        return [info.labels[_ROOT_LABEL] for info in found]

    async def _take(self, chain_id: str, digest: str, parent: str, reference: str, manifest_digest: str) -> None:
        try:
            await self._snapshotter.stat(chain_id)
        except NotFoundError:
            pass
        else:
            return
        extract = f"extract {chain_id}"
        wanted = {
            labels.SNAPSHOT_REF: chain_id,
            "containerd.io/snapshot/cri.image-ref": reference,
            "containerd.io/snapshot/cri.layer-digest": digest,
            "containerd.io/snapshot/cri.manifest-digest": manifest_digest,
        }
        try:
            await self._snapshotter.prepare(extract, parent, wanted)
        except AlreadyExistsError:
            return
        await self._snapshotter.remove(extract)
        reason = self._images.plain.get(digest, "it was not ready in time")
        raise DeclinedError(f"{reference}: layer {digest} cannot be mounted lazily: {reason}")

    async def _forget(self, name: str) -> None:
        """Remove a chain of layers, top first, down to the first that another mount uses."""
        while name:
            try:
                parent = (await self._snapshotter.stat(name)).parent
                await self._snapshotter.remove(name)
            except (PreconditionError, NotFoundError):
                return
            name = parent


_ROOT_LABEL = "containerd.io/gc.root"


def _key(directory: str) -> str:
    return "mount " + hashlib.sha256(directory.encode("utf-8", "surrogateescape")).hexdigest()


def _mount(mounts: list[Mount], directory: str) -> None:
    for one in mounts:
        if one.type == "overlay":
            mount.mount("overlay", directory, "overlay", 0, ",".join(one.options))
        elif one.type == "bind":
            mount.mount(one.source, directory, "", mount.MS_BIND | mount.MS_REC)
        else:
            raise ImgdistError(f"snapshot wants a {one.type} mount, expected overlay or bind")

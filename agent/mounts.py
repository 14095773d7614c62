"""`imgdist mount`: an image's root file system without containerd, through the same snapshots."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack

from agent.images import Images
from agent.known_images import KnownImage
from agent.layers import mount
from agent.snapshotter import labels
from agent.snapshotter.core import Snapshotter
from agent.snapshotter.model import AlreadyExistsError, Info, Mount, PreconditionError
from imgdist import mountinfo
from imgdist.errors import DeclinedError, ImgdistError, NotFoundError, UsageError

log = logging.getLogger("imgdist.agent")


class ImageMounts:
    """Mounts made by hand. `snapshotter` is one of their own: containerd's garbage collector removes every snapshot
    that it does not know from the one that it is given."""

    def __init__(self, images: Images, snapshotter: Snapshotter) -> None:
        self._images = images
        self._snapshotter = snapshotter
        self._lock = asyncio.Lock()

    async def recover(self) -> None:
        """At start, before the snapshots' layers are mounted: forget what a reboot or a user unmounted, and what a
        mount that was cut short left. New mounts wait meanwhile."""
        async with self._lock:
            await self._forget_unmounted()

    async def _forget_unmounted(self) -> None:
        for info in await self._snapshotter.walk():
            directory = info.labels.get(_ROOT_LABEL)
            if directory is not None and mountinfo.find(directory) is None:
                log.info("no image is mounted at %s any more: forgotten", directory)
                await self._snapshotter.remove(info.name)
        found = await self._snapshotter.walk()
        parents = {info.parent for info in found}
        for info in found:
            if _ROOT_LABEL not in info.labels and info.name not in parents:
                await self._forget(info.name)

    async def mount(self, reference: str, directory: str, *, writable: bool) -> str:
        """Show image `reference` at `directory` (absolute); returns the manifest's digest.

        DeclinedError if one of its layers cannot be lazy, UsageError if something of ours is mounted there already,
        and what resolving the reference raises. A failed mount leaves nothing.
        """
        if not os.path.isabs(directory):
            raise UsageError(f"{directory}: expected an absolute path to mount on")
        directory = await _resolved(directory)
        image = await self._opened(reference)
        async with self._lock:
            top = await self._take_all(image, reference)
            try:
                await self._show(top, directory, writable)
            except BaseException:
                await self._forget(top)
                raise
        return image.manifest_digest

    async def umount(self, directory: str) -> None:
        """Undo `mount`. NotFoundError if nothing of ours is mounted there; BusyError says who uses it."""
        directory = await _resolved(directory)
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

    async def _opened(self, reference: str) -> KnownImage:
        """The image, each of its layers mounted: without the lock, as a layer's conversion may take minutes."""
        job = await self._images.open(reference, anew=True)
        await self._images.check_rooted(reference, job.image)
        for digest, opening in job.layers.items():
            try:
                await opening.wait()
            except (ImgdistError, OSError) as error:
                raise DeclinedError(f"{reference}: layer {digest} cannot be mounted lazily: {error}") from error
        return job.image

    async def _show(self, top: str, directory: str, writable: bool) -> None:
        key = _key(directory)
        create = self._snapshotter.prepare if writable else self._snapshotter.view
        try:
            mounts = await create(key, top, {_ROOT_LABEL: directory})
        except AlreadyExistsError:
            raise UsageError(f"{directory}: an image is mounted there already; imgdist umount it first") from None
        try:
            await asyncio.to_thread(_mount, mounts, directory)
        except BaseException:
            await self._snapshotter.remove(key)
            raise

    async def _take_all(self, image: KnownImage, reference: str) -> str:
        """A snapshot for each layer; the name of the top one. None stays if one cannot be had."""
        top = ""
        try:
            for layer in image.layers:
                await self._take(layer.chain_id, layer.digest, top, reference, image.manifest_digest)
                top = layer.chain_id
        except BaseException:
            await self._forget(top)
            raise
        return top

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
        plain = self._images.openings.plain.get(digest)
        reason = self._snapshotter.declined(chain_id) or (plain.reason if plain else "the agent's log says why")
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
_KEY = "mount "


def mounted_at(info: Info) -> str | None:
    """The directory that an image mount's own snapshot is shown at; None for any other snapshot."""
    return info.labels.get(_ROOT_LABEL) if info.name.startswith(_KEY) else None


def user_of(info: Info) -> str:
    """Who a snapshot is for, as people know it; containerd names its snapshots NAMESPACE/NUMBER/KEY."""
    directory = mounted_at(info)
    if directory is not None:
        return f"mount {directory}"
    namespace, _, rest = info.name.partition("/")
    return f"container {namespace}/{rest.partition('/')[2]}" if "/" in rest else f"snapshot {info.name}"


async def _resolved(directory: str) -> str:
    """Without symlinks, as the kernel names it in mountinfo: by that name a restart finds the mount again."""
    return await asyncio.to_thread(os.path.realpath, directory)


def _key(directory: str) -> str:
    return _KEY + hashlib.sha256(directory.encode("utf-8", "surrogateescape")).hexdigest()


def _mount(mounts: list[Mount], directory: str) -> None:
    for one in mounts:
        if one.type == "overlay":
            _mount_overlay(one.options, directory)
        elif one.type == "bind":
            mount.mount(one.source, directory, "", mount.MS_BIND | mount.MS_REC)
            if "ro" in one.options:  # a bind takes its flags in a second step (mount(2))
                mount.mount("none", directory, "", mount.MS_BIND | mount.MS_REMOUNT | mount.MS_RDONLY)
        else:
            raise ImgdistError(f"snapshot wants a {one.type} mount, expected overlay or bind")


def _mount_overlay(options: Sequence[str], directory: str) -> None:
    """Options that do not fit into one page (a deep root, a hundred layers) name their directories by descriptors."""
    data = ",".join(options)
    with ExitStack() as opened:
        if len(os.fsencode(data)) >= mount.PAGE:
            data = ",".join(_shortened(option, opened) for option in options)
        mount.mount("overlay", directory, "overlay", 0, data)


def _shortened(option: str, opened: ExitStack) -> str:
    key, _, value = option.partition("=")
    if not key.endswith("dir"):
        return option
    descriptors = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in value.split(":")]
    for descriptor in descriptors:
        opened.callback(os.close, descriptor)
    return f"{key}=" + ":".join(f"/proc/self/fd/{descriptor}" for descriptor in descriptors)

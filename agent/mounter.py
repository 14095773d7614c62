"""From a pack on disk to a mounted layer: shown by the view or local, switched, rescued, unmounted.

Every call may wait for the kernel, and through it for the view: they run in threads, never on the event loop, and the
caller makes no two calls for one layer at a time. Nothing here waits for a chunk except reading through a mount.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.layers import loop, mount, mountinfo
from agent.layerstore import LayerStore
from fuse.link import ViewLink
from imgdist.errors import ImgdistError
from imgdist.pack import BLOCK

READ_BYTES = 256 << 10
"""Metadata is read through the loop device in pieces of this size: 27 FUSE reads for 38,000 files instead of 892,
since EROFS itself reads metadata 4 KiB at a time. (Measured with 1 MiB; each of the view's threads comes to hold as
much memory as the largest read.)"""

_unread = memoryview(mmap.mmap(-1, READ_BYTES))
"""What all those reads write to and nobody looks at: one for all layers that are being mounted, not one each."""


@dataclass(frozen=True, slots=True)
class Found:
    """A layer mount that an earlier agent left: `local` if its loop shows the image file itself, `live` if it shows
    a file of today's view."""

    local: bool
    live: bool


class Mounter:
    """Mounts layers below `mounts` (ROOT/l), through the view mounted at `view_directory` or directly."""

    def __init__(self, mounts: Path, view_directory: Path, view: ViewLink | None) -> None:
        self._mounts = mounts
        self._view_directory = view_directory
        self._view = view
        mounts.mkdir(parents=True, exist_ok=True)

    def directory(self, store: LayerStore) -> str:
        """Where the layer is mounted, or will be."""
        return str(self._mounts / store.name)

    def show(self, store: LayerStore) -> None:
        """Have the view show the layer's image. Ends when the view knows it."""
        with _present_file(store) as present:
            self._link().add(store.node, store.index.image_size, store.name, store.image_fd, present)

    def announce(self, store: LayerStore) -> None:
        """Have the view show a layer that an earlier agent mounted, as soon as it hears from this one."""
        with _present_file(store) as present:
            self._link().announce(store.node, store.index.image_size, store.name, store.image_fd, present)

    def hide(self, store: LayerStore) -> None:
        """Take the layer out of the view again; nothing may read it any more."""
        self._link().remove(store.node)

    def mount_shown(self, store: LayerStore) -> None:
        """Mount the view's file of the layer. Its metadata must be present: mounting reads it."""
        with loop.attached(str(self._view_directory / store.name)) as device:
            loop.set_read_ahead(device, loop.LAZY_READ_AHEAD)
            self._mount(device, store)

    def mount_local(self, store: LayerStore) -> None:
        """Mount the local image file, which must be complete."""
        with loop.attached(str(store.directory / "image")) as device:
            self._mount(device, store)

    def switch(self, store: LayerStore) -> None:
        """Let the mount's loop device show the local image file, which is complete and durable."""
        device = self._device(store)
        loop.change_file(device, store.image_fd)
        loop.set_read_ahead(device, loop.default_read_ahead(device))

    def rescue(self, store: LayerStore) -> None:
        """Let the mount's loop device show the layer's file of the new view."""
        descriptor = os.open(self._view_directory / store.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            loop.change_file(self._device(store), descriptor)
        finally:
            os.close(descriptor)

    def found(self, store: LayerStore) -> Found | None:
        """What is mounted where this layer belongs, None if nothing is."""
        entry = mountinfo.find(self.directory(store))
        if entry is None:
            return None
        backing = loop.backing(entry.source)
        image = os.stat(store.directory / "image")
        local = (backing.device, backing.inode) == (image.st_dev, image.st_ino)
        return Found(local, live=backing.device == self._view_device())

    def unmount(self, store: LayerStore) -> None:
        """Unmount the layer; its loop device goes by itself. BusyError says who holds it."""
        mount.umount(self.directory(store))

    def _mount(self, device: str, store: LayerStore) -> None:
        target = self.directory(store)
        mount.prepare_mount_point(target)
        mount.mount_erofs(device, target)
        try:
            _read_metadata(device, store)
        except BaseException:
            mount.umount(target, lazy=True)  # a mount that failed leaves nothing
            raise

    def _device(self, store: LayerStore) -> str:
        entry = mountinfo.find(self.directory(store))
        if entry is None:
            raise ImgdistError(f"layer {store.pack_id.hex()} is not mounted at {self.directory(store)} any more")
        return entry.source

    def _view_device(self) -> int | None:
        try:
            return os.stat(self._view_directory).st_dev
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            return None  # it died as well; the holder is about to make another

    def _link(self) -> ViewLink:
        if self._view is None:
            raise ImgdistError("this agent runs without a view")
        return self._view


@contextmanager
def _present_file(store: LayerStore) -> Iterator[int]:
    descriptor = os.open(store.directory / "present", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_metadata(device: str, store: LayerStore) -> None:
    """Bring the file system's metadata into the page cache by large reads of the mounted device."""
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for first_block, blocks in store.index.metadata_extents:
            offset, end = first_block * BLOCK, (first_block + blocks) * BLOCK
            while offset < end:
                offset += os.preadv(descriptor, [_unread[: end - offset]], offset) or end
    finally:
        os.close(descriptor)

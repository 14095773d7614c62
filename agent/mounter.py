"""From a pack on disk to a mounted layer: shown by the view or local, switched, rescued, unmounted.

Every call may wait for the kernel, and through it for the view: they run in threads, never on the event loop, and the
caller makes no two calls for one layer at a time. Nothing here waits for a chunk except reading through a mount.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.layers import loop, mount
from agent.layers.readers import ViewReaders
from agent.layerstore import LayerStore
from fuse.link import ViewLink
from imgdist import mountinfo
from imgdist.errors import ImgdistError
from imgdist.pack import BLOCK

READ_BYTES = 256 << 10
"""Metadata is read through the loop device in pieces of this size: 27 FUSE reads for 38,000 files instead of 892,
since EROFS itself reads metadata 4 KiB at a time. (Measured with 1 MiB; each of the view's threads comes to hold as
much memory as the largest read.)"""

FEW_BLOCKS = 4
"""Of metadata: what a layer of some dozen files has (a guess)."""

_unread = memoryview(mmap.mmap(-1, READ_BYTES))
"""What all those reads write to and nobody looks at: one for all layers that are being mounted, not one each."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an earlier agent left of a layer: `local` if its loop shows the image file itself, `live` if it shows a
    file of today's view; `mounted` unless only others still read it, from mounts that we cannot see; `ours` unless
    what is mounted at the layer's place is another layer."""

    local: bool
    live: bool
    mounted: bool = True
    ours: bool = True


class Mounter:
    """Mounts layers below `mounts` (ROOT/l), through the view mounted at `view_directory` or directly."""

    def __init__(self, mounts: Path, view_directory: Path, view: ViewLink | None) -> None:
        self._mounts = mounts
        self._view_directory = view_directory
        # As the kernel names it. The last component is not looked at: that could wait for the view.
        self._view_readers = ViewReaders(Path(os.path.realpath(view_directory.parent), view_directory.name))
        self._view = view
        mounts.mkdir(parents=True, exist_ok=True)

    def highest_node(self) -> int:
        """The highest node number that any layer was ever mounted under, 0 if none was."""
        names = [entry.name for entry in os.scandir(self._mounts)]
        return max((int(name, 36) for name in names if name.isascii() and name.isalnum()), default=0)

    def directory(self, store: LayerStore) -> str:
        """Where the layer is mounted, or will be."""
        return f"{self._mounts}/{store.name}"

    def show(self, store: LayerStore) -> None:
        """Wait until the view knows a layer that was announced."""
        self._link().confirm(store.node)

    def announce(self, store: LayerStore) -> None:
        """Have the view show the layer's image, as soon as it hears of it."""
        with _present_file(store) as present:
            self._link().announce(store.node, store.index.image_size, store.name, store.image_fd, present)

    def wait_live(self, timeout_s: float) -> None:
        """Until there is a view that shows every layer announced; TemporaryError if there is none in time."""
        self._link().wait_live(timeout_s)

    def hide(self, store: LayerStore) -> None:
        """Take the layer out of the view again; nothing may read it any more."""
        self._link().remove(store.node)
        self._view_readers.forget(store.name)

    def mount_shown(self, store: LayerStore) -> None:
        """Mount the view's file of the layer. Its metadata must be present: mounting reads it."""
        with loop.attached(str(self._view_directory / store.name)) as device:
            self._view_readers.add(store.name, device)
            loop.set_read_ahead(device, loop.LAZY_READ_AHEAD)
            self._mount(device, store)

    def mount_local(self, store: LayerStore) -> None:
        """Mount the local image file, which must be complete."""
        with loop.attached(str(store.directory / "image")) as device:
            loop.set_read_ahead(device, loop.local_read_ahead(device, store.image_fd))
            self._mount(device, store)

    def switch(self, store: LayerStore) -> None:
        """Let the layer's loop devices show the local image file, which is complete and durable."""
        for device in self._devices(store):
            loop.change_file(device, store.image_fd)
            loop.set_read_ahead(device, loop.local_read_ahead(device, store.image_fd))

    def rescue(self, store: LayerStore) -> None:
        """Let the layer's loop devices show its file of the new view, which must know it."""
        descriptor = os.open(self._view_directory / store.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for device in self._devices(store):
                loop.change_file(device, descriptor)
        finally:
            os.close(descriptor)

    def found(self, store: LayerStore) -> Found | None:
        """What is mounted where this layer belongs, or else reads it still; None if nothing does."""
        entry = mountinfo.find(self.directory(store))
        devices = [entry.source] if entry is not None else self._view_readers.of(store.name)
        if not devices:
            return None
        backing = loop.backing(devices[0])
        image = os.stat(store.directory / "image")
        local = (backing.device, backing.inode) == (image.st_dev, image.st_ino)
        live = backing.device == self._view_device()
        return Found(local, live, mounted=entry is not None, ours=local or _may_show(devices[0], store))

    def is_read(self, store: LayerStore) -> bool:
        """Whether a loop device shows the view's file of the layer. An unmounted layer is read on where overlayfs, or
        another mount namespace, has a copy of its mount: mountinfo tells of neither, the device of both."""
        return bool(self._view_readers.of(store.name))

    def unmount(self, store: LayerStore) -> None:
        """Unmount the layer; its loop device goes by itself, with the last reader. BusyError says who holds it."""
        mount.umount(self.directory(store))

    def forget(self, store: LayerStore) -> None:
        """The layer is about to be removed: its mount point goes, unless something is mounted there all the same."""
        with contextlib.suppress(OSError):
            os.rmdir(self.directory(store))

    def _mount(self, device: str, store: LayerStore) -> None:
        target = self.directory(store)
        mount.prepare_mount_point(target)
        mount.mount_erofs(device, target)
        try:
            _read_metadata(device, store)
        except BaseException:
            mount.umount(target, lazy=True)  # a mount that failed leaves nothing
            raise

    def _devices(self, store: LayerStore) -> list[str]:
        found = self._view_readers.of(store.name)
        if found:
            return found
        entry = mountinfo.find(self.directory(store))
        if entry is None:
            raise ImgdistError(f"layer {store.pack_id.hex()} is not mounted at {self.directory(store)} any more")
        self._view_readers.add(store.name, entry.source)  # of a dead view, whose path the kernel does not know
        return [entry.source]

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


def _may_show(device: str, store: LayerStore) -> bool:
    """False if the device shows another layer. Looks at what the page cache has of block 0, whose UUID comes of the
    layer's content: a real read might wait for a view that waits for this agent. Where that is nothing, the node
    number that the pack keeps stands."""
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    block = bytearray(BLOCK)
    try:
        # A read that must not wait has the kernel read ahead all the same, of what may not be here yet.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        return os.preadv(descriptor, [block], 0, os.RWF_NOWAIT) < BLOCK or block == store.index.block0()
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _read_metadata(device: str, store: LayerStore) -> None:
    """Bring the file system's metadata into the page cache by large reads of the mounted device. A few blocks are read
    one by one just as well, some of them by mount(2) itself."""
    if sum(blocks for _, blocks in store.index.metadata_extents) <= FEW_BLOCKS:
        return
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for first_block, blocks in store.index.metadata_extents:
            offset, end = first_block * BLOCK, (first_block + blocks) * BLOCK
            while offset < end:
                offset += os.preadv(descriptor, [_unread[: end - offset]], offset) or end
    finally:
        os.close(descriptor)

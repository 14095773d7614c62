"""One layer as the view knows it: its image, its present map, and which blocks were read already."""

from __future__ import annotations

import errno
import os

from fuse.present import PresentMap
from imgdist.errors import CorruptError
from imgdist.pack import BLOCK

AHEAD = 256 * 1024
"""Read ahead of what a disk thread reads. A disk's own read-ahead may be 8 MiB for each of several readers, in memory
that can hardly be taken back meanwhile [measured in 64 MiB: a process killed in 2 of 16 runs with it, 0 of 19 without].
"""


class Layer:
    """A layer image of `size_bytes` behind file `name`. Owns its descriptors.

    They are closed when the last reference goes, never earlier: a device thread may be inside a read of a layer
    that is being removed, and a number that is closed under it could by then belong to another layer's image.
    """

    __slots__ = ("_image_fd", "name", "node", "present", "size_bytes", "touched")

    def __init__(self, node: int, size_bytes: int, name: bytes, image_fd: int, present_fd: int) -> None:
        """Takes over both descriptors, also on failure. Raises OSError, and CorruptError if the files do not fit the
        layer."""
        self._image_fd = image_fd
        try:
            self._image_fd = _another(image_fd)
            os.close(image_fd)
            self.present = PresentMap(present_fd)
        finally:
            os.close(present_fd)
        actual = os.fstat(self._image_fd).st_size
        if actual < size_bytes or self.present.blocks < size_bytes // BLOCK:
            raise CorruptError(
                f"layer {name!r}: expected {size_bytes} bytes, the image has {actual} and its "
                f"present map {self.present.blocks * BLOCK}"
            )
        os.posix_fadvise(self._image_fd, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead but ours
        self.node, self.size_bytes, self.name = node, size_bytes, name
        self.touched = bytearray(size_bytes // BLOCK)

    def __del__(self) -> None:
        os.close(self._image_fd)

    @property
    def label(self) -> str:
        """The file's name, for messages."""
        return self.name.decode("ascii", "replace")

    def has(self, offset: int, size: int) -> bool:
        """Whether all bytes of [offset, offset + size) are present."""
        first = offset // BLOCK
        return not self.present.missing(first, -(-(offset + size) // BLOCK) - first)

    def read_now(self, buffer: memoryview, offset: int) -> bool:
        """Fill `buffer` from the image at `offset` if its pages are cached; False if not, if the file system cannot
        tell (tmpfs, network file systems), or if the image ends before: `read_into` knows. Raises OSError."""
        try:
            return os.preadv(self._image_fd, [buffer], offset, os.RWF_NOWAIT) == len(buffer)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise
            return False

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from the image at `offset`, waiting for the disk. Raises OSError, CorruptError if the image
        ends before."""
        count = os.preadv(self._image_fd, [buffer], offset)
        if count != len(buffer):
            raise CorruptError(f"the image ended {len(buffer) - count} bytes early")
        after = offset + count
        ahead = min(AHEAD, self.size_bytes - after)
        if ahead > 0 and self.has(after, ahead):
            os.posix_fadvise(self._image_fd, after, ahead, os.POSIX_FADV_WILLNEED)

    def touch(self, offset: int, size: int) -> tuple[int, int, int] | None:
        """(node, first block, blocks) if a block of the range is read for the first time."""
        first, end = offset // BLOCK, -(-(offset + size) // BLOCK)
        if self.touched.find(0, first, end) < 0:
            return None
        self.touched[first:end] = b"\1" * (end - first)
        return self.node, first, end - first


def _another(fd: int) -> int:
    """A descriptor of the same file with a description of its own: what is advised there is no advice to the agent's
    uploads. Raises OSError."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)

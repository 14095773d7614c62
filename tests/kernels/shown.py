"""One layer in the view of a real holder, on a loop device, mounted; the test is its agent."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path

from layer_image import build_image
from rig.images import LayerTar
from viewrig import START_S, ImageFile, Misses, Mounted, raw_view

from agent.layers import loop
from agent.layers.mount import mount_erofs, umount
from fuse.link import ViewLink
from imgdist.pack import BLOCK

CHUNK = 256 * 1024
_SIZES = (10, BLOCK, 70_000, 300_000)
_LATE_S = 0.4


def files() -> dict[str, bytes]:
    """Names and contents of the files of the layer, 6 MB."""
    rng = random.Random(9)
    return {f"file{number}": rng.randbytes(_SIZES[number % len(_SIZES)]) for number in range(64)}


def layer_tar() -> bytes:
    """Those files, and one of each other kind of member."""
    tar = LayerTar().add("etc/", mode=0o750, uid=100_000, gid=7)
    for name, content in files().items():
        tar.add(name, content)
    tar.link("etc/soft", "../file1").link("etc/hard", "file2", hard=True, mode=0o644)
    tar.add("etc/null", type=b"3", mode=0o600, devmajor=1, devminor=3)
    return tar.add("etc/tagged", b"x", pax_headers={"SCHILY.xattr.user.tag": "value"}).bytes()


class Shown:
    """The layer; nothing of it is present at first. A miss is answered as `answer` says."""

    def __init__(self, directory: Path, view: Mounted) -> None:
        build_image([layer_tar()], directory / "made")
        self.content = (directory / "made").read_bytes()
        self.local = directory / "made"
        self.view, self.misses = view, Misses()
        self.link: ViewLink = view.link(self.misses)
        self.image = ImageFile(directory, 2, self.content)
        self.image.show(self.link, START_S)
        self.file = view.directory / self.image.name
        self._rng = random.Random(3)

    def answer(self, node: int, start: int, length: int) -> None:
        """Fill the chunks of a miss."""
        low, high = start // CHUNK * CHUNK, -(-(start + length) // CHUNK) * CHUNK
        self.image.fill(low, min(high, len(self.content)))
        self.link.written(node, low, min(high, len(self.content)))

    def answer_late(self, node: int, start: int, length: int) -> None:
        """The same at once, or a while later: such reads are parked whatever happens meanwhile."""
        if self._rng.random() < 0.5:
            self.answer(node, start, length)
        else:
            timer = threading.Timer(self._rng.uniform(0, _LATE_S), self.answer, (node, start, length))
            timer.daemon = True
            timer.start()

    def forget(self, offset: int, size: int) -> None:
        """Now and then what was read becomes absent again, so that misses never end."""
        if self._rng.random() < 0.3:
            self.image.present.clear(offset // BLOCK, size // BLOCK)

    def fill_again(self) -> None:
        """All is present, and every parked read is answered."""
        self.image.fill_all()
        self.link.written(self.image.node, 0, len(self.content))


@contextlib.contextmanager
def shown(directory: Path) -> Iterator[Shown]:
    """A holder, its view, and the layer in it."""
    with raw_view(directory) as view:
        layer = Shown(directory, view)
        try:
            yield layer
        finally:
            layer.link.close()


@contextlib.contextmanager
def mounted(layer: Shown, target: Path) -> Iterator[str]:
    """The layer on a loop device (yielded) and mounted at `target`, as an agent does both."""
    target.mkdir()
    with loop.attached(str(layer.file)) as device:
        mount_erofs(device, str(target))
    try:
        yield device
    finally:
        umount(str(target))

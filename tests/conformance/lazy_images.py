"""An image as this project shows it to a container: layers converted and mounted, stacked by the real snapshotter."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from layer_image import build_image
from parts import require

from agent.layers import mount
from agent.snapshotter import labels
from agent.snapshotter.core import Snapshotter
from agent.snapshotter.model import AlreadyExistsError, LayerRequest, Mount, TakenLayer, Usage
from imgdist.errors import CorruptError, DeclinedError
from imgdist.limits import Limits
from supernode.convert.decompress import LayerSource, pieces


@dataclass
class Declined(Exception):
    """A layer of the image (counted from 0) is left to containerd, and why."""

    layer: int
    reason: str

    def __str__(self) -> str:
        return f"layer {self.layer}: {self.reason}"


@dataclass(frozen=True)
class Shown:
    """Where a container's file system is mounted, and the directories whose times the unpacker chooses."""

    root: Path
    times_exempt: set[str]


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    """The layer image as the kernel shows it, after fsck.erofs found nothing wrong with it, nor dump.erofs a feature
    that Linux 5.10 lacks."""
    require(os.getuid() == 0, "root")
    require(shutil.which("fsck.erofs"), "fsck.erofs (Debian: erofs-utils)")
    subprocess.run(["fsck.erofs", str(image)], check=True, capture_output=True)
    said = subprocess.run(["dump.erofs", "-s", str(image)], check=True, capture_output=True, text=True).stdout
    features = next(line.partition(":")[2].split() for line in said.splitlines() if "features" in line)
    assert set(features) <= {"sb_csum", "mtime"}, said
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", str(image), str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


@dataclass
class _ConvertedLayers:
    """`agent.snapshotter.model.Layers` over layer images that are mounted by the test."""

    taken: dict[str, TakenLayer] = field(default_factory=dict)
    directories: dict[str, Path] = field(default_factory=dict)

    async def take_over(self, request: LayerRequest) -> TakenLayer:
        return self.taken[request.chain_id]

    async def ensure_mounted(self, pack_id: str) -> str:
        return str(self.directories[pack_id])

    def above(self, request: LayerRequest, at_most: int) -> Sequence[tuple[str, TakenLayer]]:
        return []

    async def settle(self, pack_ids: Sequence[str]) -> None:
        pass

    def mounted_at(self, pack_id: str) -> str | None:
        return str(self.directories[pack_id])

    async def implied_directories(self, pack_id: str) -> Sequence[bytes]:
        return next(layer.implied_directories for layer in self.taken.values() if layer.pack_id == pack_id)

    async def starting(self, pack_ids: Sequence[str]) -> None:
        pass

    async def usage(self, pack_id: str) -> Usage:
        return Usage()

    async def release(self, pack_id: str) -> None:
        pass


@contextmanager
def shown(layers: Sequence[bytes]) -> Iterator[Shown]:
    """Show an image of these layers (tars, compressed or not) as a container of it sees it. Raises Declined."""
    with ExitStack() as undo:
        directory = Path(tempfile.mkdtemp(prefix="i"))
        undo.callback(shutil.rmtree, directory)
        converted, exempt = _ConvertedLayers(), set[str]()
        chain: list[str] = []
        failed: Declined | None = None
        for number, blob in enumerate(layers):
            at = directory / str(number)
            try:
                layer = _converted(blob, at.with_suffix(".image"))
            except (DeclinedError, CorruptError) as error:
                failed = Declined(number, str(error))
                break
            chain.append(labels.chain_id(chain[-1] if chain else None, layer.diff_id))
            converted.taken[chain[-1]] = layer
            converted.directories[layer.pack_id] = undo.enter_context(mounted(at.with_suffix(".image"), at))
            exempt = exempt - _directories(at) | undescribed(layer.implied_directories)
        runner = undo.enter_context(asyncio.Runner())
        snapshotter = Snapshotter(directory / "s", converted)
        undo.callback(snapshotter.close)
        wanted = runner.run(_stacked(snapshotter, chain, undo.enter_context(_heard())))
        if failed is not None:
            raise failed
        assert wanted.type == "overlay", wanted
        root = directory / "m"
        root.mkdir()
        mount.mount("overlay", str(root), "overlay", 0, ",".join(wanted.options))
        undo.callback(mount.umount, str(root))
        yield Shown(root, exempt)


def undescribed(implied: Sequence[bytes]) -> set[str]:
    """The directories that a layer does not describe at all: the unpacker chooses their times."""
    return {path.decode(errors="surrogateescape") for path in implied if not path.endswith(b"/")}


def _converted(blob: bytes, image: Path) -> TakenLayer:
    sha256 = hashlib.sha256()

    def tar() -> Iterator[bytes]:
        for piece in pieces(LayerSource(BytesIO(blob)), Limits()):
            sha256.update(piece)
            yield piece

    summary = build_image(tar(), image).summary
    return TakenLayer(image.name, f"sha256:{sha256.hexdigest()}", summary.implied_directories, summary.hides)


def _directories(root: Path) -> set[str]:
    return {os.path.relpath(top, root) for top, _, _ in os.walk(root)}


@contextmanager
def _heard() -> Iterator[list[logging.LogRecord]]:
    """What the snapshotter logs: why it declines a layer."""
    said: list[logging.LogRecord] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = said.append  # type: ignore[method-assign]
    logger = logging.getLogger("imgdist.snapshotter")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


async def _stacked(snapshotter: Snapshotter, chain: Sequence[str], said: Sequence[logging.LogRecord]) -> Mount:
    """Offer every layer as containerd does, then ask for a container's mounts."""
    parent = ""
    for number, chain_id in enumerate(chain):
        try:
            await snapshotter.prepare(f"e{number}", parent, {labels.SNAPSHOT_REF: chain_id})
        except AlreadyExistsError:
            parent = chain_id
        else:
            assert said[-1].levelno == logging.INFO, said[-1].getMessage()  # an error that counts as a decline
            raise Declined(number, said[-1].getMessage())
    (found,) = await snapshotter.prepare("container", parent, {})
    return found

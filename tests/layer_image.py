"""A layer image file from a tar: the smallest user of the converter, and an example of how to call it.

Block 0 is zeros but for the superblock at 1024; the chunks follow from block 1 on, in the order they are emitted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from imgdist.erofs import DEFAULT_LIMITS, LayerSummary, LayerWriter, Limits
from imgdist.pack import BLOCK


@dataclass
class Built:
    """What converting gave: `chunks` are (digest, bytes, metadata) in order, `split` the tar-split stream."""

    summary: LayerSummary
    chunks: list[tuple[bytes, int, bool]]
    split: bytes


def build_image(pieces: Iterable[bytes], image: Path, limits: Limits = DEFAULT_LIMITS) -> Built:
    """Convert the tar that `pieces` make up and write the layer image to the file `image`."""
    chunks: list[tuple[bytes, int, bool]] = []
    split: list[bytes] = []
    with image.open("wb") as file:

        def emit(raw: memoryview, metadata: bool) -> None:
            chunks.append((blake3(raw).digest(), len(raw), metadata))
            file.write(raw)

        file.write(bytes(BLOCK))
        writer = LayerWriter(emit, limits, split.append)
        for piece in pieces:
            writer.feed(piece)
        summary = writer.finish(lambda: blake3(b"".join(digest for digest, _, _ in chunks)).digest())
        file.seek(1024)
        file.write(summary.superblock)
    assert image.stat().st_size == summary.image_size
    return Built(summary, chunks, b"".join(split))

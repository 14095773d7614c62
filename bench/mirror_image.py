"""Images for pulls alone: what compresses no more, and is made in no time."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from imgdist.demo.image import Image, ImageWriter, member

_PIECE = 1 << 20


class _Noise(io.RawIOBase):
    """Random bytes without end."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return os.urandom(size if size >= 0 else _PIECE)


def random_image(directory: Path, layer_bytes: Sequence[int]) -> Image:
    """An image whose layers are gzip members of so many random bytes each, stored."""
    writer = ImageWriter(directory, level=0)
    for number, size in enumerate(layer_bytes):

        def fill(tar: tarfile.TarFile, number: int = number, size: int = size) -> None:
            tar.addfile(member(f"noise{number}", size=size, mode=0o644), _Noise())

        writer.add_layer(f"noise {number}", fill)
    return writer.finish(command=["/bin/true"])

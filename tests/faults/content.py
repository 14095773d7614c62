"""Files whose every block is known from its place: readers verify without a second copy to compare with."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from pathlib import Path

from imgdist.demo.image import Image, ImageWriter, member
from imgdist.pack import BLOCK

FILE = "big"
"""Each layer N has one file, dN/big: its first block is block 1 of the layer image (data stands in tar order)."""
DATA_AT = 1

_NAME = 32
_POOL_BYTES = 16 << 20
_POOL = random.Random(0).randbytes(_POOL_BYTES)


def blocks(seed: int, first: int, count: int) -> bytes:
    """Blocks [first, first + count) of the file made from `seed`: no two blocks of any two files are alike."""
    return b"".join(_block(seed, number) for number in range(first, first + count))


def _block(seed: int, number: int) -> bytes:
    """A name that no other block has, and bytes from anywhere in the pool: nothing that compresses, as rates are of
    bytes on the wire."""
    name = hashlib.blake2b(b"%d %d" % (seed, number), digest_size=_NAME).digest()
    at = int.from_bytes(name[:4], "little") % (_POOL_BYTES - BLOCK)
    return name + _POOL[at : at + BLOCK - _NAME]


def image(directory: Path, layers: int, layer_blocks: int, *, seed: int = 0) -> Image:
    """An image of `layers` such layers; layer N's file is made from `seed` + N."""
    writer = ImageWriter(directory, level=0)
    for number in range(layers):

        def fill(tar: tarfile.TarFile, number: int = number) -> None:
            tar.addfile(member(f"d{number}/{FILE}", size=layer_blocks * BLOCK), _Stream(seed + number, layer_blocks))

        writer.add_layer(f"layer {number}", fill)
    return writer.finish(command=["/none"])


class _Stream(io.RawIOBase):
    """The bytes of a file, made as they are read: one of a gigabyte needs no memory."""

    def __init__(self, seed: int, count: int) -> None:
        self._blocks = (_block(seed, number) for number in range(count))
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        pieces, got = [self._rest], len(self._rest)
        while got < size and (block := next(self._blocks, b"")):
            pieces.append(block)
            got += len(block)
        data = b"".join(pieces)
        self._rest = data[size:]
        return data[:size]

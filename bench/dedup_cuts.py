"""What other cuts of chunks would share between two layers, and what they would cost. Nothing is stored."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from blake3 import blake3

from imgdist.erofs.inodes import INLINE_MAX
from imgdist.pack import chunker, codec

CUTS = tuple(kib << 10 for kib in (64, 128, 256, 512, 1024))


@dataclass(frozen=True, slots=True)
class Shares:
    """Of the new layer: its chunks, the bytes of their encoded bodies, and those of bodies that must be fetched."""

    chunks: int
    encoded_bytes: int
    fetched_bytes: int

    @property
    def saved(self) -> float:
        """The part of the encoded bytes that need not be fetched again."""
        return 1 - self.fetched_bytes / self.encoded_bytes


def shares(old: Path, new: Path, largest: int) -> Shares:
    """Cut both layers (tar, any compression that tarfile knows) into chunks of at most `largest` bytes. File contents
    only: metadata is some percent, and always new."""
    known = {blake3(chunk).digest() for chunk in _chunks(old, largest)}
    count = encoded = fetched = 0
    for chunk in _chunks(new, largest):
        size = len(codec.encode(chunk)[1])
        count, encoded = count + 1, encoded + size
        digest = blake3(chunk).digest()
        if digest not in known:
            known.add(digest)
            fetched += size
    return Shares(count, encoded, fetched)


def _chunks(layer: Path, largest: int) -> Iterator[memoryview]:
    done: list[memoryview] = []
    with patch.object(chunker, "CHUNK_MAX", largest), tarfile.open(layer) as tar:
        cutter = chunker.Chunker(lambda raw, _: done.append(raw))
        for member in tar:
            content = tar.extractfile(member) if member.isreg() and member.size > INLINE_MAX else None
            if content is not None:
                cutter.begin_file(member.size)
                cutter.write(content.read())
                cutter.end_file()
                yield from done
                done.clear()
        cutter.finish()
        yield from done

"""The converter alone, for `imgdist convert`: a layer file to a layer image and an index that stand by themselves."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from imgdist.errors import NotFoundError
from imgdist.pack import BLOCK, codec, records
from imgdist.pack.index import Index, IndexBuilder
from supernode.convert.pipeline import Options, convert

IMAGE, INDEX = "image.erofs", "index"


def convert_file(layer: Path, out: Path) -> dict[str, Any]:
    """Write `out/image.erofs` and `out/index` of the layer file `layer`; its compression is told by its content.

    Returns what `imgdist convert --json` prints: pack_id, diff_id, source_digest, image_bytes, chunks, files,
    seconds. The files appear when they are whole. Raises `NotFoundError`, `DeclinedError`, `CorruptError`.
    """
    started = time.monotonic()
    if not layer.is_file():
        raise NotFoundError(f"layer {layer}: no such file")
    out.mkdir(parents=True, exist_ok=True)
    with open(layer, "rb", buffering=0) as file, _replacing(out / IMAGE) as image, _replacing(out / INDEX) as index:
        source = _HashingReader(file)
        sink = _ImageSink(image)
        converted = convert(source, sink, Options(level=None))
        source_digest = f"sha256:{source.hash.hexdigest()}"
        index.write(sink.index(source_digest))
    return {
        "pack_id": converted.pack_id.hex(),
        "diff_id": converted.diff_id,
        "source_digest": source_digest,
        "image_bytes": converted.image_bytes,
        "chunks": converted.chunks,
        "files": converted.files,
        "seconds": round(time.monotonic() - started, 3),
    }


class _HashingReader:
    """A file that hashes what is read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.hash.update(data)
        return data


class _ImageSink:
    """Writes the layer image as the kernel mounts it, and keeps the index until the source's digest is known."""

    def __init__(self, image: BinaryIO) -> None:
        self._image = image
        self._image.seek(BLOCK)
        self._builder = IndexBuilder()
        self._stream = bytearray()

    def add_chunk(self, chunk: records.Chunk, encoding: int, body: codec.Body) -> None:
        if encoding == codec.ZERO:
            self._image.seek(chunk.blocks * BLOCK, os.SEEK_CUR)
        else:
            self._image.write(body)
        self.add_record(chunk)

    def add_record(self, record: records.Record) -> None:
        self._stream += self._builder.add(record)

    def add_split(self, data: bytes) -> None:
        """Not kept: the layer itself is at hand here."""

    def finish(self) -> bytes:
        return self._builder.pack_id()

    def index(self, source_digest: str) -> bytes:
        """The sealed stream; also writes the image's block 0, which is known only now."""
        seal = records.encode(records.Seal(self._builder.pack_id()))
        stream = IndexBuilder(source_digest).header + bytes(self._stream) + seal
        index = Index.load(stream)
        self._image.truncate(index.image_size)
        self._image.seek(0)
        self._image.write(index.block0())
        return stream


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` when the block ends well, and is gone when it does not."""
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            yield file
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)

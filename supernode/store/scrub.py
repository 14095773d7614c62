"""Is a pack on disk what its index says? Cheaply (sizes, at every start) or wholly (every byte)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard
from blake3 import blake3

from imgdist.errors import CorruptError, ImgdistError
from imgdist.pack import codec
from imgdist.pack.index import Index
from imgdist.pack.kinds import Kind
from imgdist.proving.proof import VerifiedImage
from supernode.store.layout import CHUNKS, ROW, TABLE, TAR_SPLIT
from supernode.store.reader import PackReader

_PIECE = 256 * 1024


def check_sizes(directory: Path, index: Index) -> None:
    """Raise `CorruptError` unless the files are all there and as long as index and table say."""
    rows = index.chunk_count
    table = (directory / TABLE).stat().st_size
    if table != rows * ROW.size:
        raise CorruptError(f"table has {table} bytes, {rows} chunks take {rows * ROW.size}")
    end = PackReader(directory).end(rows)
    chunks = (directory / CHUNKS).stat().st_size
    if chunks != end:
        raise CorruptError(f"chunk bodies have {chunks} bytes, the table ends at {end}")
    if index.kind is Kind.LAYER and not (directory / TAR_SPLIT).exists():
        raise CorruptError("tar-split stream is missing")


def stored_image(directory: Path, index: Index) -> VerifiedImage:
    """The layer image of a pack, decoded as it is read. `FileNotFoundError` if the pack is gone."""
    reader = PackReader(directory)

    def read_chunk(number: int) -> memoryview:
        out = memoryview(bytearray(index.size(number)))
        codec.decode_into(*reader.body(number), out)
        return out

    return VerifiedImage(index, read_chunk)


def bad_chunks(directory: Path, index: Index) -> Iterator[tuple[int, str]]:
    """(number, reason) of every chunk whose body is not what the index says. Reads and hashes the whole pack."""
    image = stored_image(directory, index)
    for number in range(index.chunk_count):
        try:
            image.chunk(number)
        except ImgdistError as error:
            yield number, str(error)


def open_tar_split(directory: Path) -> IO[bytes]:
    """The tar-split stream of a pack, decompressed as it is read."""
    return zstandard.ZstdDecompressor().stream_reader(open(directory / TAR_SPLIT, "rb"), closefd=True)


def check_tar_split(directory: Path, index: Index) -> None:
    """Raise `CorruptError` unless the tar-split stream has the index's digest."""
    digest, size = blake3(), 0
    with open_tar_split(directory) as stream:
        try:
            while piece := stream.read(_PIECE):
                digest.update(piece)
                size += len(piece)
        except zstandard.ZstdError as error:
            raise CorruptError(f"tar-split stream does not decode: {error}") from error
    if (digest.digest(), size) != (index.tar_split.digest, index.tar_split.size):
        raise CorruptError(f"tar-split stream of {size} bytes does not match the index's digest")


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

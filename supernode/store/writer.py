"""Writing a pack into its part directory; a crash leaves a part that nothing trusts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import zstandard

from imgdist.pack import codec, records
from imgdist.pack.index import IndexBuilder
from imgdist.pack.kinds import Kind
from supernode.store.layout import CHUNKS, INDEX, ROW, TABLE, TAR_SPLIT


class PackWriter:
    """Appends chunks and index records in order; what a reader of the growing files sees is always consistent.

    The pack is not sealed here: `LocalStore.seal` adds the last record when it is sure of the layer.
    """

    def __init__(self, directory: Path, digest: str, kind: Kind = Kind.LAYER, size: int = 0) -> None:
        """`directory` exists and is empty; `digest` of the layer or blob; `size` in bytes of a raw pack's blob."""
        self._builder = IndexBuilder(digest, kind, size)
        self._chunks = _create(directory / CHUNKS)
        self._table = _create(directory / TABLE)
        self._index = _create(directory / INDEX)
        self._split = _SplitFile(directory / TAR_SPLIT) if kind is Kind.LAYER else None
        self._offset = 0
        self.index_bytes = 0
        """Bytes of index that a reader may see."""
        self.chunks = 0
        """Chunks that a reader may see."""
        try:
            self.index_bytes = _write(self._index, self._builder.header)
        except BaseException:
            self.close()
            raise

    def add_chunk(self, chunk: records.Chunk, encoding: int, body: codec.Body) -> None:
        """Append the next chunk: body, row, record."""
        _write(self._chunks, body)
        _write(self._table, ROW.pack(self._offset, len(body), encoding))
        self._offset += len(body)
        self.add_record(chunk)
        self.chunks += 1

    def add_record(self, record: records.Record) -> None:
        """Append a record that has no body."""
        self.index_bytes += _write(self._index, self._builder.add(record))

    def add_split(self, data: bytes) -> None:
        """Append to a layer's tar-split stream."""
        assert self._split is not None
        self._split.stream.write(data)

    def finish(self) -> bytes:
        """Everything is in: make it durable, but for the index, which `LocalStore.seal` ends and syncs. Returns the
        pack id."""
        for file in (self._chunks, self._table):
            os.fsync(file.fileno())
        if self._split is not None:
            self._split.stream.flush(zstandard.FLUSH_FRAME)
            os.fsync(self._split.file.fileno())
        self.close()
        return self._builder.pack_id()

    def close(self) -> None:
        """Let go of the files."""
        for file in (self._chunks, self._table, self._index, *([self._split.file] if self._split else ())):
            file.close()


class _SplitFile:
    """A tar-split stream, compressed into its file."""

    def __init__(self, path: Path) -> None:
        self.file = _create(path)
        compressor = zstandard.ZstdCompressor(level=codec.LEVEL_FAST)
        self.stream = compressor.stream_writer(self.file, closefd=False)


def _create(path: Path) -> BinaryIO:
    return open(path, "xb", buffering=0)


def _write(file: BinaryIO, data: codec.Body) -> int:
    """Write all of `data`: a raw file may take less, near a full disk or a signal."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
    return memoryview(data).nbytes

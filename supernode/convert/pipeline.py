"""The conversion of one layer, start to end, in this process.

::

    source -> gunzip/unzstd -> tar reader + EROFS writer -> chunks -> [threads: BLAKE3, zstd] -> sink, in order
                   `-> [thread: sha256 = diff ID]                                   tar-split -> sink

The tar reader is Python, everything else runs outside the GIL. Measured, CPU-seconds per GB of tar: docs/design.md.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from blake3 import blake3

from imgdist.erofs import DEFAULT_LIMITS, LayerWriter, Limits
from imgdist.pack import codec, records
from supernode.convert.decompress import LayerSource, Readable, pieces
from supernode.convert.encoder import OrderedEncoder

_SWITCH_INTERVAL_S = 0.0005
"""How long the parser may keep the GIL from an encoding thread that wants its next chunk; Python's default is ten
times that, longer than zstd takes for a chunk."""
_HASH_QUEUE = 4
"""Pieces of 512 KiB that may wait for sha256; a guess that covers a pause of the hashing thread."""


class Sink(Protocol):
    """Where a conversion goes. Calls come one at a time, in stream order, but on changing threads."""

    def add_chunk(self, chunk: records.Chunk, encoding: int, body: codec.Body) -> None:
        """The next chunk."""

    def add_record(self, record: records.Record) -> None:
        """A record after the last chunk."""

    def add_split(self, data: bytes) -> None:
        """The next bytes of the tar-split stream. May come between chunks, and at the same time as one."""

    def finish(self) -> bytes:
        """All is in: make it durable and return the pack id."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What a layer became. Sizes in bytes; `source_bytes` as read, `tar_bytes` uncompressed."""

    pack_id: bytes
    diff_id: str
    image_bytes: int
    chunks: int
    files: int
    inodes: int
    source_bytes: int
    tar_bytes: int


@dataclass(frozen=True, slots=True)
class Options:
    """How to convert. None of this changes a pack id."""

    threads: int = 2
    level: int | None = codec.LEVEL_FAST
    """zstd level of chunk bodies; None: raw bodies."""
    limits: Limits = DEFAULT_LIMITS


def convert(source: Readable, sink: Sink, options: Options) -> Converted:
    """Convert the layer that `source` reads. `source` ends where the layer does; it is not closed.

    Raises `DeclinedError` for a layer that only an ordinary pull can handle, `CorruptError` for one that is broken;
    the sink then holds nothing of use. Sets this process's thread switch interval.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    run = _Run(source, sink, options)
    try:
        return run.convert()
    finally:
        run.close()


class _Run:
    def __init__(self, source: Readable, sink: Sink, options: Options) -> None:
        self._sink = sink
        self._source = source if isinstance(source, LayerSource) else LayerSource(source)
        self._pieces = pieces(self._source, options.limits)
        self._diff_id = _DiffId()
        self._split = _Split(sink)
        self._encoder = OrderedEncoder(options.threads, options.level, sink.add_chunk)
        self._writer = LayerWriter(self._encoder.submit, options.limits, self._split.write)

    def convert(self) -> Converted:
        tar_bytes = 0
        for piece in self._pieces:
            self._diff_id.update(piece)
            self._writer.feed(piece)
            tar_bytes += len(piece)
        summary = self._writer.finish(self._encoder.drain)
        diff_id = self._diff_id.digest()
        for record in summary.records(diff_id, self._split.finish()):
            self._sink.add_record(record)
        return Converted(
            pack_id=self._sink.finish(),
            diff_id=f"sha256:{diff_id.hex()}",
            image_bytes=summary.image_size,
            chunks=self._encoder.submitted,
            files=summary.files,
            inodes=summary.inodes,
            source_bytes=self._source.received,
            tar_bytes=tar_bytes,
        )

    def close(self) -> None:
        self._encoder.close()
        self._diff_id.close()


class _DiffId:
    """sha256 of the tar: 0.7 CPU-s/GB with SHA-NI, 2.8 without. From the second piece on, on a thread of its own."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._room: SimpleQueue[None] = SimpleQueue()
        self._work: SimpleQueue[bytes] = SimpleQueue()
        for _ in range(_HASH_QUEUE):
            self._room.put(None)
        self._thread: threading.Thread | None = None
        self._empty = True

    def update(self, data: bytes) -> None:
        if self._empty:
            self._empty = False
            self._hash.update(data)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="diff-id")
            self._thread.start()
        self._room.get()
        self._work.put(data)

    def digest(self) -> bytes:
        self.close()
        return self._hash.digest()

    def close(self) -> None:
        if self._thread is not None:
            self._work.put(b"")
            self._thread.join()

    def _run(self) -> None:
        while data := self._work.get():
            self._hash.update(data)
            self._room.put(None)


class _Split:
    """The tar-split stream on its way to the sink, hashed."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._hash = blake3()
        self._size = 0

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)
        self._sink.add_split(data)

    def finish(self) -> records.TarSplit:
        return records.TarSplit(self._hash.digest(), self._size)

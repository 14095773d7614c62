"""What a fill cannot do without: one thread that receives chunks, decodes, hashes and writes them, and nothing else."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

from agent.imagefile import ImageFile
from agent.supernode_chunks import SupernodeChunks
from imgdist.pack import CHUNK_MAX
from imgdist.pack.codec import decode_into
from imgdist.pack.index import Index
from imgdist.wire.messages import Priority
from imgdist.wire.requests import ChunkRequest

_RUN = 8
"""Chunks of one request, written at once: as an agent's fill does at best."""


def cpu_s_a_gb(supernode: str, indexes: Iterable[Index], directory: Path) -> float:
    """CPU seconds (user and system) of this thread a GB raw, for all chunks of these packs at the supernode's URL, with
    one fdatasync(2) a layer. The images go to `directory`, one at a time."""
    source = SupernodeChunks(supernode)
    buffer = memoryview(mmap.mmap(-1, _RUN * CHUNK_MAX))
    spent, size = 0.0, 0
    try:
        for index in indexes:
            image = ImageFile(directory / "floor", new=True)
            try:
                image.reserve(index.image_size)
                started = time.thread_time()
                for first in range(0, index.chunk_count, _RUN):
                    size += _take(source, index, range(first, min(first + _RUN, index.chunk_count)), buffer, image)
                os.fdatasync(image.fd)
                spent += time.thread_time() - started
            finally:
                image.close()
                (directory / "floor").unlink()
    finally:
        source.close()
    return spent / (size / 1e9)


def _take(source: SupernodeChunks, index: Index, chunks: range, buffer: memoryview, image: ImageFile) -> int:
    """One request; raw bytes of it."""
    start, end = index.start(chunks[0]), index.start(chunks[-1]) + index.size(chunks[-1])

    def put(number: int, encoding: int, body: memoryview) -> None:
        at = index.start(number) - start
        raw = buffer[at : at + index.size(number)]
        decode_into(encoding, body, raw)
        if blake3(raw).digest() != index.digest(number):
            raise RuntimeError(f"chunk {number}: wrong bytes")

    source.fetch(ChunkRequest(index.pack_id.hex(), tuple(chunks), Priority.FILL), put)
    image.write(buffer[: end - start], start, direct=True)
    return end - start

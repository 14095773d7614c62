"""The metadata chunks of packs, as a node needs them to mount a layer: given with the layer's index."""

from __future__ import annotations

from collections.abc import Iterator

from imgdist.pack.records import Chunk, RecordDecoder
from imgdist.wire.control import Body
from supernode.store.reader import PackReader


def metadata_bodies(reader: PackReader, stream: bytes, most_bytes: int) -> tuple[Body, ...]:
    """All of a pack's metadata chunks, whose index is `stream`; none if they take more than `most_bytes`."""
    bodies = []
    for number in _metadata_chunks(stream):
        if (most_bytes := most_bytes - reader.row(number).length) < 0:
            return ()
        bodies.append(Body(number, *reader.body(number)))
    return tuple(bodies)


def _metadata_chunks(stream: bytes) -> Iterator[int]:
    chunks = (record for record, _ in RecordDecoder().feed(stream) if isinstance(record, Chunk))
    return (number for number, chunk in enumerate(chunks) if chunk.metadata and not chunk.zero)

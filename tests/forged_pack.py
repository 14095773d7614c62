"""A consistent lie: a pack of a supernode's store with other bytes in one chunk, sealed again so that all verifies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from imgdist.pack import codec, records
from imgdist.pack.index import Index, IndexBuilder
from imgdist.pack.records import Chunk, Header, RecordDecoder, Seal
from supernode.store.layout import CHUNKS, INDEX, ROW, TABLE
from supernode.store.reader import PackReader


def flip_first(raw: bytes) -> bytes:
    """Another byte at the start."""
    return bytes([raw[0] ^ 1]) + raw[1:]


def forge(root: Path, pack_id: str, alter: Callable[[bytes], bytes] = flip_first, *, metadata: bool = False) -> str:
    """Replace the pack in the store at `root`, which no process has open, and all its layers' links. `alter` is given
    the first data (or metadata) chunk that is not all zeros. Returns the new pack id."""
    directory = root / "packs" / pack_id
    index = Index.load((directory / INDEX).read_bytes())
    chosen = next(n for n in range(index.chunk_count) if index.is_metadata(n) == metadata and not index.is_zero(n))
    _replace_body(directory, index, chosen, alter)
    sealed = (directory / "index").read_bytes()
    forged = root / "packs" / Index.load(sealed).pack_id.hex()
    directory.rename(forged)
    for link in (root / "layers").iterdir():
        if os.readlink(link).endswith(pack_id):
            link.unlink()
            link.symlink_to(os.path.join("..", "packs", forged.name))
    return forged.name


def _replace_body(directory: Path, index: Index, chosen: int, alter: Callable[[bytes], bytes]) -> None:
    reader = PackReader(directory)
    bodies = [reader.body(number) for number in range(index.chunk_count)]
    out = bytearray(index.size(chosen))
    codec.decode_into(*bodies[chosen], memoryview(out))
    raw = alter(bytes(out))
    bodies[chosen] = (codec.RAW, raw)
    (directory / CHUNKS).write_bytes(b"".join(body for _, body in bodies))
    at, rows = 0, bytearray()
    for encoding, body in bodies:
        rows += ROW.pack(at, len(body), encoding)
        at += len(body)
    (directory / TABLE).write_bytes(rows)
    (directory / INDEX).write_bytes(_with_digest((directory / INDEX).read_bytes(), chosen, blake3(raw).digest()))


def _with_digest(stream: bytes, chosen: int, digest: bytes) -> bytes:
    builder, out, number = IndexBuilder(), b"", 0
    for record, raw in RecordDecoder().feed(stream):
        if isinstance(record, Header):
            out += raw
        elif not isinstance(record, Seal):
            if isinstance(record, Chunk):
                if number == chosen:
                    record = Chunk(record.blocks, digest, metadata=record.metadata)
                number += 1
            out += builder.add(record)
    return out + records.encode(Seal(builder.pack_id()))

"""Indexes of raw packs: one blob, cut the same way everywhere, in a domain of its own."""

from __future__ import annotations

import hashlib

import pytest
from blake3 import blake3

from imgdist.errors import CorruptError, ProtocolError
from imgdist.pack import BLOCK, CHUNK_MAX, records
from imgdist.pack.index import Index, IndexBuilder, IndexFollower
from imgdist.pack.kinds import Kind, early_name
from imgdist.pack.records import Blob, Chunk, DiffId, Record, Seal

SIZE = CHUNK_MAX + BLOCK + 1
SHA256 = hashlib.sha256(b"blob").digest()
DIGEST = "sha256:" + SHA256.hex()
CHUNKS: list[Record] = [Chunk(64, b"\x01" * 32), Chunk(2, b"\x02" * 32)]
BODY: list[Record] = [*CHUNKS, Blob(SHA256, SIZE)]


def stream(body: list[Record], kind: Kind = Kind.RAW, size: int = SIZE) -> bytes:
    builder = IndexBuilder(DIGEST, kind, size)
    data = builder.header + b"".join(builder.add(record) for record in body)
    return data + records.encode(Seal(builder.pack_id()))


def test_an_index_says_what_blob_it_is_of() -> None:
    index = Index.load(stream(BODY))
    assert (index.kind, index.layer_digest, index.blob_size) == (Kind.RAW, DIGEST, SIZE)
    assert (index.chunk_count, index.image_size) == (2, BLOCK + CHUNK_MAX + 2 * BLOCK)
    assert index.early_name == early_name(DIGEST, Kind.RAW) == f"sha256-{SHA256.hex()}-v10000"
    assert not any(index.block0())


def test_its_size_is_known_from_the_first_record() -> None:
    follower = IndexFollower()
    assert follower.header is None
    follower.feed(IndexBuilder(DIGEST, Kind.RAW, SIZE).header)
    assert follower.header is not None and (follower.header.kind, follower.header.size) == (Kind.RAW, SIZE)


def test_an_empty_blob_has_no_chunks() -> None:
    index = Index.load(stream([Blob(SHA256, 0)], size=0))
    assert (index.chunk_count, index.blob_size, index.image_size) == (0, 0, BLOCK)


def test_its_id_is_of_another_domain_than_a_layers() -> None:
    raw, layer = IndexBuilder(DIGEST, Kind.RAW, SIZE), IndexBuilder(DIGEST)
    for builder in (raw, layer):
        builder.add(CHUNKS[0])
    assert raw.pack_id() != layer.pack_id()
    assert raw.pack_id() != blake3(b"\0" + records.encode(CHUNKS[0])).digest()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (CHUNKS, "without its blob"),
        ([*CHUNKS, Blob(bytes(32), SIZE)], "another blob"),
        ([*CHUNKS, Blob(SHA256, SIZE + 1)], "another blob"),
        ([CHUNKS[0], BODY[-1]], "not cut"),
        ([CHUNKS[1], CHUNKS[0], BODY[-1]], "not cut"),
        ([CHUNKS[0], Chunk(3, b"\x02" * 32), BODY[-1]], "not cut"),
        ([CHUNKS[0], Chunk(2, b"\x02" * 32, metadata=True), BODY[-1]], "metadata"),
        ([*CHUNKS, DiffId(bytes(32)), BODY[-1]], "DiffId record"),
        ([BODY[-1], *CHUNKS], "out of order"),
        ([*BODY, BODY[-1]], "out of order"),
    ],
)
def test_what_no_index_of_a_blob_may_say(body: list[Record], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        Index.load(stream(body))


def test_a_layers_index_has_no_blob() -> None:
    with pytest.raises(ProtocolError, match="Blob record in an index of kind layer"):
        Index.load(stream(BODY, Kind.LAYER))


def test_a_cut_one_is_not_whole_however_it_is_cut() -> None:
    whole = stream(BODY)
    for end in range(len(whole)):
        with pytest.raises(CorruptError, match="cut short"):
            Index.load(whole[:end])

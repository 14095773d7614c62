from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import CorruptError, ImgdistError, NewerFormatError, ProtocolError
from imgdist.pack import BLOCK, FORMAT_VERSION, records
from imgdist.pack.index import Index, IndexBuilder, IndexFollower, zero_digest
from imgdist.pack.records import Chunk, DiffId, Header, Hides, Implied, Metadata, Record, Seal, Superblock, TarSplit

LAYER = "sha256:" + "ab" * 32
BODY: list[Record] = [
    Chunk(3, b"\x01" * 32),
    Chunk(64, zero_digest(64 * BLOCK), zero=True),
    Chunk(1, b"\x02" * 32),
    Chunk(2, b"\x03" * 32, metadata=True),
    Metadata(69, 2),
    Superblock(b"super"),
    Implied(b"etc"),
    Implied(b"usr/share"),
    DiffId(b"\xdd" * 32),
    TarSplit(b"\xee" * 32, 12345),
]


def stream(body: list[Record], layer: str | None = LAYER, pack_id: bytes | None = None) -> bytes:
    builder = IndexBuilder(layer)
    data = builder.header + b"".join(builder.add(record) for record in body)
    return data + records.encode(Seal(pack_id or builder.pack_id()))


def test_an_index_says_what_was_written() -> None:
    index = Index.load(stream(BODY))
    assert index.layer_digest == LAYER
    assert index.diff_id == "sha256:" + "dd" * 32
    assert index.image_size == (1 + 3 + 64 + 1 + 2) * BLOCK
    assert index.chunk_count == 4
    assert [index.size(i) // BLOCK for i in range(4)] == [3, 64, 1, 2]
    assert [index.start(i) // BLOCK for i in range(4)] == [1, 4, 68, 69]
    assert index.digest(2) == b"\x02" * 32
    assert [index.is_zero(i) for i in range(4)] == [False, True, False, False]
    assert [index.is_metadata(i) for i in range(4)] == [False, False, False, True]
    assert index.metadata_extents == ((69, 2),)
    assert index.implied_directories == (b"etc", b"usr/share")
    assert index.tar_split == TarSplit(b"\xee" * 32, 12345)
    block0 = index.block0()
    assert len(block0) == BLOCK
    assert block0[1024:1029] == b"super"
    assert not any(block0[:1024] + block0[1029:])


def test_an_index_says_what_its_layer_hides() -> None:
    at = BODY.index(DiffId(b"\xdd" * 32))
    index = Index.load(stream([*BODY[:at], Hides(b"etc/gone"), *BODY[at:]]))
    assert (index.hides, Index.load(stream(BODY)).hides) == (b"etc/gone", b"")
    assert index.pack_id != Index.load(stream(BODY)).pack_id
    for wrong in ([Hides(b"/etc")], [Hides(b"")], [Hides(b"a"), Hides(b"b")]):
        with pytest.raises(ProtocolError):
            Index.load(stream([*BODY[:at], *wrong, *BODY[at:]]))


def test_chunks_are_found_by_image_offset() -> None:
    index = Index.load(stream(BODY))
    assert [index.chunk_at(block * BLOCK) for block in (1, 3, 4, 67, 68, 69, 70)] == [0, 0, 1, 1, 2, 3, 3]
    assert index.chunk_at(4 * BLOCK - 1) == 0
    assert index.chunks_between(0, BLOCK) == range(0)
    assert index.chunks_between(0, BLOCK + 1) == range(1)
    assert index.chunks_between(4 * BLOCK, 68 * BLOCK) == range(1, 2)
    assert index.chunks_between(0, 1 << 40) == range(4)
    assert index.chunks_between(1 << 40, 1 << 41) == range(0)
    for outside in (0, BLOCK - 1, index.image_size):
        with pytest.raises(IndexError):
            index.chunk_at(outside)


def test_forty_bytes_a_chunk_at_most() -> None:
    assert max(len(records.encode(Chunk(blocks, bytes(32)))) for blocks in range(1, 65)) <= 40


def test_the_pack_id_is_fixed_by_the_format() -> None:
    canonical = b"".join(records.encode(record) for record in BODY)
    expected = blake3(bytes((FORMAT_VERSION,)) + canonical, derive_key_context="imgdist 2026-11 pack id of an index")
    assert Index.load(stream(BODY)).pack_id == expected.digest()
    # Pinned: a change here is a change of the format.
    assert expected.hexdigest() == "367aa22c16ce7aa53143ff1db35fcdbada59764d7d2393f74099d4b6fca962e3"


def test_twins_share_a_pack_id() -> None:
    assert Index.load(stream(BODY, None)).pack_id == Index.load(stream(BODY)).pack_id
    assert Index.load(stream(BODY, None)).layer_digest is None


@pytest.mark.parametrize("at", range(len(BODY)))
def test_the_pack_id_covers_every_record(at: int) -> None:
    changes: dict[type[Record], dict[str, Any]] = {
        Chunk: {"digest": b"\x09" * 32, "zero": False},
        Metadata: {"blocks": 1},
        Superblock: {"content": b"other"},
        Implied: {"path": b"lib" if at == 6 else b"var"},
        DiffId: {"sha256": bytes(32)},
        TarSplit: {"digest": bytes(32)},
    }
    altered = list(BODY)
    record: Any = BODY[at]
    altered[at] = replace(record, **changes[type(record)])
    assert Index.load(stream(altered)).pack_id != Index.load(stream(BODY)).pack_id


@pytest.mark.parametrize("piece", [1, 7, 36, 100])
def test_a_follower_takes_any_pieces(piece: int) -> None:
    follower, data = IndexFollower(), stream(BODY)
    for at in range(0, len(data), piece):
        assert follower.sealed is None
        follower.feed(data[at : at + piece])
    assert follower.sealed is not None
    assert follower.chunk_count == 4
    assert follower.record_count == len(BODY) + 2


def test_a_follower_goes_on_after_a_cut() -> None:
    data = stream(BODY)
    follower = IndexFollower()
    follower.feed(data[:90])
    start = follower.resume_from()
    assert start == 2
    follower.feed(data[records.offset_of(data, start) :])
    assert follower.sealed is not None
    assert follower.chunk(1) == (4 * BLOCK, 64 * BLOCK, zero_digest(64 * BLOCK), True)
    assert follower.is_metadata(3)


def test_offset_of_a_record() -> None:
    data = stream(BODY)
    assert records.offset_of(data, 0) == 0
    assert records.offset_of(data, 1) == len(IndexBuilder(LAYER).header)
    assert records.offset_of(data, len(BODY) + 2) == len(data)
    assert records.offset_of(data, len(BODY) + 3) is None
    assert records.offset_of(data[:-1], len(BODY) + 2) is None


def test_cut_anywhere_is_corrupt() -> None:
    data = stream(BODY)
    for end in range(len(data)):
        with pytest.raises(CorruptError, match="without a seal"):
            Index.load(data[:end])


def test_a_wrong_seal_is_corrupt() -> None:
    with pytest.raises(CorruptError, match="sealed as pack"):
        Index.load(stream(BODY, pack_id=bytes(32)))


def without(kind: type[Record]) -> list[Record]:
    return [record for record in BODY if not isinstance(record, kind)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (without(Superblock), "without superblock"),
        (without(DiffId), "without diff ID"),
        (without(TarSplit), "without tar-split"),
        (without(Metadata), "without metadata"),
        ([*BODY[5:]], "without chunks"),
        ([*BODY[:5], *BODY[:1], *BODY[5:]], "out of order"),
        ([*BODY, BODY[-1]], "out of order"),
        ([Header(FORMAT_VERSION, b""), *BODY], "out of order"),
        ([*BODY[:6], Implied(b"usr"), Implied(b"etc"), *BODY[8:]], "not sorted"),
        ([*BODY[:4], Metadata(69, 3), *BODY[5:]], "metadata ends at"),
        ([*BODY[:4], Metadata(69, 1), Metadata(69, 1), *BODY[5:]], "overlaps"),
        ([*BODY[:4], Metadata(0, 1), *BODY[5:]], "overlaps"),
        ([Chunk(1, bytes(32), zero=True), *BODY], "all zero"),
    ],
)
def test_what_no_index_may_say(body: list[Record], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        Index.load(stream(body))


def test_nothing_follows_the_seal() -> None:
    with pytest.raises(ProtocolError, match="after its seal"):
        Index.load(stream(BODY) + records.encode(BODY[0]))


def test_another_version_is_refused() -> None:
    with pytest.raises(ProtocolError, match="format version 9"):
        IndexFollower().feed(records.encode(Header(9, b"")))


def test_another_version_is_told_before_a_record_that_only_it_knows() -> None:
    """Else what a newer release wrote would count as broken, and be removed."""
    newer = records.encode(Header(9, b"")) + b"\x2a\x03new"
    with pytest.raises(NewerFormatError):
        Index.load(newer)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00",
        b"\x09\x00",
        b"\x01\x04XDI\x00",
        b"\x01\x05IDX\x00\x00",
        b"\x02\x27" + bytes(39),
        b"\x02\x22\x00\x00" + bytes(32),
        b"\x02\x22\x41\x00" + bytes(32),
        b"\x02\x22\x01\x04" + bytes(32),
        b"\x02\x23\x81\x00\x00" + bytes(32),
        b"\x03\x02\x01\x00",
        b"\x03\x01\x01",
        b"\x04\x00",
        b"\x05\x81\x20",
        b"\x05\x01/",
        b"\x05\x02..",
        b"\x05\x00",
        b"\x05\x03a\x00b",
        b"\x05\x04a//b",
        b"\x06\x1f" + bytes(31),
        b"\x07\x20" + bytes(32),
        b"\x08\x00",
        b"\x03\x80\x00",
        b"\x04\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ],
)
def test_malformed_records_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(records.RecordDecoder().feed(data))


@given(st.lists(st.binary(max_size=60), max_size=4), st.booleans())
def test_nothing_but_our_errors_comes_out(pieces: list[bytes], begun: bool) -> None:
    follower = IndexFollower()
    try:
        if begun:
            follower.feed(stream(BODY)[:150])
        for piece in pieces:
            follower.feed(piece)
    except ImgdistError as error:
        assert isinstance(error, ProtocolError | CorruptError)


@given(st.integers(0, len(stream(BODY)) - 1), st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed_but_in_the_layer_digest(at: int, bit: int) -> None:
    data = bytearray(stream(BODY))
    data[at] ^= 1 << bit
    try:
        index = Index.load(bytes(data))
    except (ProtocolError, CorruptError):
        return
    assert 6 <= at < 38
    assert index.layer_digest != LAYER


record_strategy = st.one_of(
    st.builds(Header, st.integers(0, 255), st.sampled_from([b"", b"\x11" * 32])),
    st.builds(Chunk, st.integers(1, 64), st.binary(min_size=32, max_size=32), st.booleans(), st.booleans()),
    st.builds(Metadata, st.integers(0, 2**31), st.integers(1, 2**31)),
    st.builds(Superblock, st.binary(min_size=1, max_size=3072)),
    st.builds(Implied, st.lists(st.sampled_from([b"a", b"\xff", b"x y"]), min_size=1, max_size=4).map(b"/".join)),
    st.builds(TarSplit, st.binary(min_size=32, max_size=32), st.integers(0, 2**63 - 1)),
)


@given(st.lists(record_strategy, max_size=8), st.integers(1, 50))
def test_records_come_back_from_any_pieces(given_records: list[Record], piece: int) -> None:
    data = b"".join(map(records.encode, given_records))
    decoder = records.RecordDecoder()
    got = [pair for at in range(0, len(data), piece) for pair in decoder.feed(data[at : at + piece])]
    assert got == [(record, records.encode(record)) for record in given_records]

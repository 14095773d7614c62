"""The tar reader and tar-split: the same result however the tar is cut, and the exact tar back."""

from __future__ import annotations

import random
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_image import build_image
from raw_tar import END, directory, file, hard_link, header, long_name, padded, pax, record, symlink

from imgdist.erofs import LayerSummary, LayerWriter, Limits
from imgdist.erofs.tar.header import bounded_time, parse_header, parse_number
from imgdist.erofs.tar.pax import merge, only_times, parse_records
from imgdist.erofs.tar.split import SplitWriter, reassemble
from imgdist.errors import CorruptError, DeclinedError, ProtocolError

_SPARSE = {
    b"GNU.sparse.major": b"1",
    b"GNU.sparse.minor": b"0",
    b"GNU.sparse.name": b"r",
    b"GNU.sparse.realsize": b"900000",
}

MIXED = (
    directory(b"d/", mode=0o750)
    + file(b"d/small", b"s" * 100)
    + pax({b"mtime": b"1600000000.5", b"SCHILY.xattr.user.a": b"v"}) + file(b"d/file", b"f" * 5000)
    + pax({b"mtime": b"1600000000.25", b"atime": b"1700000000.123456789", b"ctime": b"1700000000"}) + file(b"t", b"t")
    + pax({b"atime": b"1", b"mtime": b"1600000001"}) + directory(b"u/")
    + long_name(b"d/" + b"l" * 200) + file(b"x", b"e" * 513)
    + file(b"big", random.Random(1).randbytes(600_000))
    + file(b"d/file", b"again" * 200)
    + symlink(b"l", b"d") + hard_link(b"h", b"big") + file(b".wh.gone", b"ignored" * 300)
    + pax(_SPARSE) + file(b"s", padded(b"2\n1000\n5\n400000\n700\n") + b"hello" + b"e" * 700)
    + END + b"what follows the end" * 5000
)  # fmt: skip


def convert(pieces: list[bytes], limits: Limits | None = None) -> tuple[bytes, list[bool], LayerSummary, bytes]:
    """Return (image from block 1 on, which chunks are metadata, summary, tar-split stream)."""
    chunks: list[tuple[bytes, bool]] = []
    split: list[bytes] = []
    writer = LayerWriter(lambda raw, metadata: chunks.append((bytes(raw), metadata)), limits or Limits(), split.append)
    for piece in pieces:
        writer.feed(piece)
    summary = writer.finish(lambda: b"u" * 32)
    return b"".join(raw for raw, _ in chunks), [flag for _, flag in chunks], summary, b"".join(split)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(MIXED)), max_size=12).map(sorted))
def test_result_does_not_depend_on_the_pieces(cuts: list[int]) -> None:
    pieces = [MIXED[a:b] for a, b in zip([0, *cuts], [*cuts, len(MIXED)], strict=True)]
    assert convert(pieces) == convert([MIXED])


def test_byte_by_byte() -> None:
    tar = MIXED[: MIXED.index(b"big\0")] + pax(_SPARSE) + file(b"s", padded(b"1\n7\n5\n") + b"hello") + END
    assert convert([tar[at : at + 1] for at in range(len(tar))]) == convert([tar])


def test_memoryview_of_reused_buffer() -> None:
    """A caller may decompress into one buffer over and over: what is not read-only is copied."""
    buffer = bytearray(300_000)
    chunks: list[memoryview] = []
    writer = LayerWriter(lambda raw, metadata: chunks.append(raw))
    for at in range(0, len(MIXED), len(buffer)):
        piece = MIXED[at : at + len(buffer)]
        buffer[: len(piece)] = piece
        writer.feed(memoryview(buffer)[: len(piece)])
        buffer[:] = bytes(len(buffer))
    writer.finish(lambda: b"u" * 32)
    assert b"".join(chunks) == convert([MIXED])[0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=3000), max_size=8), st.binary(max_size=700))
def test_split_restores_the_exact_tar(bodies: list[bytes], trailer: bytes) -> None:
    tar = b"".join(file(b"f%d" % (number % 3), body) for number, body in enumerate(bodies)) + END + trailer
    assert_restored(tar)


def assert_restored(tar: bytes) -> None:
    image, _, _, split = convert([tar])
    restored = b"".join(reassemble(BytesIO(split), lambda at, count: image[at - 4096 : at - 4096 + count]))
    assert restored == tar


def test_split_restores_every_kind_of_member() -> None:
    assert_restored(MIXED)
    assert_restored(file(b"f", b"x" * 700)[:-100] + b"\1" * 100 + END)


def test_split_refers_to_data_instead_of_repeating_it() -> None:
    split = convert([file(b"f", b"x" * 5_000_000) + END])[3]
    assert len(split) < 3000


@pytest.mark.parametrize("cut", [0, 5, 12 + 3, 12 + 5 + 10])
def test_cut_split_stream(cut: int) -> None:
    out: list[bytes] = []
    writer = SplitWriter(out.append)
    writer.literal(b"l" * 100)
    writer.image(4096, 10)
    writer.finish()
    with pytest.raises(ProtocolError):
        list(reassemble(BytesIO(b"".join(out)[:cut]), lambda offset, count: bytes(count)))


def test_split_stream_with_a_short_image() -> None:
    split = convert([file(b"f", b"x" * 5000) + END])[3]
    with pytest.raises(CorruptError, match="expected 5000 bytes"):
        list(reassemble(BytesIO(split), lambda offset, count: b"short"))


@pytest.mark.parametrize(
    ("limits", "tar"),
    [
        (Limits(members=2), file(b"a") + file(b"b") + file(b"c")),
        (Limits(members=2), b"".join(pax({b"comment": b"x"}, b"g") for _ in range(3))),
        (Limits(header_bytes=100), pax({b"comment": b"x" * 100}) + file(b"f")),
        (Limits(records=9), pax([(b"comment", b"%d" % n) for n in range(9)]) + file(b"f")),
        (Limits(records=9), b"".join(pax({b"mtime": b"1600000000.5"}) for _ in range(10)) + file(b"f")),
        (Limits(records=9), pax(_SPARSE) + file(b"s", padded(b"8\n" + b"0\n0\n" * 8))),
        (Limits(implied_bytes=10), file(b"a/b/c/d/e", b"1")),
        (Limits(metadata_bytes=6000), b"".join(directory(b"d") for _ in range(50))),
        (Limits(metadata_bytes=6000), b"".join(hard_link(b"l%d" % n, b"l0") if n else file(b"l0") for n in range(30))),
        (Limits(metadata_bytes=6000), b"".join(pax({b"SCHILY.xattr.user.a": b"%d" % n}) + header() for n in range(9))),
        (Limits(tar_bytes=1000), file(b"a", b"1")),
        (Limits(image_bytes=1 << 20), file(b"a", b"1" * (1 << 20))),
        (Limits(image_bytes=1 << 20), header(b"a", b"0", 1 << 60)),
        (Limits(metadata_bytes=1000), b"".join(file(b"n" * 90 + b"%d" % number) for number in range(20))),
        (Limits(metadata_bytes=1000), file(b"f", b"x" * 500) + file(b"g", b"x" * 500)),
        (Limits(metadata_bytes=1000), file(b"/".join([b"d"] * 45))),
        (Limits(link_steps=50), b"".join(symlink(b"l%d" % n, b"l%d" % (n + 1)) for n in range(60)) + file(b"l0/x")),
    ],
)  # fmt: skip
def test_limits_decline(limits: Limits, tar: bytes) -> None:
    with pytest.raises(DeclinedError):
        convert([tar + END], limits)


def test_a_sparse_map_beyond_the_limit_is_declined_and_one_within_it_is_not() -> None:
    numbers = b"%d\n" % 300 + b"0\n0\n" * 300
    tar = pax(_SPARSE) + file(b"s", padded(numbers)) + END
    convert([tar], Limits(header_bytes=2048))
    with pytest.raises(DeclinedError, match="sparse map"):
        convert([tar], Limits(header_bytes=1024))


def test_exabyte_of_holes_is_declined_at_once() -> None:
    tar = pax(_SPARSE | {b"GNU.sparse.realsize": b"%d" % (1 << 60)}) + file(b"s", padded(b"0\n"))
    with pytest.raises(DeclinedError, match="holes"):
        convert([tar])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000))
def test_garbage_raises_nothing_but_our_errors(data: bytes) -> None:
    with suppress(CorruptError, DeclinedError):
        convert([data])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 8191), st.integers(0, 255))
def test_flipped_byte_raises_nothing_but_our_errors(at: int, value: int) -> None:
    tar = bytearray(MIXED[:8192] + END)
    tar[at] = value
    with suppress(CorruptError, DeclinedError):
        convert([bytes(tar)])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_pax_garbage(body: bytes) -> None:
    with suppress(CorruptError):
        parse_records(body)


_TIME = st.from_regex(rb"[+-]?[0-9]{0,2}[0-9]{8,11}(\.[0-9]{0,12})?", fullmatch=True)
_TIMES = st.lists(st.tuples(st.sampled_from([b"mtime", b"atime", b"ctime"]), _TIME), min_size=1, max_size=4)


@settings(max_examples=300)
@given(_TIMES, st.integers(-1, 200), st.integers(0, 255))
def test_the_short_way_through_times_leads_where_the_long_one_does(
    times: list[tuple[bytes, bytes]], at: int, value: int
) -> None:
    body = bytearray(b"".join(record(key, time) for key, time in times))
    if 0 <= at < len(body):
        body[at] = value
    found = only_times(bytes(body))
    if found is not None:
        member = parse_header(header(b"x"))
        merge(member, parse_records(bytes(body)))
        assert (member.mtime_s, member.mtime_ns) == found


@pytest.mark.parametrize("fraction", ["", *(f".{'123456789'[:digits]}" for digits in range(1, 10))])
def test_the_short_way_takes_every_length_of_a_fraction(fraction: str) -> None:
    value = b"1600000000" + fraction.encode()
    body = b"".join(record(key, value) for key in (b"atime", b"ctime", b"mtime"))
    assert only_times(body) == (1_600_000_000, int(fraction[1:].ljust(9, "0") or 0))


@pytest.mark.parametrize("value", [0, 1, 8**11 - 1, 1 << 40, (1 << 63) - 1, -1, -(1 << 63)])
def test_numbers(value: int) -> None:
    assert parse_number(header(size=value)[124:136]) == value


def test_checksum_of_every_byte() -> None:
    block = bytearray(header(b"name", b"0", 5))
    for at in range(512):
        if not 148 <= at < 156:
            block[at] ^= 1
            with pytest.raises(CorruptError):
                parse_header(bytes(block))
            block[at] ^= 1
    assert parse_header(bytes(block)).name == b"name"


def test_signed_checksum_is_accepted() -> None:
    block = bytearray(header(b"caf\xe9"))
    signed = sum(block[:148]) + sum(block[156:]) + 8 * 32 - 256
    block[148:156] = b"%06o\0 " % signed
    assert parse_header(bytes(block)).name == b"caf\xe9"


def test_times_are_bounded() -> None:
    assert bounded_time(-1, 0) == bounded_time(0, -1) == bounded_time(9_223_372_036, 854_775_808) == (0, 0)
    assert bounded_time(9_223_372_036, 854_775_807) == (9_223_372_036, 854_775_807)


def test_equal_tars_give_equal_files(tmp_path: Path) -> None:
    first = build_image([MIXED], tmp_path / "1")
    second = build_image([MIXED[:1000], MIXED[1000:]], tmp_path / "2")
    assert first == second
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert first.summary.uuid != build_image([file(b"other", b"x") + END], tmp_path / "3").summary.uuid

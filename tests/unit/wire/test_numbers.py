"""Chunk numbers on the wire: round trips, bounds, nothing but ProtocolError out."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import ProtocolError
from imgdist.wire.numbers import (
    CHUNKS_MAX,
    LACKS_MAX,
    format_lacks,
    format_numbers,
    parse_lacks,
    parse_numbers,
)

NUMBERS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64)
LACKS = st.integers(1, 2**500 - 1).flatmap(lambda bits: st.integers(0, 30_000).map(lambda first: bits << first))


@given(NUMBERS)
def test_numbers_come_back_in_order(numbers: list[int]) -> None:
    assert parse_numbers(format_numbers(numbers)) == tuple(numbers)


def test_neighbours_are_joined() -> None:
    assert format_numbers([3, 4, 5, 9, 8, 1]) == "3-5,9,8,1"
    assert parse_numbers("3-7,9") == (3, 4, 5, 6, 7, 9)


@pytest.mark.parametrize("text", ["", ",", "1,", "7-3", "-1", "1-", "0-64", "0-9999999999", "4294967296", "1 ,2", "٣"])
def test_bad_numbers_are_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse_numbers(text)


@given(LACKS)
def test_missing_chunks_round_trip(lacks: int) -> None:
    text = format_lacks(lacks)
    assert parse_lacks(text.encode()) == lacks
    assert "=" not in text


def test_what_is_far_behind_the_first_missing_chunk_is_left_out() -> None:
    near, far = 1 << 803, 1 << (800 + 8 * LACKS_MAX)
    assert parse_lacks(format_lacks(near | far).encode()) == near
    most = ((1 << 8 * LACKS_MAX) - 1) << 800
    assert parse_lacks(format_lacks(most).encode()) == most


def test_the_bitmap_is_as_written_down() -> None:
    assert format_lacks(0b1_0000_0011 << 16) == "16:AwE"


@pytest.mark.parametrize(
    "value",
    [
        "", ":", "0:", "0", "0:AA", "8:A", "3:AQ", "-8:AQ", "0:+w==", "0:AQ==", "0:AQ\n", "99999999999:AQ",
        f"{CHUNKS_MAX}:AQ", "0:" + "_" * 5464, "0:" + "_" * 5465,
    ],
)  # fmt: skip
def test_bad_bitmaps_are_refused(value: str) -> None:
    with pytest.raises(ProtocolError):
        parse_lacks(value.encode())


@given(st.binary(max_size=40) | st.from_regex(rb"[0-9]{1,9}:[A-Za-z0-9_=-]{0,40}", fullmatch=True))
def test_any_bytes_as_bitmap_raise_only_protocol_errors(value: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert 0 < parse_lacks(value).bit_length() <= CHUNKS_MAX

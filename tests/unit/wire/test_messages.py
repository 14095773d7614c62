"""What requests and responses share: chunk frames, addresses; nothing but ProtocolError out."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import ProtocolError
from imgdist.wire.messages import ADDRESS_MAX, BODY_MAX, Frame, decode_frame, encode_frame, parse_address


@given(st.integers(0, 2**32 - 1), st.integers(0, 2), st.integers(0, BODY_MAX), st.integers(0, 262144))
def test_frames_round_trip(number: int, encoding: int, length: int, raw_size: int) -> None:
    frame = Frame(number, encoding, length, raw_size)
    assert decode_frame(encode_frame(frame)) == frame


@given(st.binary(max_size=20))
def test_any_bytes_as_frame_raise_only_protocol_errors(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        frame = decode_frame(data)
        assert frame.length <= BODY_MAX
        assert frame.encoding <= 2


@pytest.mark.parametrize("text", ["10.0.0.1:7651", "[::1]:7651", "[fe80::1:2]:1", "node-3.rack_4.local:65535"])
def test_addresses(text: str) -> None:
    assert parse_address(text) == text


@pytest.mark.parametrize(
    "text", ["", ":1", "host", "host:", "host:0", "host:65536", "::1:7651", "a b:1", "a:1\n", "a/b:1", "a:٣", "é:1"]
)
def test_bad_addresses_are_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse_address(text)


@given(st.text(max_size=300))
def test_any_text_as_address_raises_only_protocol_errors(text: str) -> None:
    with contextlib.suppress(ProtocolError):
        assert 3 <= len(parse_address(text)) <= ADDRESS_MAX

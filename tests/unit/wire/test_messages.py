"""The chunk dialect's codec: round trips, every way of cutting the bytes, nothing but ProtocolError out."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import ProtocolError
from imgdist.wire.messages import (
    BODY_MAX,
    HEAD_MAX,
    ChunkRequest,
    Frame,
    Priority,
    RequestDecoder,
    decode_frame,
    decode_response_head,
    encode_frame,
    encode_head,
    encode_request,
    format_numbers,
    parse_numbers,
)

PACK = "ab" * 32
NUMBERS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64)


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


@given(st.lists(st.tuples(NUMBERS, st.sampled_from(Priority)), min_size=1, max_size=3), st.data())
def test_requests_however_split(wanted: list[tuple[list[int], Priority]], data: st.DataObject) -> None:
    stream = b"".join(encode_request(PACK, numbers, priority) for numbers, priority in wanted)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    decoder = RequestDecoder()
    got: list[ChunkRequest] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == [ChunkRequest(PACK, tuple(numbers), priority) for numbers, priority in wanted]


def test_a_request_byte_by_byte() -> None:
    decoder = RequestDecoder()
    stream = encode_request("sha256-" + PACK + "-v0", [1, 2], Priority.FILL)
    got = [request for byte in stream for request in decoder.feed(bytes([byte]))]
    assert got == [ChunkRequest("sha256-" + PACK + "-v0", (1, 2), Priority.FILL)]


@pytest.mark.parametrize(
    ("version", "field", "keep_alive"),
    [("1.1", "", True), ("1.1", "Connection: close\r\n", False), ("1.0", "", False), ("1.1", "Accept: */*\r\n", True)],
)
def test_what_other_clients_send(version: str, field: str, keep_alive: bool) -> None:
    head = f"GET /v1/chunks/{PACK}/5 HTTP/{version}\r\nHost: x\r\nUser-Agent: curl/8\r\n{field}\r\n"
    assert RequestDecoder().feed(head.encode()) == [ChunkRequest(PACK, (5,), Priority.DEMAND, keep_alive)]


@pytest.mark.parametrize(
    "head",
    [
        "POST /v1/chunks/{p}/1 HTTP/1.1\r\n\r\n",
        "GET /v1/chunks/{p}/1 HTTP/2\r\n\r\n",
        "GET /v1/chunks/../1 HTTP/1.1\r\n\r\n",
        "GET /v1/chunks/{p}/1?p=urgent HTTP/1.1\r\n\r\n",
        "GET /v1/chunks/{p}/1 HTTP/1.1\r\nContent-Length: 4\r\n\r\n",
        "GET /v1/chunks/{p}/1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET /v1/chunks/{p}/1 HTTP/1.1\r\nno colon\r\n\r\n",
        "GET /v1/chunks/{p}/1 HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_bad_requests_are_refused(head: str) -> None:
    with pytest.raises(ProtocolError):
        RequestDecoder().feed(head.format(p=PACK).encode())


def test_an_endless_head_is_refused() -> None:
    decoder = RequestDecoder()
    with pytest.raises(ProtocolError):
        for _ in range(HEAD_MAX + 1):
            decoder.feed(b"a")


@given(st.binary(max_size=300))
def test_any_bytes_as_request_raise_only_protocol_errors(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        RequestDecoder().feed(data + b"\r\n\r\n")


@given(st.data())
def test_a_damaged_request_raises_only_protocol_errors(data: st.DataObject) -> None:
    stream = bytearray(encode_request(PACK, [1, 2, 9], Priority.FILL))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        RequestDecoder().feed(stream)


def test_response_heads_round_trip_and_wait_for_the_rest() -> None:
    stream = encode_head(503, 12, keep_alive=False, retry_after_s=2) + b"body"
    for cut in range(len(stream) - 4):
        assert decode_response_head(stream[:cut]) is None
    found = decode_response_head(stream)
    assert found is not None
    head, size = found
    assert (head.status, head.length, head.keep_alive, head.retry_after_s) == (503, 12, False, 2.0)
    assert stream[size:] == b"body"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nImgdist-Wire: 2\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 404 No\r\n\r\n",
        b"HTTP/1.1 404 No\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 404 No\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"x" * HEAD_MAX,
    ],
)
def test_bad_response_heads_are_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_response_head(head)


@given(st.binary(max_size=400))
def test_any_bytes_as_response_raise_only_protocol_errors(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_response_head(b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n")


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

"""Heads of answers of the chunk dialect: round trips, cut short, nothing but ProtocolError out."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import ProtocolError
from imgdist.wire.messages import HEAD_MAX
from imgdist.wire.responses import ResponseHead, decode_response_head, encode_head

NUMBERS = st.lists(st.integers(0, 2**32 - 1), max_size=64).map(tuple)
HEADS = st.builds(
    ResponseHead,
    status=st.sampled_from([200, 307, 400, 404, 503]),
    length=st.integers(0, 10**12 - 1),
    keep_alive=st.booleans(),
    retry_after_s=st.none() | st.integers(0, 10**6).map(lambda milliseconds: milliseconds / 1000),
    queue_bytes=st.none() | st.integers(0, 10**15 - 1),
    have=NUMBERS,
    chunks=NUMBERS,
    addresses=st.lists(st.sampled_from(["10.0.0.1:7651", "[::1]:1", "node:2"]), max_size=8).map(tuple),
    from_here=st.booleans(),
)


def encoded(head: ResponseHead) -> bytes:
    return encode_head(
        head.status, head.length, keep_alive=head.keep_alive, retry_after_s=head.retry_after_s,
        queue_bytes=head.queue_bytes, have=head.have, chunks=head.chunks,
        addresses=head.addresses, from_here=head.from_here,
    )  # fmt: skip


@given(HEADS)
def test_heads_round_trip(head: ResponseHead) -> None:
    stream = encoded(head)
    assert decode_response_head(stream + b"body") == (head, len(stream))


def test_a_head_waits_for_the_rest() -> None:
    stream = encode_head(503, 12, keep_alive=False, retry_after_s=0.03) + b"body"
    for cut in range(len(stream) - 4):
        assert decode_response_head(stream[:cut]) is None
    found = decode_response_head(stream)
    assert found is not None
    head, size = found
    assert (head.status, head.length, head.keep_alive, head.retry_after_s) == (503, 12, False, 0.03)
    assert stream[size:] == b"body"


def test_whole_seconds_are_understood_by_others_and_from_others() -> None:
    assert b"\r\nRetry-After: 2\r\n" in encode_head(503, 0, retry_after_s=1.05)
    found = decode_response_head(b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\nRetry-After: 7\r\n\r\n")
    assert found is not None
    assert found[0].retry_after_s == 7.0


def test_the_longest_head_fits() -> None:
    numbers = tuple(range(2**32 - 128, 2**32, 2))
    head = ResponseHead(307, 10**12 - 1, False, 100.0, 10**15 - 1, numbers, numbers, ("n" * 253 + ":65535",) * 8)
    stream = encoded(head)
    assert len(stream) < HEAD_MAX
    assert decode_response_head(stream) == (head, len(stream))


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nImgdist-Wire: 2\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 404 No\r\n\r\n",
        b"HTTP/1.1 404 No\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 404 No\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 307 Go\r\nContent-Length: 0\r\nImgdist-Peers: " + b",".join([b"a:1"] * 9) + b"\r\n\r\n",
        b"HTTP/1.1 307 Go\r\nContent-Length: 0\r\nImgdist-Peers: a:1,nowhere\r\n\r\n",
        b"HTTP/1.1 307 Go\r\nContent-Length: 0\r\nImgdist-Have: 0-64\r\n\r\n",
        b"HTTP/1.1 307 Go\r\nContent-Length: 0\r\nImgdist-Chunks: x\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"x" * HEAD_MAX,
    ],
)
def test_bad_heads_are_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_response_head(head)


@given(st.binary(max_size=400))
def test_any_bytes_raise_only_protocol_errors(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_response_head(b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n")


@given(HEADS, st.data())
def test_a_damaged_head_raises_only_protocol_errors(head: ResponseHead, data: st.DataObject) -> None:
    stream = bytearray(encoded(head))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        decode_response_head(stream)

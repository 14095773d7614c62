"""Requests of the chunk dialect: round trips, every way of cutting the bytes, nothing but ProtocolError out."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import ProtocolError
from imgdist.wire import mesh
from imgdist.wire.messages import HEAD_MAX, Priority
from imgdist.wire.numbers import format_lacks
from imgdist.wire.requests import (
    ANY_MAX,
    PIPELINED_MAX,
    AnyRequest,
    ChunkRequest,
    HelloRequest,
    MeshRequest,
    Request,
    RequestDecoder,
    encode,
)

PACK = "ab" * 32
NUMBERS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64).map(tuple)
NODES = st.none() | st.just("") | st.just("10.0.0.1:7651")
CHUNKS = st.builds(
    lambda numbers, priority, node, wait: ChunkRequest(PACK, numbers, priority, node=node, wait_s=wait / 1000),
    NUMBERS, st.sampled_from(Priority), NODES, st.integers(0, 9999),
)  # fmt: skip
ANY = st.builds(
    lambda lacks, count, priority, node: AnyRequest(PACK, format_lacks(lacks).encode(), count, priority, node=node),
    st.integers(1, 2**500 - 1), st.integers(1, ANY_MAX), st.sampled_from([Priority.TRACE, Priority.FILL]), NODES,
)  # fmt: skip


def encoded(request: Request) -> bytes:
    return encode(request) if isinstance(request, ChunkRequest | AnyRequest) else b"GET /v1/hello HTTP/1.1\r\n\r\n"


@given(st.lists(CHUNKS | ANY | st.just(HelloRequest()), min_size=1, max_size=3), st.data())
def test_requests_however_split(wanted: list[Request], data: st.DataObject) -> None:
    stream = b"".join(encoded(request) for request in wanted)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    decoder = RequestDecoder()
    got: list[Request] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == wanted


def test_a_request_byte_by_byte() -> None:
    decoder = RequestDecoder()
    stream = encode(ChunkRequest("sha256-" + PACK + "-v0", (1, 2), Priority.FILL))
    got = [request for byte in stream for request in decoder.feed(bytes([byte]))]
    assert got == [ChunkRequest("sha256-" + PACK + "-v0", (1, 2), Priority.FILL)]


@pytest.mark.parametrize(
    ("version", "field", "keep_alive"),
    [("1.1", "", True), ("1.1", "Connection: close\r\n", False), ("1.0", "", False), ("1.1", "Accept: */*\r\n", True)],
)
def test_what_other_clients_send(version: str, field: str, keep_alive: bool) -> None:
    head = f"GET /v1/chunks/{PACK}/5 HTTP/{version}\r\nHost: x\r\nUser-Agent: curl/8\r\n{field}\r\n"
    assert RequestDecoder().feed(head.encode()) == [ChunkRequest(PACK, (5,), Priority.DEMAND, keep_alive)]


def test_what_follows_an_upgrade_is_another_protocols() -> None:
    decoder = RequestDecoder()
    hello = mesh.encode(mesh.Peers())
    got = decoder.feed(b"GET /v1/hello HTTP/1.1\r\n\r\n" + mesh.upgrade_request("a:1") + hello)
    assert got == [HelloRequest(), MeshRequest(hello)]


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
        "GET /v1/chunks/{p}/1 HTTP/1.1\r\nImgdist-Node: nowhere\r\n\r\n",
        "GET /v1/chunks/{p}/1 HTTP/1.1\r\nImgdist-Node: a:1\r\nImgdist-Node: b:1\r\n\r\n",
        "GET /v1/chunks/{p}/any?p=fill&n=4 HTTP/1.1\r\n\r\n",
        "GET /v1/chunks/{p}/any?p=fill&n=4 HTTP/1.1\r\nImgdist-Lacks: 0:AA\r\n\r\n",
        "GET /v1/chunks/{p}/any?p=fill&n=9 HTTP/1.1\r\nImgdist-Lacks: 0:AQ\r\n\r\n",
        "GET /v1/chunks/{p}/any?p=fill&n=0 HTTP/1.1\r\nImgdist-Lacks: 0:AQ\r\n\r\n",
        "GET /v1/chunks/{p}/any?p=demand&n=1 HTTP/1.1\r\nImgdist-Lacks: 0:AQ\r\n\r\n",
        "GET /v1/mesh HTTP/1.1\r\n\r\n",
        "GET /v1/mesh HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
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
    with pytest.raises(ProtocolError):
        RequestDecoder().feed(f"GET /v1/hello HTTP/1.1\r\nX: {'a' * HEAD_MAX}\r\n\r\n".encode())


def test_more_than_some_requests_at_once_are_refused() -> None:
    one = encode(
        AnyRequest.among(PACK, 1 << 4_000_000, 1, Priority.FILL)
    )  # of few bytes, and half a megabyte when decoded
    tracemalloc.start()
    try:
        assert len(RequestDecoder().feed(one * PIPELINED_MAX)) == PIPELINED_MAX
        kept = RequestDecoder().feed(one * PIPELINED_MAX)
        assert tracemalloc.get_traced_memory()[0] < 64 * 1024, "what waits takes as much as was sent"
        assert kept[0].lacks == 1 << 4_000_000  # type: ignore[union-attr]
    finally:
        tracemalloc.stop()
    with pytest.raises(ProtocolError, match="before an answer"):
        RequestDecoder().feed(one * (PIPELINED_MAX + 1))


def test_the_longest_request_fits() -> None:
    lacks = format_lacks((1 << 32768) - 1).encode()
    request = AnyRequest("sha256-" + PACK + "-v10000", lacks, 8, Priority.FILL, node="n" * 253 + ":65535")
    assert RequestDecoder().feed(encoded(request)) == [request]


@given(st.binary(max_size=300))
def test_any_bytes_as_request_raise_only_protocol_errors(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        RequestDecoder().feed(data + b"\r\n\r\n")


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_fields_raise_only_protocol_errors(lacks: bytes, node: bytes) -> None:
    head = f"GET /v1/chunks/{PACK}/any?p=fill&n=1 HTTP/1.1\r\n".encode()
    with contextlib.suppress(ProtocolError):
        RequestDecoder().feed(head + b"Imgdist-Lacks: " + lacks + b"\r\nImgdist-Node: " + node + b"\r\n\r\n")


@given(st.binary(max_size=40), st.binary(max_size=60))
def test_anything_behind_a_chunks_number_raises_only_protocol_errors(query: bytes, fields: bytes) -> None:
    for end in (b"", b" HTTP/1.1\r\n"):
        with contextlib.suppress(ProtocolError):
            RequestDecoder().feed(f"GET /v1/chunks/{PACK}/1".encode() + query + end + fields + b"\r\n\r\n")


@given(CHUNKS | ANY, st.data())
def test_a_damaged_request_raises_only_protocol_errors(request: Request, data: st.DataObject) -> None:
    stream = bytearray(encoded(request))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        RequestDecoder().feed(stream)

"""How chunk bodies are asked for and sent: a small dialect of HTTP/1.1 (RFC 9112), as a pure codec.

A request has no body::

    GET /v1/chunks/<name>/<numbers>?p=demand|trace|fill HTTP/1.1

`<name>` is a pack id (64 hex digits) or, while the layer is still being converted, `sha256-<hex>-v<format version>`.
`<numbers>` lists at most `REQUEST_CHUNKS` chunks, single or as inclusive ranges: `3-7,9`. The answer's body is, for
each chunk in the order asked, a 16-byte frame header (little-endian `<IBxxxII`: number, encoding, length, raw size in
bytes or 0 where the sender does not know it) and `length` bytes. Any HTTP client can talk to it; only ours is fast.

Nothing here does I/O. Decoders raise ProtocolError and nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from imgdist.errors import ProtocolError
from imgdist.pack import CHUNK_MAX

WIRE_VERSION = 1
REQUEST_CHUNKS = 64
"""Most chunks of one request: 16 MiB raw, well above link x RTT of 1 Gbit/s x 100 ms."""
BODY_MAX = CHUNK_MAX + 1024
"""Most bytes of an encoded chunk; an encoder that saves nothing sends the chunk raw, so the slack is generous."""
HEAD_MAX = 8192
"""Most bytes of a request's or a response's head."""
FRAME_SIZE = 16
ENCODINGS = 3
"""raw, zstd, zero: see imgdist.pack.codec."""

_FRAME = struct.Struct("<IBxxxII")
_TARGET = re.compile(
    rb"/v1/chunks/([0-9a-f]{64}|sha256-[0-9a-f]{64}-v[0-9]{1,5})/([0-9,-]{1,800})(?:\?p=(demand|trace|fill))?"
)
_NUMBERS_PART = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2})(?: [\t -~]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}):[ \t]*([\t -~\x80-\xff]*)")
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 503: "Service Unavailable"}


class Priority(Enum):
    """How urgent: somebody waits (`DEMAND`), a start will want it next (`TRACE`), or it completes a layer (`FILL`)."""

    DEMAND = "demand"
    TRACE = "trace"
    FILL = "fill"


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """A request for chunks `numbers` of the pack `name`, to be answered in that order."""

    name: str
    numbers: tuple[int, ...]
    priority: Priority
    keep_alive: bool = True


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What a client needs of a response's head; `length` is the body's size in bytes."""

    status: int
    length: int
    keep_alive: bool
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Frame:
    """The header before a chunk's body of `length` bytes; `raw_size` is 0 where the sender does not know it."""

    number: int
    encoding: int
    length: int
    raw_size: int


def parse_numbers(text: str) -> tuple[int, ...]:
    """`3-7,9` as chunk numbers. Raises ProtocolError for anything else, or above `REQUEST_CHUNKS` numbers."""
    numbers: list[int] = []
    for part in text.split(","):
        match = _NUMBERS_PART.fullmatch(part)
        if match is None:
            raise ProtocolError(f"chunk numbers {text!r}: expected numbers and ranges such as 3-7,9")
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last >= 1 << 32 or last < first or last - first >= REQUEST_CHUNKS - len(numbers):
            raise ProtocolError(
                f"chunk numbers {text!r}: expected 1 to {REQUEST_CHUNKS} numbers below 2^32, ranges rising"
            )
        numbers.extend(range(first, last + 1))
    return tuple(numbers)


def format_numbers(numbers: Sequence[int]) -> str:
    """Chunk numbers as `parse_numbers` reads them, neighbours joined into ranges, order kept."""
    parts: list[str] = []
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            parts.append(str(numbers[start]) if i - start == 1 else f"{numbers[start]}-{numbers[i - 1]}")
            start = i
    return ",".join(parts)


def encode_request(name: str, numbers: Sequence[int], priority: Priority, host: str = "imgdist") -> bytes:
    """The bytes of a request."""
    target = f"/v1/chunks/{name}/{format_numbers(numbers)}?p={priority.value}"
    return f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("ascii")


def encode_head(status: int, length: int, *, keep_alive: bool = True, retry_after_s: int | None = None) -> bytes:
    """The bytes of a response's head, before a body of `length` bytes."""
    kind = "application/octet-stream" if status == 200 else "text/plain"
    lines = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        f"Content-Type: {kind}",
        f"Content-Length: {length}",
        f"Imgdist-Wire: {WIRE_VERSION}",
    ]
    if not keep_alive:
        lines.append("Connection: close")
    if retry_after_s is not None:
        lines.append(f"Retry-After: {retry_after_s}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def encode_frame(frame: Frame) -> bytes:
    """The 16 bytes before a chunk's body."""
    return _FRAME.pack(frame.number, frame.encoding, frame.length, frame.raw_size)


def decode_frame(data: bytes | bytearray | memoryview) -> Frame:
    """Read a frame header of exactly 16 bytes. Raises ProtocolError for lengths or encodings that cannot be."""
    if len(data) != FRAME_SIZE:
        raise ProtocolError(f"chunk frame: expected {FRAME_SIZE} bytes, got {len(data)}")
    frame = Frame(*_FRAME.unpack(data))
    if frame.encoding >= ENCODINGS or frame.length > BODY_MAX or frame.raw_size > CHUNK_MAX:
        raise ProtocolError(f"chunk frame: expected encoding < {ENCODINGS}, length <= {BODY_MAX}, got {frame}")
    return frame


class RequestDecoder:
    """Cuts a connection's bytes into requests, however they are split; heads are bounded by `HEAD_MAX`."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[ChunkRequest]:
        """Take bytes, return the requests they complete. After a ProtocolError the connection cannot go on."""
        self._buffer += data
        requests = []
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            requests.append(_parse_request(bytes(self._buffer[:end])))
            del self._buffer[: end + 4]
        if len(self._buffer) > HEAD_MAX:
            raise ProtocolError(f"request head: expected at most {HEAD_MAX} bytes")
        return requests


def decode_response_head(data: bytes | bytearray | memoryview) -> tuple[ResponseHead, int] | None:
    """The head at the start of `data` and its size in bytes, or None while it is incomplete."""
    raw = bytes(data[:HEAD_MAX])
    end = raw.find(b"\r\n\r\n")
    if end < 0:
        if len(raw) == HEAD_MAX:
            raise ProtocolError(f"response head: expected at most {HEAD_MAX} bytes")
        return None
    first, *lines = raw[:end].split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        raise ProtocolError(f"response: expected an HTTP/1.1 status line, got {first[:80]!r}")
    fields = _parse_fields(lines)
    length = fields.get(b"content-length", b"")
    if not length.isdigit() or len(length) > 12 or b"transfer-encoding" in fields:
        raise ProtocolError(f"response: expected one Content-Length, got {length[:40]!r}")
    code = int(status[1])
    if code == 200 and fields.get(b"imgdist-wire") != str(WIRE_VERSION).encode():
        raise ProtocolError(f"response: expected Imgdist-Wire: {WIRE_VERSION}; is this a chunk server of this version?")
    retry = fields.get(b"retry-after", b"")
    keep_alive = b"close" not in fields.get(b"connection", b"").lower()
    return ResponseHead(code, int(length), keep_alive, float(retry) if _is_small(retry) else None), end + 4


def _is_small(digits: bytes) -> bool:
    return digits.isdigit() and len(digits) <= 6


def _parse_request(head: bytes) -> ChunkRequest:
    first, *lines = head.split(b"\r\n")
    words = first.split(b" ")
    if len(words) != 3 or words[0] != b"GET" or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise ProtocolError(f"request: expected GET <path> HTTP/1.1, got {first[:80]!r}")
    target = _TARGET.fullmatch(words[1])
    if target is None:
        raise ProtocolError(
            f"request: expected /v1/chunks/<name>/<numbers>?p=demand|trace|fill, got {words[1][:120]!r}"
        )
    fields = _parse_fields(lines)
    if b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0":
        raise ProtocolError("request: expected no body")
    keep_alive = words[2] == b"HTTP/1.1" and b"close" not in fields.get(b"connection", b"").lower()
    priority = Priority(target[3].decode()) if target[3] else Priority.DEMAND
    return ChunkRequest(target[1].decode(), parse_numbers(target[2].decode()), priority, keep_alive)


def _parse_fields(lines: Iterable[bytes]) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise ProtocolError(f"header: expected `name: value`, got {line[:80]!r}")
        name = match[1].lower()
        if name in fields and name in (b"content-length", b"transfer-encoding"):
            raise ProtocolError(f"header {name.decode()}: expected once")
        fields[name] = match[2].strip(b" \t")
    return fields

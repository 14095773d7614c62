"""Heads of answers of the chunk dialect (imgdist.wire.messages), both ways. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from imgdist.errors import ProtocolError
from imgdist.wire.messages import ADDRESSES_MAX, HEAD_MAX, WIRE_VERSION, parse_address, parse_fields
from imgdist.wire.numbers import format_numbers, parse_numbers

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: imgdist-mesh\r\n\r\n"
"""The answer to a MeshRequest that showed no token."""

_REASONS = {
    200: "OK",
    307: "Temporary Redirect",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    503: "Service Unavailable",
}
_COMMON = re.compile(
    b"HTTP/1\\.1 200 OK\r\nContent-Length: ([0-9]{1,12})\r\nImgdist-Wire: %d\r\nImgdist-Queue: ([0-9]{1,15})\r\n\r\n"
    % WIRE_VERSION
)
"""What nearly every answer says [measured: 36 us before, 15 since, of a miss's 1.2 ms]."""
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2})(?: [\t -~]*)?")
_ONCE = (b"content-length", b"transfer-encoding")
_QUEUE_DIGITS = 15
_RETRY_DIGITS = 9


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What a client needs of a response's head; `length` is the body's size in bytes, `queue_bytes` what waits at the
    sender, `have` what came to it lately, `chunks` what it chose, `addresses` who else can be asked, and
    `from_here` that those get it from the sender."""

    status: int
    length: int
    keep_alive: bool
    retry_after_s: float | None
    queue_bytes: int | None = None
    have: tuple[int, ...] = ()
    chunks: tuple[int, ...] = ()
    addresses: tuple[str, ...] = ()
    from_here: bool = False


def switching(token: str) -> bytes:
    """The answer to a MeshRequest; `token` proves that a node answers, "" where nobody wants to know."""
    return SWITCHING[:-2] + f"Imgdist-Token: {token}\r\n\r\n".encode("ascii") if token else SWITCHING


def encode_head(
    status: int,
    length: int,
    *,
    keep_alive: bool = True,
    retry_after_s: float | None = None,
    queue_bytes: int | None = None,
    have: Sequence[int] = (),
    chunks: Sequence[int] = (),
    addresses: Sequence[str] = (),
    from_here: bool = False,
) -> bytes:
    """The bytes of a response's head, before a body of `length` bytes."""
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Length: {length}\r\nImgdist-Wire: {WIRE_VERSION}\r\n"
    if queue_bytes is not None:
        head += f"Imgdist-Queue: {queue_bytes}\r\n"
    if have:
        head += f"Imgdist-Have: {format_numbers(have)}\r\n"
    if chunks:
        head += f"Imgdist-Chunks: {format_numbers(chunks)}\r\n"
    if addresses:
        head += f"Imgdist-Peers: {','.join(addresses)}\r\n"
    if from_here:
        head += "Imgdist-From-Here: 1\r\n"
    if retry_after_s is not None:
        milliseconds = round(retry_after_s * 1000)
        head += f"Retry-After: {-(-milliseconds // 1000)}\r\nRetry-After-Ms: {milliseconds}\r\n"
    if not keep_alive:
        head += "Connection: close\r\n"
    return (head + "\r\n").encode("ascii")


def decode_response_head(data: bytes | bytearray | memoryview) -> tuple[ResponseHead, int] | None:
    """The head at the start of `data` and its size in bytes, or None while it is incomplete."""
    raw = bytes(data[:HEAD_MAX])
    common = _COMMON.match(raw)
    if common is not None:
        return ResponseHead(200, int(common[1]), True, None, int(common[2])), common.end()
    end = raw.find(b"\r\n\r\n")
    if end < 0:
        if len(raw) == HEAD_MAX:
            raise ProtocolError(f"response head: expected at most {HEAD_MAX} bytes")
        return None
    first, *lines = raw[:end].split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        raise ProtocolError(f"response: expected an HTTP/1.1 status line, got {first[:80]!r}")
    fields = parse_fields(lines, _ONCE)
    length = fields.get(b"content-length", b"")
    if not length.isdigit() or len(length) > 12 or b"transfer-encoding" in fields:
        raise ProtocolError(f"response: expected one Content-Length, got {length[:40]!r}")
    code = int(status[1])
    if code == 200 and fields.get(b"imgdist-wire") != str(WIRE_VERSION).encode():
        raise ProtocolError(f"response: expected Imgdist-Wire: {WIRE_VERSION}; is this a chunk server of this version?")
    peers = fields.get(b"imgdist-peers", b"")
    head = ResponseHead(
        status=code,
        length=int(length),
        keep_alive=b"close" not in fields.get(b"connection", b"").lower(),
        retry_after_s=_retry_after_s(fields),
        queue_bytes=_number(fields.get(b"imgdist-queue"), _QUEUE_DIGITS),
        have=_numbers(fields.get(b"imgdist-have")),
        chunks=_numbers(fields.get(b"imgdist-chunks")),
        addresses=_addresses(peers) if peers else (),
        from_here=fields.get(b"imgdist-from-here") == b"1",
    )
    return head, end + 4


def _retry_after_s(fields: dict[bytes, bytes]) -> float | None:
    milliseconds = _number(fields.get(b"retry-after-ms"), _RETRY_DIGITS)
    if milliseconds is not None:
        return milliseconds / 1000
    seconds = _number(fields.get(b"retry-after"), 6)  # RFC 9110, 10.2.3; its dates are nothing to us
    return None if seconds is None else float(seconds)


def _number(digits: bytes | None, most: int) -> int | None:
    return int(digits) if digits is not None and digits.isdigit() and len(digits) <= most else None


def _numbers(value: bytes | None) -> tuple[int, ...]:
    return parse_numbers(value.decode("latin-1")) if value else ()


def _addresses(value: bytes) -> tuple[str, ...]:
    texts = value.decode("latin-1").split(",")
    if len(texts) > ADDRESSES_MAX:
        raise ProtocolError(f"response: expected at most {ADDRESSES_MAX} addresses, got {len(texts)}")
    return tuple(parse_address(text.strip()) for text in texts)

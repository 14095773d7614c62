"""Requests of the chunk dialect (imgdist.wire.messages), both ways: bytes to values and back. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from imgdist.errors import ProtocolError
from imgdist.wire.messages import HEAD_MAX, Priority, parse_address, parse_fields
from imgdist.wire.numbers import format_lacks, format_numbers, parse_lacks, parse_numbers

ANY_MAX = 8
"""Most chunks that a server chooses at once: it should choose again as soon as it knows more."""
PIPELINED_MAX = 16
"""Most requests sent before an answer; ours wait for it."""

_NAME = rb"([0-9a-f]{64}|sha256-[0-9a-f]{64}-v[0-9]{1,5})"
_NUMBERED = re.compile(rb"GET /v1/chunks/" + _NAME + rb"/([0-9,-]{1,800})([? ].*)", re.DOTALL)
_TERMS = re.compile(rb"(?:\?p=(demand|trace|fill)(?:&w=([0-9]{1,4}))?)?")
_ANY = re.compile(rb"/v1/chunks/" + _NAME + rb"/any\?p=(trace|fill)&n=([1-8])")
_TERMS_KEPT, _TERMS_BYTES = 256, 512
"""What ends so many requests is kept, if it is no longer: 256 KiB in all, whoever asks."""
_PRIORITIES = {priority.value.encode(): priority for priority in Priority}
_ONCE = (b"content-length", b"transfer-encoding", b"imgdist-lacks", b"imgdist-node", b"imgdist-token")


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """For chunks `numbers` of the pack `name`, to be answered in that order.

    `node` is where others reach the member of the swarm that asks, "" if nobody does; None: it is no member. `wait_s`:
    it was sent here, or elsewhere often enough; so long it may take until chunks are there that are on their way to the
    server. `token` proves that a node asks (imgdist.wire.clusterkey), "" if it has none.
    """

    name: str
    numbers: tuple[int, ...]
    priority: Priority
    keep_alive: bool = True
    node: str | None = None
    wait_s: float = 0.0
    token: str = ""


@dataclass(frozen=True, slots=True)
class AnyRequest:
    """For `count` chunks of the pack `name`, chosen by the server among the set `lacks`. It is kept as it came
    (`parse_lacks` takes `missing`): a few bytes can name chunks whose set takes 512 KiB."""

    name: str
    missing: bytes
    count: int
    priority: Priority
    keep_alive: bool = True
    node: str | None = None
    token: str = ""

    @classmethod
    def among(cls, name: str, lacks: int, count: int, priority: Priority) -> AnyRequest:
        """Of a `lacks`, not empty, that spans more than a bitmap, the first part (`format_lacks`)."""
        return cls(name, format_lacks(lacks).encode("ascii"), count, priority)

    @property
    def lacks(self) -> int:
        """Bit i: chunk i."""
        return parse_lacks(self.missing)


@dataclass(frozen=True, slots=True)
class HelloRequest:
    """Who answers here?"""

    keep_alive: bool = True


@dataclass(frozen=True, slots=True)
class MeshRequest:
    """The connection is to speak another protocol from here on; `leftover` is what came of it already."""

    leftover: bytes = b""
    token: str = ""


HELLO = b"GET /v1/hello HTTP/1.1\r\nHost: imgdist\r\nConnection: close\r\n\r\n"
"""The bytes of a `HelloRequest`, the only one on its connection. A server without a hello answers 404."""

BodyRequest = ChunkRequest | AnyRequest
Request = BodyRequest | HelloRequest | MeshRequest


def encode(request: BodyRequest, *, node: str | None = None, token: str = "") -> bytes:
    """The bytes of a request that leaves its connection open; `wait_s` is below 10 and sent as whole milliseconds.
    `node` and `token`, where given, in place of its own."""
    node, token = request.node if node is None else node, token or request.token
    urgency, fields = f"p={request.priority.value}", ""
    if isinstance(request, AnyRequest):
        target = f"any?{urgency}&n={request.count}"
        fields += f"Imgdist-Lacks: {request.missing.decode('ascii')}\r\n"
    else:
        wait = f"&w={round(request.wait_s * 1000)}" if request.wait_s else ""
        target = f"{format_numbers(request.numbers)}?{urgency}{wait}"
    if node is not None:
        fields += f"Imgdist-Node: {node}\r\n"
    if token:
        fields += f"Imgdist-Token: {token}\r\n"
    return f"GET /v1/chunks/{request.name}/{target} HTTP/1.1\r\nHost: imgdist\r\n{fields}\r\n".encode("ascii")


class RequestDecoder:
    """Cuts a connection's bytes into requests, however they are split; heads are bounded by `HEAD_MAX`."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[Request]:
        """Take bytes, return the requests they complete. After a ProtocolError the connection cannot go on; after a
        MeshRequest its bytes are another protocol's."""
        self._buffer += data
        requests: list[Request] = []
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            if end > HEAD_MAX:
                break
            request = _parse(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            if isinstance(request, MeshRequest):
                requests.append(replace(request, leftover=bytes(self._buffer)))
                self._buffer.clear()
                return requests
            requests.append(request)
            if len(requests) > PIPELINED_MAX:
                raise ProtocolError(f"requests: expected at most {PIPELINED_MAX} before an answer")
        if len(self._buffer) > HEAD_MAX:
            raise ProtocolError(f"request head: expected at most {HEAD_MAX} bytes")
        return requests


def _parse(head: bytes) -> Request:
    numbered = _NUMBERED.fullmatch(head)
    if numbered is not None:
        name, numbers, rest = numbered.groups()
        terms = _kept_terms(rest) if len(rest) <= _TERMS_BYTES else _terms(rest)
        return ChunkRequest(name.decode(), parse_numbers(numbers.decode()), *terms)
    (method, target), fields, keep_alive = _parse_head(head, 2)
    if method != b"GET":
        raise ProtocolError(f"request: expected GET <path> HTTP/1.1, got {head[:80]!r}")
    if target == b"/v1/hello":
        return HelloRequest(keep_alive)
    if target == b"/v1/mesh":
        if fields.get(b"upgrade", b"").lower() != b"imgdist-mesh":
            raise ProtocolError("request: /v1/mesh expects Upgrade: imgdist-mesh")
        return MeshRequest(token=_parse_token(fields))
    match = _ANY.fullmatch(target)
    if match is None:
        raise _no_chunks(target)
    missing = fields.get(b"imgdist-lacks", b"")
    parse_lacks(missing)
    node, token = _parse_node(fields.get(b"imgdist-node")), _parse_token(fields)
    return AnyRequest(match[1].decode(), missing, int(match[3]), _PRIORITIES[match[2]], keep_alive, node, token)


def _terms(rest: bytes) -> tuple[Priority, bool, str | None, float, str]:
    """What a request says behind its chunks' numbers, as ChunkRequest has it. A node says the same each time, and a
    reader waits meanwhile [measured: parsing a request 48 us before, 24 since, of a miss's 1.2 ms]."""
    (query,), fields, keep_alive = _parse_head(rest, 1)
    match = _TERMS.fullmatch(query)
    if match is None:
        raise _no_chunks(query)
    priority = _PRIORITIES[match[1]] if match[1] else Priority.DEMAND
    node, token = _parse_node(fields.get(b"imgdist-node")), _parse_token(fields)
    return priority, keep_alive, node, int(match[2] or 0) / 1000, token


_kept_terms = lru_cache(maxsize=_TERMS_KEPT)(_terms)


def _parse_head(head: bytes, words: int) -> tuple[list[bytes], dict[bytes, bytes], bool]:
    """So many words before the version, fields, whether the connection stays open."""
    first, *lines = head.split(b"\r\n")
    *before, version = first.split(b" ")
    if len(before) != words or version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise ProtocolError(f"request: expected GET <path> HTTP/1.1, got {first[:80]!r}")
    fields = parse_fields(lines, _ONCE)
    if b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0":
        raise ProtocolError("request: expected no body")
    return before, fields, version == b"HTTP/1.1" and b"close" not in fields.get(b"connection", b"").lower()


def _no_chunks(got: bytes) -> ProtocolError:
    return ProtocolError(f"request: expected /v1/chunks/<name>/<numbers>?p=demand|trace|fill, got {got[:120]!r}")


def _parse_token(fields: dict[bytes, bytes]) -> str:
    return fields.get(b"imgdist-token", b"").decode("latin-1")


def _parse_node(value: bytes | None) -> str | None:
    if not value:
        return None if value is None else ""
    return parse_address(value.decode("latin-1"))

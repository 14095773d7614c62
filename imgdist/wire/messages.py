"""How chunk bodies are asked for and sent: a small dialect of HTTP/1.1 (RFC 9112), as a pure codec.

Requests have no body::

    GET /v1/chunks/<name>/<numbers>?p=demand|trace|fill[&w=<0..9999>] HTTP/1.1
    GET /v1/chunks/<name>/any?p=trace|fill&n=<1..8> HTTP/1.1        with Imgdist-Lacks
    GET /v1/hello HTTP/1.1                                          who answers here, and which versions it speaks
    GET /v1/mesh HTTP/1.1                                           with Upgrade: imgdist-mesh (imgdist.wire.mesh)

`<name>` is a pack id (64 hex digits) or, while the layer is still being converted, `sha256-<hex>-v<format version>`.
`<numbers>` lists at most `NUMBERS_MAX` chunks, single or as inclusive ranges: `3-7,9`. The answer's body is, for
each chunk in the order asked, a 16-byte frame header (little-endian `<IBxxxII`: number, encoding, length, raw size in
bytes or 0 where the sender does not know it) and `length` bytes. For `any` the server chooses n of the chunks that
`Imgdist-Lacks: <first>:<bitmap>` names, and says in `Imgdist-Chunks` which. With `w` an agent may take so many
milliseconds for chunks that are on their way to it: who was sent there (307) asks so, if its own address
(`Imgdist-Node`) is the greater one, and goes on with that while it is served; an agent then names nobody but whose
address lies between the two. An agent that has the chunks names with `Imgdist-From-Here: 1` who got them from it, or is
getting them; whoever is sent there asks so whatever its address. Otherwise it asks here again, and with `w` where
it was sent elsewhere often enough: a supernode serves that. Any HTTP client can talk to it; only ours is fast.

Fields of a request: `Imgdist-Node: host:port` of a member of the swarm, where others reach it, or empty if nobody can:
it can go elsewhere, so that 307 with `Imgdist-Peers: host:port,...` (who got these chunks lately, or is getting them)
and 503 with `Retry-After-Ms` are better answers than a long wait; 404 with `Retry-After-Ms` is no sign of load: others
just got what the member lacks of this pack. Fields of an answer: `Imgdist-Queue`, bytes that wait to be sent with that
urgency or a higher one; `Imgdist-Have`, chunks of this pack that came to the sender lately.

Nothing here (requests, responses, numbers) does I/O. Decoders raise ProtocolError and nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from imgdist.errors import ProtocolError
from imgdist.pack import CHUNK_MAX

WIRE_VERSION = 1
BODY_MAX = CHUNK_MAX + 1024
"""Most bytes of an encoded chunk; an encoder that saves nothing sends the chunk raw, so the slack is generous."""
HEAD_MAX = 8192
"""Most bytes of a request's or a response's head."""
FRAME_SIZE = 16
ENCODINGS = 3
"""raw, zstd, zero: see imgdist.pack.codec."""
ADDRESS_MAX = 263
"""Bytes of `host:port`: a DNS name, a colon, five digits and brackets."""
ADDRESSES_MAX = 8

_FRAME = struct.Struct("<IBxxxII")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}):[ \t]*([\t -~\x80-\xff]*)")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z_.-]{1,253}):([0-9]{1,5})")


class Priority(Enum):
    """How urgent: somebody waits (`DEMAND`), a start will want it next (`TRACE`), or it completes a layer (`FILL`)."""

    DEMAND = "demand"
    TRACE = "trace"
    FILL = "fill"


@dataclass(frozen=True, slots=True)
class Frame:
    """The header before a chunk's body of `length` bytes; `raw_size` is 0 where the sender does not know it."""

    number: int
    encoding: int
    length: int
    raw_size: int


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


def parse_address(text: str) -> str:
    """`host:port` or `[v6]:port`, as it is. Raises ProtocolError for anything else."""
    match = _ADDRESS.fullmatch(text) if len(text) <= ADDRESS_MAX else None
    if match is None or not 0 < int(match[1]) < 65536:
        raise ProtocolError(f"address: expected host:port, got {text[:80]!r}")
    return text


def parse_fields(lines: Iterable[bytes], once: tuple[bytes, ...]) -> dict[bytes, bytes]:
    """A head's fields by their names in lower case; of those not in `once`, the last counts."""
    fields: dict[bytes, bytes] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise ProtocolError(f"header: expected `name: value`, got {line[:80]!r}")
        name = match[1].lower()
        if name in fields and name in once:
            raise ProtocolError(f"header {name.decode()}: expected once")
        fields[name] = match[2].strip(b" \t")
    return fields

"""The index record stream as bytes: a pure codec, no judgement about what the records mean together.

A record is `u8 type | varint length | payload`. Varints are LEB128, little end first, and must be as short as
possible, so that a value has one encoding only: the pack id is a hash over these bytes. A stream carries them in this
order; one of a raw pack has header, chunks, blob and seal.

====  ===========  ==================================================================================
type  record       payload
====  ===========  ==================================================================================
1     Header       magic "IDX", u8 format version, layer digest (32 raw bytes of sha256, or nothing); of a raw
                   pack: magic "RAW", u8 format version, blob digest, varint bytes of the blob
2     Chunk        varint blocks, u8 flags (1 all zero, 2 metadata), BLAKE3-256 of the raw chunk
3     Metadata     varint first block, varint blocks: an extent of file-system metadata
4     Superblock   the image's bytes from 1024 on
5     Implied      path of a directory that the layer only implies, no leading slash; with a trailing one, of a
                   directory that it describes behind something in it
10    Hides        path of a name that the layer hides, or of an opaque directory around implied ones: the layer
                   cannot be the first of an image. Only where there is one
6     DiffId       sha256 of the uncompressed tar, raw
7     TarSplit     BLAKE3-256 of the tar-split stream, varint its size in bytes
9     Blob         sha256 of the blob, raw, varint its size in bytes
8     Seal         pack id
====  ===========  ==================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imgdist.errors import ProtocolError
from imgdist.pack import BLOCK, CHUNK_MAX
from imgdist.pack.kinds import Kind

DIGEST_BYTES = 32
SUPERBLOCK_AT = 1024
"""Where in the image an EROFS superblock lies; block 0 is zero before it and after it."""
_SUPERBLOCK_MAX = BLOCK - SUPERBLOCK_AT
PATH_MAX = 4096
BLOCKS_MAX = 2**32
"""Blocks of an image: EROFS addresses them with 32 bits."""
_FLAG_ZERO = 1
_FLAG_METADATA = 2
_HEADER, _CHUNK, _METADATA, _SUPERBLOCK, _IMPLIED, _DIFF_ID, _TAR_SPLIT, _SEAL, _BLOB, _HIDES = range(1, 11)
_LENGTH_MAX = {
    _HEADER: 4 + DIGEST_BYTES + 9,
    _CHUNK: 6 + DIGEST_BYTES,
    _METADATA: 10,
    _SUPERBLOCK: _SUPERBLOCK_MAX,
    _IMPLIED: PATH_MAX,
    _HIDES: PATH_MAX,
    _DIFF_ID: DIGEST_BYTES,
    _TAR_SPLIT: DIGEST_BYTES + 10,
    _SEAL: DIGEST_BYTES,
    _BLOB: DIGEST_BYTES + 9,
}
_ORDER = (_HEADER, _CHUNK, _METADATA, _SUPERBLOCK, _IMPLIED, _HIDES, _DIFF_ID, _TAR_SPLIT, _BLOB, _SEAL)
_RANK = {kind: rank for rank, kind in enumerate(_ORDER)}


@dataclass(frozen=True, slots=True)
class Header:
    """What the stream is about. `digest` is the raw sha256 of the compressed layer or of the blob; a layer's may be
    empty, for it is not identity. `size` are the bytes of a raw pack's blob, else 0."""

    version: int
    digest: bytes
    kind: Kind = Kind.LAYER
    size: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next chunk: `blocks` blocks of 4 KiB, `digest` = BLAKE3-256 of its raw bytes."""

    blocks: int
    digest: bytes
    zero: bool = False
    metadata: bool = False


@dataclass(frozen=True, slots=True)
class Metadata:
    """An extent of file-system metadata in the image."""

    first_block: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Superblock:
    """The image's bytes from `SUPERBLOCK_AT` on."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Implied:
    """A directory that members of the layer need before a member describes it; if one does, `path` ends in a slash."""

    path: bytes


@dataclass(frozen=True, slots=True)
class Hides:
    """The layer hides something, at `path` first: what, if nothing lies below, only unpacking shows."""

    path: bytes


@dataclass(frozen=True, slots=True)
class DiffId:
    """sha256 of the uncompressed layer, raw."""

    sha256: bytes


@dataclass(frozen=True, slots=True)
class TarSplit:
    """The tar-split stream that lies beside the pack: BLAKE3-256 and size in bytes."""

    digest: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Blob:
    """What a raw pack holds: sha256 and size in bytes of the blob."""

    sha256: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Seal:
    """The end of the stream: nothing follows."""

    pack_id: bytes


Record = Header | Chunk | Metadata | Superblock | Implied | Hides | DiffId | TarSplit | Blob | Seal
TYPE_OF: dict[type[Record], int] = {
    Header: _HEADER,
    Chunk: _CHUNK,
    Metadata: _METADATA,
    Superblock: _SUPERBLOCK,
    Implied: _IMPLIED,
    Hides: _HIDES,
    DiffId: _DIFF_ID,
    TarSplit: _TAR_SPLIT,
    Blob: _BLOB,
    Seal: _SEAL,
}


def rank(kind: int) -> int:
    """Where in a stream records of this type stand."""
    return _RANK[kind]


def encode(record: Record) -> bytes:
    """The bytes of one record."""
    match record:
        case Header(version, digest, kind, size):
            payload = kind.value + bytes((version,)) + digest + (_varint(size) if kind is Kind.RAW else b"")
        case Chunk(blocks, digest, zero, metadata):
            flags = _FLAG_ZERO * zero | _FLAG_METADATA * metadata
            payload = _varint(blocks) + bytes((flags,)) + digest
        case Metadata(first_block, blocks):
            payload = _varint(first_block) + _varint(blocks)
        case Superblock(content):
            payload = content
        case Implied(path) | Hides(path):
            payload = path
        case DiffId(sha256):
            payload = sha256
        case TarSplit(digest, size) | Blob(digest, size):
            payload = digest + _varint(size)
        case Seal(pack_id):
            payload = pack_id
    return bytes((TYPE_OF[type(record)],)) + _varint(len(payload)) + payload


class RecordDecoder:
    """Bytes of a stream, in any pieces, to records. Raises nothing but `ProtocolError`."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[Record, bytes]]:
        """The records that `data` completes, each with its own bytes, one at a time: what a newer release wrote is told
        by its header before a record that this one does not know. Holds back at most one unfinished record."""
        self._pending += data
        buffer = bytes(self._pending)
        at = 0
        try:
            while (span := record_span(buffer, at)) is not None:
                first, (start, at) = at, span
                yield _decode(buffer[first], buffer[start:at]), buffer[first:at]
        finally:
            del self._pending[:at]

    def drop_partial(self) -> None:
        """Forget an unfinished record: its stream was cut, and a new one starts with that record."""
        self._pending.clear()


def record_span(buffer: bytes, at: int) -> tuple[int, int] | None:
    """(start, end) of the payload of the record that starts at `at`; None if the buffer ends before it does.

    Raises `ProtocolError` if the type is unknown or the length more than such a record can have.
    """
    if at >= len(buffer):
        return None
    kind = buffer[at]
    most = _LENGTH_MAX.get(kind)
    if most is None:
        raise ProtocolError(f"index record of unknown type {kind}: written by a newer release, or not an index")
    if at + 1 < len(buffer) and buffer[at + 1] < 0x80:
        length, start = buffer[at + 1], at + 2
    elif header := _read_varint(buffer, at + 1):
        length, start = header
    else:
        return None
    if length > most:
        raise ProtocolError(f"index record of type {kind} claims {length} bytes, at most {most} are allowed")
    return (start, start + length) if start + length <= len(buffer) else None


def offset_of(stream: bytes, number: int) -> int | None:
    """Where record `number` of a stream starts or will start; None if an earlier one is not whole yet."""
    at = 0
    for _ in range(number):
        span = record_span(stream, at)
        if span is None:
            return None
        at = span[1]
    return at


def _decode(kind: int, payload: bytes) -> Record:
    match kind:
        case 2:
            return _decode_chunk(payload)
        case 1:
            return _decode_header(payload)
        case 3:
            first_block, at = _need_varint(payload, 0)
            blocks, at = _need_varint(payload, at)
            _exactly(kind, payload, at)
            if not 0 < blocks <= BLOCKS_MAX - first_block:
                raise ProtocolError(f"metadata extent of {blocks} blocks at {first_block}: outside any image")
            return Metadata(first_block, blocks)
        case 4:
            _at_least(kind, payload, 1)
            return Superblock(payload)
        case 5:
            _clean_path("implied directory", payload.removesuffix(b"/"))
            return Implied(payload)
        case 10:
            _clean_path("hidden name", payload)
            return Hides(payload)
        case 6:
            return DiffId(_digest(kind, payload))
        case 7:
            _at_least(kind, payload, DIGEST_BYTES + 1)
            size, at = _need_varint(payload, DIGEST_BYTES)
            _exactly(kind, payload, at)
            return TarSplit(payload[:DIGEST_BYTES], size)
        case 9:
            _at_least(kind, payload, DIGEST_BYTES + 1)
            size, at = _need_varint(payload, DIGEST_BYTES)
            _exactly(kind, payload, at)
            return Blob(payload[:DIGEST_BYTES], size)
        case _:
            return Seal(_digest(kind, payload))


def _decode_header(payload: bytes) -> Header:
    if payload[:3] == Kind.RAW.value and len(payload) > 4 + DIGEST_BYTES:
        size, at = _need_varint(payload, 4 + DIGEST_BYTES)
        _exactly(_HEADER, payload, at)
        return Header(payload[3], payload[4 : 4 + DIGEST_BYTES], Kind.RAW, size)
    if payload[:3] != Kind.LAYER.value or len(payload) not in (4, 4 + DIGEST_BYTES):
        raise ProtocolError(f"not an index: it starts with {payload[:8]!r}, expected b'IDX' or b'RAW', version, digest")
    return Header(payload[3], payload[4:])


def _decode_chunk(payload: bytes) -> Chunk:
    blocks, at = (payload[0], 1) if payload and payload[0] < 0x80 else _need_varint(payload, 0)
    if len(payload) != at + 1 + DIGEST_BYTES:
        _exactly(_CHUNK, payload, at + 1 + DIGEST_BYTES)
    flags = payload[at]
    if not 0 < blocks <= CHUNK_MAX // BLOCK or flags > _FLAG_ZERO | _FLAG_METADATA:
        raise ProtocolError(
            f"chunk of {blocks} blocks with flags {flags}: at most {CHUNK_MAX // BLOCK} blocks, flags 3"
        )
    return Chunk(blocks, payload[at + 1 :], bool(flags & _FLAG_ZERO), bool(flags & _FLAG_METADATA))


def _clean_path(what: str, path: bytes) -> None:
    if b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise ProtocolError(f"{what} {path!r} is not a clean relative path")


def _digest(kind: int, payload: bytes) -> bytes:
    _exactly(kind, payload, DIGEST_BYTES)
    return payload


def _exactly(kind: int, payload: bytes, length: int) -> None:
    if len(payload) != length:
        raise ProtocolError(f"index record of type {kind} has {len(payload)} bytes, expected {length}")


def _at_least(kind: int, payload: bytes, length: int) -> None:
    if len(payload) < length:
        raise ProtocolError(f"index record of type {kind} has {len(payload)} bytes, expected {length} or more")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _need_varint(payload: bytes, at: int) -> tuple[int, int]:
    got = _read_varint(payload, at)
    if got is None:
        raise ProtocolError("index record ends inside a number")
    return got


def _read_varint(buffer: bytes, at: int) -> tuple[int, int] | None:
    """(value, offset after it), or None if the buffer ends first. Values below 2**63, shortest form only."""
    value = 0
    for count, byte in enumerate(buffer[at : at + 9]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            if byte == 0 and count:
                raise ProtocolError("number in an index record is not in its shortest form")
            return value, at + count + 1
        if count == 8:
            raise ProtocolError("number in an index record has more than 63 bits")
    return None

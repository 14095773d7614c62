"""The index of a pack: its chunk table, what the kernel needs to mount it, and the pack id that names it all.

The pack id is BLAKE3-256 in key-derivation mode (its own domain, so that no other hash of imgdist can be mistaken
for a pack id) over the format version and the canonical bytes of every record between header and seal. So it
covers chunk sizes and digests, metadata extents, block 0, implied directories, what is hidden, diff ID and the
tar-split's digest.
The header's layer digest stays outside: gzip and zstd twins of one layer share a pack. A raw pack's id has a domain of
its own, and covers chunks, blob digest and size.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from functools import lru_cache
from itertools import pairwise

from blake3 import blake3

from imgdist.errors import CorruptError, NewerFormatError, ProtocolError
from imgdist.pack import BLOCK, CHUNK_MAX, FORMAT_VERSION
from imgdist.pack.kinds import Kind, early_name, raw_chunks
from imgdist.pack.records import (
    BLOCKS_MAX,
    DIGEST_BYTES,
    SUPERBLOCK_AT,
    TYPE_OF,
    Blob,
    Chunk,
    DiffId,
    Header,
    Hides,
    Implied,
    Metadata,
    Record,
    RecordDecoder,
    Seal,
    Superblock,
    TarSplit,
    encode,
    rank,
)

_DOMAINS = {
    Kind.LAYER: "imgdist 2026-11 pack id of an index",
    Kind.RAW: "imgdist 2026-11 pack id of a raw blob's index",
}
_HEADER = TYPE_OF[Header]
_REPEATABLE = (TYPE_OF[Chunk], TYPE_OF[Metadata], TYPE_OF[Implied])


class IndexBuilder:
    """Records to the bytes of an index stream, with the running pack id.

    The caller adds records in stream order (the order of `records.TYPE_OF`), header first, then asks for the seal.
    """

    def __init__(self, digest: str | None = None, kind: Kind = Kind.LAYER, size: int = 0) -> None:
        """`digest` of the layer or blob; `size` in bytes of a raw pack's blob."""
        sha256 = bytes.fromhex(digest.removeprefix("sha256:")) if digest else b""
        self.header = encode(Header(FORMAT_VERSION, sha256, kind, size))
        self._hash = _pack_hash(FORMAT_VERSION, kind)

    def add(self, record: Record) -> bytes:
        """The bytes to append to the stream."""
        data = encode(record)
        self._hash.update(data)
        return data

    def pack_id(self) -> bytes:
        """The pack id over what was added so far; final once the last record is in."""
        return self._hash.digest()


class Index:
    """A sealed index: immutable, its arrays a few dozen bytes a chunk. Made by `IndexFollower` or `load`.

    Chunks lie one after another in the image from byte 4096 on; block 0 travels in the index itself.
    """

    def __init__(self, pack_id: bytes, chunks: _ChunkTable, rest: _Rest) -> None:
        self.pack_id = pack_id
        self._chunks = chunks
        self._rest = rest
        self.kind = rest.header.kind
        self.layer_digest = f"sha256:{rest.header.digest.hex()}" if rest.header.digest else None
        """Of the compressed layer, or of the blob, that the pack was made from."""
        self.blob_size = rest.blob.size if rest.blob else 0
        """Bytes of a raw pack's blob, which lies in the image from byte 4096 on."""
        self.diff_id = f"sha256:{rest.diff_id.hex()}"
        """Of a layer; a raw pack's is no digest."""
        self.image_size = chunks.starts[-1]
        self.chunk_count = len(chunks.flags)
        self.metadata_extents: tuple[tuple[int, int], ...] = tuple(rest.extents)
        """(first block, blocks) of the file-system metadata, in image order."""
        self.superblock = rest.superblock
        """The image's bytes from 1024 on."""
        self.implied_directories: tuple[bytes, ...] = tuple(rest.implied)
        """Paths without a leading slash, sorted; with a trailing one, of directories that the layer describes late."""
        self.hides = rest.hides
        """Path of something that the layer hides, b"" without any: of a first one only unpacking shows what."""
        self.tar_split = rest.tar_split
        """Digest and size of the tar-split stream."""

    @classmethod
    def load(cls, data: bytes) -> Index:
        """The index that `data` holds, whole. `ProtocolError` if it is none, `CorruptError` if cut or altered."""
        follower = IndexFollower()
        follower.feed(data)
        if follower.sealed is None:
            raise CorruptError(f"index ends after {follower.record_count} records without a seal: it is cut short")
        return follower.sealed

    @property
    def early_name(self) -> str | None:
        """What the wire called the pack before its seal, if it told what it was made from."""
        return early_name(self.layer_digest, self.kind) if self.layer_digest else None

    def size(self, chunk: int) -> int:
        """Raw bytes of a chunk, a multiple of 4096."""
        return self._chunks.starts[chunk + 1] - self._chunks.starts[chunk]

    def start(self, chunk: int) -> int:
        """Offset of a chunk in the image."""
        return self._chunks.starts[chunk]

    def digest(self, chunk: int) -> bytes:
        """BLAKE3-256 of a chunk's raw bytes."""
        return bytes(self._chunks.digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES])

    def is_zero(self, chunk: int) -> bool:
        """Whether the chunk is all zeros and so has no body anywhere."""
        return bool(self._chunks.flags[chunk] & 1)

    def is_metadata(self, chunk: int) -> bool:
        """Whether the chunk holds file-system metadata rather than file contents."""
        return bool(self._chunks.flags[chunk] & 2)

    def chunk_at(self, offset: int) -> int:
        """Number of the chunk that holds the image's byte `offset`; `IndexError` for block 0 and beyond the end."""
        if not BLOCK <= offset < self.image_size:
            raise IndexError(f"image byte {offset} is in no chunk: chunks cover {BLOCK} to {self.image_size}")
        return bisect_right(self._chunks.starts, offset) - 1

    def chunks_between(self, start: int, end: int) -> range:
        """Numbers of the chunks that overlap the image's bytes [start, end)."""
        start, end = max(start, BLOCK), min(end, self.image_size)
        return range(self.chunk_at(start), self.chunk_at(end - 1) + 1) if start < end else range(0)

    def block0(self) -> bytes:
        """The image's first 4096 bytes."""
        return (bytes(SUPERBLOCK_AT) + self.superblock).ljust(BLOCK, b"\0")


class IndexFollower:
    """Reads an index as it is being written. What it shows before the seal is a claim, after it a fact.

    Each chunk is verified against its digest, so a claim is safe to fetch by; only a seal makes it safe to mount.
    """

    def __init__(self) -> None:
        self._decoder = RecordDecoder()
        self._hash = _pack_hash(FORMAT_VERSION, Kind.LAYER)
        self._last_type = 0
        self._chunks = _ChunkTable()
        self._rest = _Rest()
        self.record_count = 0
        self.sealed: Index | None = None

    @property
    def header(self) -> Header | None:
        """What the stream says it is about; None before that came."""
        return self._rest.header if self._last_type else None

    @property
    def chunk_count(self) -> int:
        """Chunks known so far."""
        return len(self._chunks.flags)

    def chunk(self, number: int) -> tuple[int, int, bytes, bool]:
        """(offset in the image, raw size, digest, all zero) of a chunk known so far."""
        starts, table = self._chunks.starts, self._chunks
        digest = bytes(table.digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES])
        return starts[number], starts[number + 1] - starts[number], digest, bool(table.flags[number] & 1)

    def is_metadata(self, number: int) -> bool:
        """Whether a chunk known so far holds file-system metadata."""
        return bool(self._chunks.flags[number] & 2)

    def resume_from(self) -> int:
        """Number of the record to ask for after a cut stream; what came of that record is forgotten."""
        self._decoder.drop_partial()
        return self.record_count

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream. `ProtocolError` or `CorruptError` end it: throw the follower away."""
        for record, raw in self._decoder.feed(data):
            kind = raw[0]
            if self.sealed is not None:
                raise ProtocolError("index goes on after its seal")
            if self._last_type == 0 and kind != _HEADER:
                raise ProtocolError("index does not start with its header")
            before = rank(self._last_type) if self._last_type else -1
            if rank(kind) < before or (kind == self._last_type and kind not in _REPEATABLE):
                raise ProtocolError(f"index record {self.record_count} ({type(record).__name__}) is out of order")
            self._last_type = kind
            self.record_count += 1
            self._take(record, raw)

    def _take(self, record: Record, raw: bytes) -> None:
        if isinstance(record, Header):
            self._rest.begin(record)
            self._hash = _pack_hash(FORMAT_VERSION, record.kind)
            return
        if isinstance(record, Chunk):
            self._chunks.add(record)
        elif isinstance(record, Seal):
            self._seal(record)
        else:
            self._rest.add(record)
        self._hash.update(raw)

    def _seal(self, seal: Seal) -> None:
        seen = self._hash.digest()
        if seen != seal.pack_id:
            raise CorruptError(f"index is sealed as pack {seal.pack_id.hex()}, but its records give {seen.hex()}")
        self._rest.check(self._chunks)
        self.sealed = Index(seal.pack_id, self._chunks, self._rest)


class _ChunkTable:
    """Where chunks start, their digests and flags; `starts` has one entry more than there are chunks."""

    __slots__ = ("digests", "flags", "starts")

    def __init__(self) -> None:
        self.starts = array("Q", (BLOCK,))
        self.digests = bytearray()
        self.flags = bytearray()

    def add(self, chunk: Chunk) -> None:
        end = self.starts[-1] + chunk.blocks * BLOCK
        if end > BLOCKS_MAX * BLOCK:
            raise ProtocolError(f"index names more than {BLOCKS_MAX} blocks, the most an image has")
        if chunk.zero and chunk.digest != zero_digest(chunk.blocks * BLOCK):
            raise ProtocolError(f"chunk {len(self.flags)} is marked all zero, but its digest is another")
        self.starts.append(end)
        self.digests += chunk.digest
        self.flags.append(chunk.zero | chunk.metadata << 1)


class _Rest:
    """What an index says besides chunks."""

    __slots__ = ("blob", "diff_id", "extents", "header", "hides", "implied", "superblock", "tar_split")

    def __init__(self) -> None:
        self.header = Header(FORMAT_VERSION, b"")
        self.blob: Blob | None = None
        self.extents: list[tuple[int, int]] = []
        self.superblock = b""
        self.implied: list[bytes] = []
        self.hides = b""
        self.diff_id = b""
        self.tar_split = TarSplit(b"", 0)

    def begin(self, header: Header) -> None:
        if header.version != FORMAT_VERSION:
            raise NewerFormatError(f"index has format version {header.version}, this release reads {FORMAT_VERSION}")
        self.header = header

    def add(self, record: Record) -> None:
        if isinstance(record, Blob) != (self.header.kind is Kind.RAW):
            raise ProtocolError(f"{type(record).__name__} record in an index of kind {self.header.kind.name.lower()}")
        match record:
            case Metadata(first_block, blocks):
                self.extents.append((first_block, blocks))
            case Superblock(content):
                self.superblock = content
            case Implied(path):
                self.implied.append(path)
            case Hides(path):
                self.hides = path
            case DiffId(sha256):
                self.diff_id = sha256
            case TarSplit():
                self.tar_split = record
            case Blob():
                self.blob = record
            case _:
                raise AssertionError(record)

    def check(self, chunks: _ChunkTable) -> None:
        """Raise `ProtocolError` unless a sealed index may say this."""
        if self.header.kind is Kind.RAW:
            self._check_raw(chunks)
        else:
            self._check_layer(chunks)

    def _check_raw(self, chunks: _ChunkTable) -> None:
        blob = self.blob
        if blob is None:
            raise ProtocolError("index of a raw pack is sealed without its blob")
        if (blob.sha256, blob.size) != (self.header.digest, self.header.size):
            raise ProtocolError("index of a raw pack holds another blob than its header names")
        if any(flag & 2 for flag in chunks.flags):
            raise ProtocolError("index of a raw pack has metadata chunks")
        sizes = [end - start for start, end in pairwise(chunks.starts)]
        padded = blob.size + -blob.size % BLOCK
        if len(sizes) != raw_chunks(blob.size) or sum(sizes) != padded or any(s != CHUNK_MAX for s in sizes[:-1]):
            raise ProtocolError(f"chunks of a raw pack are not cut as those of a blob of {blob.size} bytes are")

    def _check_layer(self, chunks: _ChunkTable) -> None:
        missing = [
            name
            for name, there in (
                ("chunks", chunks.flags),
                ("metadata extents", self.extents),
                ("superblock", self.superblock),
                ("diff ID", self.diff_id),
                ("tar-split", self.tar_split.digest),
            )
            if not there
        ]
        if missing:
            raise ProtocolError(f"index is sealed without {', '.join(missing)}")
        end = 1
        for first_block, blocks in self.extents:
            if first_block < end:
                raise ProtocolError(f"metadata extent at block {first_block} overlaps what is before it")
            end = first_block + blocks
        if end * BLOCK > chunks.starts[-1]:
            raise ProtocolError(f"metadata ends at block {end}, the image has {chunks.starts[-1] // BLOCK}")
        if any(a >= b for a, b in pairwise(self.implied)):
            raise ProtocolError("implied directories are not sorted, or one is named twice")


@lru_cache(maxsize=128)
def zero_digest(size: int) -> bytes:
    """BLAKE3-256 of `size` zero bytes."""
    return blake3(bytes(size)).digest()


def _pack_hash(version: int, kind: Kind) -> blake3:
    return blake3(bytes((version,)), derive_key_context=_DOMAINS[kind])

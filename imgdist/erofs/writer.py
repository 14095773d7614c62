"""One pass from a layer's tar to its layer image: chunks as they fill, the superblock at the end.

writer = LayerWriter(emit_chunk)
writer.feed(piece) ...
summary = writer.finish(digest_of_chunk_digests)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from imgdist.erofs import layout
from imgdist.erofs.inodes import INLINE_MAX, Inodes
from imgdist.erofs.metadata import ROOT_NID, MetadataWriter
from imgdist.erofs.tar.header import Member
from imgdist.erofs.tar.reader import Body, TarReader
from imgdist.erofs.tar.split import SplitWriter
from imgdist.erofs.tree import NO_BODY, Tree
from imgdist.errors import DeclinedError
from imgdist.limits import DEFAULT_LIMITS, Limits
from imgdist.pack import BLOCK, records
from imgdist.pack.chunker import Chunker


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """What is known of a layer image only at its end.

    `superblock` are the bytes of the image from 1024 on (block 0 is otherwise zero); `metadata_extents` are (first
    block, blocks); `image_size` in bytes counts block 0; `implied_directories` are paths without leading slash, sorted,
    that no member described, or, with a trailing slash, one only after something was in it; `hides` is a name that the
    layer hides, or an opaque directory around implied ones, b"" without any; `files` are the regular ones; `inodes`
    all.
    """

    superblock: bytes
    metadata_extents: list[tuple[int, int]]
    image_size: int
    implied_directories: tuple[bytes, ...]
    hides: bytes
    uuid: bytes
    files: int
    inodes: int

    def records(self, diff_id: bytes, split: records.TarSplit) -> list[records.Record]:
        """What an index says after its chunks, in order, without the seal; `diff_id` is the tar's raw sha256."""
        return [
            *(records.Metadata(first_block, blocks) for first_block, blocks in self.metadata_extents),
            records.Superblock(self.superblock),
            *map(records.Implied, self.implied_directories),
            *([records.Hides(self.hides)] if self.hides else []),
            records.DiffId(diff_id),
            split,
        ]


class LayerWriter:
    """Converts one layer. `feed` takes the tar in any pieces; the result depends on its bytes alone.

    `emit_chunk(raw, metadata)` gets every chunk in order, from block 1 on; `raw` is the receiver's to keep (Chunker).
    `split` gets the tar-split stream in pieces (imgdist.erofs.tar.split). All methods raise DeclinedError for what is
    not supported or beyond `limits`, and CorruptError for a malformed or truncated tar.
    """

    def __init__(
        self,
        emit_chunk: Callable[[memoryview, bool], None],
        limits: Limits = DEFAULT_LIMITS,
        split: Callable[[bytes], None] | None = None,
    ) -> None:
        self._limits = limits
        self._chunker = Chunker(emit_chunk)
        self._split = SplitWriter(split)
        self._tree = Tree(self._place, limits)
        self._reader = TarReader(self._begin, self._split, limits)
        self._image = _ImageBody(self._chunker)
        self._inline = _InlineBody(self._tree.inodes)
        self._nowhere = _NoBody()

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next piece of the uncompressed tar; it is not kept after the call."""
        self._reader.feed(data)

    def finish(self, chunk_digest: Callable[[], bytes]) -> LayerSummary:
        """Write the metadata, which emits the last chunks, and return the summary.

        `chunk_digest` is called once all chunks are emitted and returns BLAKE3 of their concatenated digests: its
        first 16 bytes become the image's UUID, since overlayfs drops `xino` and `index` where two layers share one.
        """
        self._reader.finish()
        self._split.finish()
        self._tree.finish()
        region = MetadataWriter(self._tree, self._chunker).write()
        blocks = region.first_block + region.blocks
        self._check_size(blocks)
        if sum(map(len, region.implied)) > self._limits.implied_bytes:
            raise DeclinedError(f"layer: paths of implied directories exceed {self._limits.implied_bytes} bytes")
        uuid = chunk_digest()[:16]
        superblock = layout.superblock(
            root_nid=ROOT_NID,
            inodes=region.inodes,
            blocks=blocks,
            meta_block=region.first_block,
            xattr_block=region.xattr_block,
            uuid=uuid,
        )
        return LayerSummary(
            superblock,
            [(region.first_block, region.blocks)],
            blocks * BLOCK,
            region.implied,
            region.hides,
            uuid,
            region.files,
            region.inodes,
        )

    def _begin(self, member: Member) -> Body:
        number = self._tree.apply(member)
        if number == NO_BODY:
            return self._nowhere
        if member.size <= INLINE_MAX:
            return self._inline
        self._image.image_offset = self._tree.inodes.place[number] * BLOCK
        return self._image

    def _place(self, size: int) -> int:
        self._check_size(self._chunker.next_block - -size // BLOCK)
        return self._chunker.begin_file(size)

    def _check_size(self, blocks: int) -> None:
        if blocks * BLOCK > self._limits.image_bytes:
            raise DeclinedError(f"layer: its image would be larger than {self._limits.image_bytes} bytes")


class _ImageBody:
    """A file in data blocks."""

    def __init__(self, chunker: Chunker) -> None:
        self.image_offset: int | None = None
        self.write = chunker.write
        self.zeros = chunker.zeros
        self.end = chunker.end_file


class _InlineBody:
    """A small file, kept until the metadata is written; what is cut off by a failure is nobody's."""

    image_offset: int | None = None

    def __init__(self, inodes: Inodes) -> None:
        self._payload = inodes.payload

    def write(self, piece: memoryview) -> None:
        self._payload += piece

    def zeros(self, count: int) -> None:
        self._payload += bytes(count)

    def end(self) -> None:
        pass


class _NoBody:
    """Data that nobody sees: of a whiteout, or of the root."""

    image_offset: int | None = None

    def write(self, piece: memoryview) -> None:
        pass

    def zeros(self, count: int) -> None:
        pass

    def end(self) -> None:
        pass

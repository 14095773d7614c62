"""Is a pack what the layer that it names converts to? Proved from what lies beside it, without the registry.

A pack's digests vouch for its bytes, and nothing in it vouches for the digests: who makes a pack of their own seals it
like any other. What the image's manifest is about is the layer's tar, by its SHA-256, the diff ID. So the tar is put
together again from the layer image and the tar-split stream, hashed, and converted once more, which must give the pack
id: conversion depends on the tar alone, so a pack that passes holds nothing, data or metadata, that is not the layer's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from blake3 import blake3

from imgdist.erofs import DEFAULT_LIMITS, LayerWriter, Limits
from imgdist.erofs.tar.split import SplitStream, reassemble
from imgdist.errors import CorruptError, DeclinedError, ImgdistError, ProtocolError
from imgdist.pack import BLOCK, codec
from imgdist.pack.index import Index, IndexBuilder, zero_digest
from imgdist.pack.records import Chunk, TarSplit

_PIECE = 256 * 1024

ReadChunk = Callable[[int], bytes | memoryview]
"""`read(number)`: the raw bytes of a chunk as they are kept. CorruptError or ProtocolError if they cannot be."""
OnBytes = Callable[[int], None]
"""Told how many more bytes were looked at."""


class FalsePackError(CorruptError):
    """Every byte of the pack is what its index says, and the index is not what the layer converts to: whoever made it
    lies, or is broken. No other source of the pack can be better."""


class PartialError(ImgdistError):
    """Chunks are missing; those that are here are what the index names."""


class RottenError(CorruptError):
    """Bytes are not those that the index names: this copy is damaged, others may be in order."""


class SplitError(RottenError):
    """The tar-split stream is not the one that the index names, which says nothing of the pack."""


class VerifiedImage:
    """A pack's layer image from block 1 on, wherever it is kept: each chunk is verified whenever it is read."""

    def __init__(self, index: Index, read_chunk: ReadChunk) -> None:
        self.index = index
        self._read_chunk = read_chunk
        self._last: tuple[int, bytes | memoryview] = (-1, b"")

    def chunk(self, number: int) -> bytes | memoryview:
        """The bytes of a chunk; RottenError if they are not those that the index names."""
        try:
            raw = self._read_chunk(number)
            if blake3(raw).digest() == self.index.digest(number):
                return raw
            why = "its bytes do not match its digest"
        except (CorruptError, ProtocolError) as error:
            why = str(error)
        raise RottenError(f"chunk {number} of pack {self.index.pack_id.hex()}: {why}")

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer where no chunk is."""
        out = bytearray()
        for number in self.index.chunks_between(offset, offset + size):
            if self._last[0] != number:  # a layer's files follow each other: of each chunk one read
                self._last = (number, self.chunk(number))
            start = self.index.start(number)
            out += self._last[1][max(0, offset - start) : offset + size - start]
        return bytes(out)

    def check(self, on_bytes: OnBytes = lambda count: None, numbers: Iterable[int] | None = None) -> None:
        """Read chunks, every one unless `numbers` says which. RottenError says how many are damaged and what is wrong
        with the first."""
        damaged, first = 0, ""
        for number in range(self.index.chunk_count) if numbers is None else numbers:
            try:
                self.chunk(number)
            except RottenError as error:
                damaged, first = damaged + 1, first or str(error)
            on_bytes(self.index.size(number))
        if damaged:
            raise RottenError(f"{damaged} of {self.index.chunk_count} chunks are damaged; {first}")


def prove(
    image: VerifiedImage,
    split: SplitStream,
    on_bytes: OnBytes = lambda count: None,
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    """Return if the image's pack is what its layer converts to; streaming, in memory that `limits` bound.

    Raises FalsePackError if it is not; RottenError if chunks are damaged, SplitError if `split` is; DeclinedError if
    this release does not convert the layer.
    """
    index, named = image.index, _Named(split)
    name = f"pack {index.pack_id.hex()}"
    try:
        diff_id, pack_id = _convert_again(image, named, on_bytes, limits)
    except _UnusableError as error:
        named.skip()
        _check_split(index, named)
        raise FalsePackError(f"{name}: no tar can be made of it: {error}") from None
    _check_split(index, named)
    if diff_id != index.diff_id:
        raise FalsePackError(f"{name}: expected the layer of diff ID {index.diff_id}, it holds one of {diff_id}")
    if isinstance(pack_id, DeclinedError):
        raise pack_id
    if pack_id != index.pack_id:
        raise FalsePackError(f"{name}: its layer {diff_id} converts to pack {pack_id.hex()}: it was altered")


def prove_blob(image: VerifiedImage, on_bytes: OnBytes = lambda count: None) -> None:
    """Return if the image of a raw pack is the blob that the index names; FalsePackError if not, else as `prove`."""
    index, digest = image.index, hashlib.sha256()
    for number in range(index.chunk_count):
        left = index.blob_size + BLOCK - index.start(number)
        digest.update(image.chunk(number)[:left])
        on_bytes(index.size(number))
    if f"sha256:{digest.hexdigest()}" != index.layer_digest:
        raise FalsePackError(
            f"pack {index.pack_id.hex()}: expected blob {index.layer_digest}, it holds sha256:{digest.hexdigest()}"
        )


class _UnusableError(Exception):
    """The tar-split stream, if it is the right one, does not fit the image."""


class _Named:
    """A tar-split stream, hashed as it is read."""

    def __init__(self, stream: SplitStream) -> None:
        self._stream = stream
        self._hash = blake3()
        self._size = 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._hash.update(data)
        self._size += len(data)
        return data

    def skip(self) -> None:
        """Read what is left."""
        while self.read(_PIECE):
            pass

    @property
    def record(self) -> TarSplit:
        """What an index says of it."""
        return TarSplit(self._hash.digest(), self._size)


def _check_split(index: Index, named: _Named) -> None:
    if named.record != index.tar_split:
        raise SplitError(
            f"tar-split stream of {named.record.size} bytes: expected the {index.tar_split.size} bytes that the index"
            " names; it proves nothing"
        )


def _convert_again(
    image: VerifiedImage, split: _Named, on_bytes: OnBytes, limits: Limits
) -> tuple[str, bytes | DeclinedError]:
    """(diff ID, pack id or why this release gives none). _UnusableError if there is no tar."""
    digest, again, total = hashlib.sha256(), _Conversion(limits), 0
    most = image.index.image_size + image.index.tar_split.size  # each byte of the tar stands in one of the two
    try:
        for piece in reassemble(split, image.read):
            total += len(piece)
            if total > most:
                raise _UnusableError(f"it would be larger than the {most} bytes of layer image and tar-split stream")
            digest.update(piece)
            again.feed(piece)
            on_bytes(len(piece))
    except RottenError:
        raise
    except (CorruptError, ProtocolError) as error:
        raise _UnusableError(str(error)) from None
    return f"sha256:{digest.hexdigest()}", again.pack_id(digest.digest())


class _Conversion:
    """The layer's way to a pack id, without a pack. A tar that cannot be converted is still to be hashed."""

    def __init__(self, limits: Limits) -> None:
        self._builder = IndexBuilder()
        self._digests, self._split, self._split_bytes = blake3(), blake3(), 0
        self._writer = LayerWriter(self._chunk, limits, self._of_split)
        self._error: ImgdistError | None = None

    def feed(self, piece: bytes) -> None:
        if self._error is None:
            try:
                self._writer.feed(piece)
            except (CorruptError, DeclinedError) as error:
                self._error = error

    def pack_id(self, diff_id: bytes) -> bytes | DeclinedError:
        """The pack id, or why there is none."""
        try:
            if self._error is not None:
                raise self._error
            summary = self._writer.finish(self._digests.digest)
        except (CorruptError, DeclinedError) as error:
            return DeclinedError(f"the layer has its diff ID, but this release would not convert it: {error}")
        for record in summary.records(diff_id, TarSplit(self._split.digest(), self._split_bytes)):
            self._builder.add(record)
        return self._builder.pack_id()

    def _chunk(self, raw: memoryview, metadata: bool) -> None:
        zero = codec.is_zero(raw)
        digest = zero_digest(len(raw)) if zero else blake3(raw).digest()
        self._builder.add(Chunk(len(raw) // BLOCK, digest, zero=zero, metadata=metadata))
        self._digests.update(digest)

    def _of_split(self, data: bytes) -> None:
        self._split.update(data)
        self._split_bytes += len(data)

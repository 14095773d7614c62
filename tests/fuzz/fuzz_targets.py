"""What is fuzzed: every decoder of bytes that strangers choose, each with what must hold for any bytes at all.

A target takes one input and returns; any exception that comes out of it is a finding. Beside "only our own errors",
each holds its decoder to an oracle: the outcome does not depend on how the bytes are cut, what is accepted comes back
the same, and where another implementation is at hand, it agrees.

Checksums would keep mutations from getting anywhere, so `tar` and `index` mend those first that an attacker could.
"""

from __future__ import annotations

import gzip
import io
import random
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import fuzz_seeds as seeds
import zstandard
from blake3 import blake3

from imgdist.erofs import LayerWriter, Limits
from imgdist.erofs.tar.split import reassemble
from imgdist.errors import CorruptError, DeclinedError, ImgdistError, ProtocolError, UsageError
from imgdist.oci.manifest import Index as ImageIndex
from imgdist.oci.manifest import chain_ids, choose, error_details, parse_config, parse_manifest
from imgdist.oci.platform import Platform
from imgdist.oci.reference import parse as parse_reference
from imgdist.pack import BLOCK, CHUNK_MAX, codec, records
from imgdist.pack import index as pack_index
from imgdist.wire import mesh, messages, numbers, requests, responses, tracker
from imgdist.wire.address import Address
from supernode.convert.decompress import LayerSource, pieces

TAR_LIMITS = Limits(
    header_bytes=1 << 16,
    members=500,
    image_bytes=8 << 20,
    hole_bytes=4 << 20,
    metadata_bytes=1 << 20,
    link_steps=20_000,
)
LAYER_LIMITS = Limits(tar_bytes=4 << 20, free_bytes=1 << 20, expansion=50)
_AMD64 = Platform("linux", "amd64")
HANG_S = 1.0
"""CPU-seconds of one input that count as a hang."""
_IMAGE = bytes(1 << 16)


@dataclass(frozen=True)
class Target:
    """One decoder: `run` is called with inputs of at most `max_bytes`, `seeds` are where mutation begins."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    max_bytes: int


def tar(data: bytes) -> None:
    """The tar reader, the tree and the EROFS writer; tar-split restores every tar that is accepted."""
    data = with_checksums(data)
    whole = _outcome(lambda: _converted([data]))
    assert whole == _outcome(lambda: _converted(list(_cut(data)))), "the pieces made a difference"
    if isinstance(whole, tuple) and isinstance(whole[0], bytes):
        image, split = whole
        restored = reassemble(io.BytesIO(split), lambda offset, count: image[offset - BLOCK : offset - BLOCK + count])
        assert b"".join(restored) == data, "tar-split restores another tar"


def layer(data: bytes) -> None:
    """gzip and zstd as they arrive; what Python's own gzip and libzstd in one go make of them is the same."""
    whole = _outcome(lambda: b"".join(pieces(LayerSource(io.BytesIO(data)), LAYER_LIMITS)))
    dribble: Any = _Dribble(data)
    pieced = _outcome(lambda: b"".join(pieces(LayerSource(dribble), LAYER_LIMITS)))
    if isinstance(whole, bytes):
        assert whole == pieced, "the pieces made a difference"
        if data[:2] == b"\x1f\x8b":
            assert whole == gzip.decompress(data), "Python's gzip gives other bytes"
        elif data[:4] == b"\x28\xb5\x2f\xfd":
            reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
            assert whole == reader.read(), "libzstd in one go gives other bytes"
    else:
        assert not isinstance(pieced, bytes), "in pieces it was accepted"


def index(data: bytes) -> None:
    """The index stream, followed; a sealed one keeps its own rules and loads again."""
    data = with_seal(data)
    whole = _outcome(lambda: _followed([data]))
    assert whole == _outcome(lambda: _followed(list(_cut(data)))), "the pieces made a difference"
    if not isinstance(whole, tuple) or whole[0] is None:
        return
    loaded = pack_index.Index.load(data)
    assert len(loaded.block0()) == BLOCK
    for number in range(loaded.chunk_count):
        start, size = loaded.start(number), loaded.size(number)
        assert 0 < size <= CHUNK_MAX
        assert loaded.chunk_at(start) == loaded.chunk_at(start + size - 1) == number
    assert loaded.chunks_between(0, loaded.image_size) == range(loaded.chunk_count)


def chunk(data: bytes) -> None:
    """A chunk body: an encoding, a size in blocks, the body. What decodes decodes again after being encoded anew."""
    encoding, size, body = data[0] & 3, (1 + data[1] % (CHUNK_MAX // BLOCK)) * BLOCK, data[2:]
    out = bytearray(size)
    try:
        codec.decode_into(encoding, body, memoryview(out))
    except (ProtocolError, CorruptError):
        out[: len(body)] = body[:size]
        del out[size:]
    again = bytearray(size)
    codec.decode_into(*codec.encode(bytes(out)), memoryview(again))
    assert again == out, "a chunk does not come back"


def wire(data: bytes) -> None:
    """What agents and supernodes tell each other: the first byte chooses the decoder."""
    decoders = _WIRE
    decode = decoders[data[0] % len(decoders)]
    with suppress(ProtocolError, UsageError, CorruptError):
        decode(data[1:])


def manifest(data: bytes) -> None:
    """What registries answer: manifests, indexes, configurations, errors, and what people type as a reference."""
    kinds = ("", "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json")
    error_details(data)
    with suppress(ImgdistError, UnicodeDecodeError):
        parse_reference(data.decode())
    with suppress(ProtocolError, DeclinedError):
        read = parse_manifest(data[1:], kinds[data[0] % len(kinds)])
        if isinstance(read, ImageIndex):
            with suppress(ImgdistError):
                choose(read, _AMD64)
            return
        assert all(item.size >= 0 for item in read.layers)
        chain_ids(parse_config(data[1:], read).diff_ids)


TARGETS: dict[str, Target] = {
    "tar": Target(tar, seeds.tars, 16_384),
    "layer": Target(layer, seeds.layers, 8192),
    "index": Target(index, seeds.indexes, 4096),
    "chunk": Target(chunk, seeds.chunks, 8192),
    "wire": Target(wire, lambda: seeds.messages(len(_WIRE)), 2048),
    "manifest": Target(manifest, seeds.manifests, 4096),
}


def with_checksums(data: bytes) -> bytes:
    """`data` with the right checksum in every block that has a tar header's magic."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


def with_seal(data: bytes) -> bytes:
    """`data` with the right pack id in the first seal that its records lead to."""
    at = 0
    with suppress(ProtocolError):
        while (span := records.record_span(data, at)) is not None:
            if data[at] == records.TYPE_OF[records.Seal] and span[1] - span[0] == records.DIGEST_BYTES:
                return data[: span[0]] + _pack_id(data[: span[1]]) + data[span[1] :]
            at = span[1]
    return data


def _pack_id(stream: bytes) -> bytes:
    """What the records of a stream give, as the refusal of its wrong seal says; the seal itself if it is refused
    otherwise, or right."""
    try:
        pack_index.Index.load(stream)
    except ImgdistError as error:
        if seen := re.search("its records give ([0-9a-f]{64})", str(error)):
            return bytes.fromhex(seen[1])
    return stream[-records.DIGEST_BYTES :]


class _Dribble:
    """A pipe that gives some bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._pieces = _cut(data)
        self._left = b""

    def read(self, size: int) -> bytes:
        self._left = self._left or next(self._pieces, b"")
        piece, self._left = self._left[:size], self._left[size:]
        return piece


def _cut(data: bytes) -> Iterator[bytes]:
    """`data` in pieces that depend on it alone."""
    dice = random.Random(len(data))
    at = 0
    while at < len(data):
        size = dice.choice((1, 7, 100, 511, 512, 513, 3000))
        yield data[at : at + size]
        at += size


def _outcome(run: Callable[[], Any]) -> Any:
    """What `run` returns, or what kind of refusal it is."""
    try:
        return run()
    except (CorruptError, DeclinedError, ProtocolError) as error:
        return type(error).__name__


def _converted(tar_pieces: list[bytes]) -> tuple[bytes, bytes]:
    chunks: list[bytes] = []
    split: list[bytes] = []
    writer = LayerWriter(lambda raw, metadata: chunks.append(bytes(raw)), TAR_LIMITS, split.append)
    for piece in tar_pieces:
        writer.feed(piece)
    writer.finish(lambda: blake3(b"".join(chunks)).digest())
    return b"".join(chunks), b"".join(split)


def _followed(stream: list[bytes]) -> tuple[bytes | None, int, int]:
    follower = pack_index.IndexFollower()
    for piece in stream:
        follower.feed(piece)
    return follower.sealed.pack_id if follower.sealed else None, follower.record_count, follower.chunk_count


def _frames(data: bytes) -> None:
    whole = _outcome(lambda: mesh.FrameDecoder().feed(data))
    decoder = mesh.FrameDecoder()
    pieced = _outcome(lambda: [message for piece in _cut(data) for message in decoder.feed(piece)])
    assert whole == pieced, "the pieces made a difference"


def _asked(data: bytes) -> None:
    for request in requests.RequestDecoder().feed(data):
        if isinstance(request, requests.AnyRequest):
            assert request.lacks >= 0


_WIRE: tuple[Callable[[bytes], object], ...] = (
    _frames,
    mesh.decode_upgrade,
    tracker.decode_from_agent,
    tracker.decode_from_tracker,
    tracker.decode_offer,
    tracker.decode_hello,
    _asked,
    responses.decode_response_head,
    messages.decode_frame,
    numbers.parse_lacks,
    lambda data: numbers.parse_numbers(data.decode("latin-1")),
    lambda data: Address.parse(data.decode("latin-1")),
    lambda data: list(reassemble(io.BytesIO(data), lambda offset, count: _IMAGE[offset : offset + count])),
)

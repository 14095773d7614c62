"""Where mutation begins: small valid inputs of every kind that each decoder knows, made by the encoders' own code."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zlib

import zstandard
from blake3 import blake3
from raw_tar import END, directory, file, hard_link, header, long_name, padded, pax, symlink

from imgdist.erofs.tar.split import SplitWriter
from imgdist.pack import BLOCK, codec
from imgdist.pack.index import IndexBuilder, zero_digest
from imgdist.pack.records import Chunk, DiffId, Implied, Metadata, Seal, Superblock, TarSplit, encode
from imgdist.wire import mesh, tracker
from imgdist.wire.messages import Frame, Priority, encode_frame
from imgdist.wire.requests import AnyRequest, ChunkRequest
from imgdist.wire.requests import encode as encode_request
from imgdist.wire.responses import encode_head

_X = b"SCHILY.xattr."
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, 7, 0xFFFFFFFF if tag != 2 else 5) for tag in (1, 2, 4, 16, 32)
)
_SPARSE_10 = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9000"}
_DIGEST = "sha256:" + "1" * 64
_PACK, _NODE = "ab" * 32, "0123456789abcdef" * 2


def tars() -> list[bytes]:
    """A tar for each thing that a member can be."""
    bodies = [
        file(b"f", b"x" * 700) + file(b"f", b"again"),
        directory(b"d/", mode=0o1755) + file(b"d/a/b/../c", b"1", uid=70_000, mtime=-5),
        symlink(b"l", b"../d") + directory(b"d") + file(b"l/f", b"2") + hard_link(b"h", b"l/f", mode=0o4755),
        file(b"d/.wh.x") + file(b"d/.wh..wh..opq") + file(b".wh.d2") + directory(b"d2"),
        header(b"c", b"3", major=5000, minor=300) + header(b"b", b"4", major=8) + header(b"p", b"6"),
        pax({b"path": b"long" * 30, b"mtime": b"1600000000.5", b"uid": b"4000000000"}) + file(b"x", b"3"),
        pax({b"mtime": b"1600000000.123", b"atime": b"1700000000.5"}) + file(b"t"),
        pax({_X + b"user.a": b"v", _X + b"security.capability": struct.pack("<5I", 0x02000001, 8192, 0, 0, 0)})
        + file(b"cap", b"4"),
        pax({_X + b"system.posix_acl_access": _ACL, _X + b"system.posix_acl_default": _ACL})
        + directory(b"acl") + file(b"acl/f", b"5") + directory(b"acl/d"),
        pax({b"comment": b"c"}, b"g", b"pax_global_header") + long_name(b"n" * 120) + long_name(b"t" * 110, b"K")
        + symlink(b"x", b"y"),
        pax([(b"GNU.sparse.size", b"9000"), (b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.offset", b"5"),
             (b"GNU.sparse.numbytes", b"3")]) + file(b"s0", b"abc"),
        pax({b"GNU.sparse.map": b"0,5,7000,3", b"GNU.sparse.numblocks": b"2", b"GNU.sparse.size": b"9000"})
        + file(b"s1", b"helloabc"),
        pax(_SPARSE_10) + file(b"s2", padded(b"2\n0\n5\n8000\n3\n") + b"helloabc"),
        file(b"name", b"1", prefix=b"some/where") + file(b"gnu", b"2", magic=b"ustar  \0")
        + header(b"dir/", b"\0", 0, magic=bytes(8)),
        directory(b"r") + directory(b"r/s") + symlink(b"r", b"t") + directory(b"t") + file(b"t", b"6"),
    ]  # fmt: skip
    return [body + END for body in bodies] + [b"".join(bodies[:8]), END + b"behind the end"]


def layers() -> list[bytes]:
    """Compressed layers: members and frames of every header that the formats have."""
    text = b"all work and no play " * 60
    stream = zstandard.ZstdCompressor().compressobj()
    with io.BytesIO() as named:
        with gzip.GzipFile("name", "wb", fileobj=named, mtime=5) as out:
            out.write(text)
        with_name = named.getvalue()
    raw = zlib.compressobj(wbits=-15)
    deflated = raw.compress(text) + raw.flush()
    every_field = b"\x1f\x8b\x08\x1e\0\0\0\0\0\xff\x04\0ab\1\0name\0comment\0"
    every_field += (zlib.crc32(every_field) & 0xFFFF).to_bytes(2, "little")
    trailer = struct.pack("<II", zlib.crc32(text), len(text))
    skippable = b"\x51\x2a\x4d\x18\x05\0\0\0hello"
    return [
        gzip.compress(text),
        gzip.compress(text, 0) + gzip.compress(b"") + bytes(20),
        with_name + with_name,
        every_field + deflated + trailer,
        zstandard.ZstdCompressor(write_checksum=True).compress(text),
        stream.compress(text) + stream.flush(),
        skippable + zstandard.ZstdCompressor(level=19).compress(text + random.Random(1).randbytes(300)) + skippable,
        zstandard.ZstdCompressor().compress(bytes(300_000)),
        b"\x28\xb5\x2f\xfd\x00\x58\x02\x08\0\0x\x23\0\0y" + b"\x03\0\0",
        text,
    ]


def indexes() -> list[bytes]:
    """Sealed and growing index streams."""
    records = [
        Chunk(2, blake3(b"a").digest()),
        Chunk(64, zero_digest(64 * BLOCK), zero=True),
        Chunk(1, blake3(b"m").digest(), metadata=True),
        Metadata(67, 1),
        Superblock(b"superblock"),
        Implied(b"etc"),
        Implied(b"usr/share"),
        DiffId(blake3(b"d").digest()),
        TarSplit(blake3(b"t").digest(), 1000),
    ]
    builder = IndexBuilder(_DIGEST)
    stream = builder.header + b"".join(map(builder.add, records))
    return [stream + encode(Seal(builder.pack_id())), stream, builder.header]


def chunks() -> list[bytes]:
    """(encoding, blocks - 1, body) of chunks of each encoding."""
    raws = [b"text " * 1638 + b"..", random.Random(2).randbytes(BLOCK), bytes(BLOCK), bytes(BLOCK - 1) + b"x"]
    encoded = [(raw, codec.encode(raw)) for raw in raws]
    return [bytes((kind, len(raw) // BLOCK - 1)) + bytes(body) for raw, (kind, body) in encoded]


def messages(decoders: int) -> list[bytes]:
    """Every message of the wire, behind the byte that chooses each of `decoders`."""
    peer = tracker.Peer(_NODE, "10.0.0.1:7651", "rack")
    split: list[bytes] = []
    writer = SplitWriter(split.append)
    writer.literal(b"header")
    writer.image(4096, 5000)
    writer.finish()
    said = [
        mesh.encode(mesh.Hello(1, 1, _NODE, "10.0.0.1:7651", "rack-1", "node-1")),
        mesh.encode(mesh.Open(7, f"sha256-{'a' * 64}-v0", _PACK, 9, b"\x03\x01"))
        + mesh.encode(mesh.have(7, [0, 8]))
        + mesh.encode(mesh.Peers((peer,))),
        tracker.encode(tracker.Join(1, 1, _NODE, "node-1", "", 7651, "rack", (tracker.Share(_PACK, 3, 9),))),
        tracker.encode(tracker.Progress((tracker.Share(_PACK, 4, 9),))),
        tracker.encode(tracker.Seek((_PACK,))),
        tracker.encode(tracker.Dead((_NODE,))),
        tracker.encode(tracker.Welcome(1, "10.0.0.1", "10.0.0.1:7651", None)),
        tracker.encode(tracker.Hello(_NODE, 1, 1)),
        tracker.encode(tracker.Peers((peer,))),
        tracker.encode(tracker.Leave()),
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: imgdist-mesh\r\n\r\n",
        encode_request(ChunkRequest(_PACK, (3, 4, 9), Priority.FILL, node="10.0.0.1:7651")),
        encode_request(AnyRequest.among(_PACK, 0b1011, 2, Priority.TRACE)),
        encode_head(200, 20, queue_bytes=5, have=[1, 2], addresses=["10.0.0.1:7651"]),
        encode_frame(Frame(3, 1, 100, 4096)),
        b"8:AQ",
        b"3-7,9",
        b"http://[::1]:80",
        b"unix:///run/x.sock",
        b"".join(split),
    ]
    return [bytes((number,)) + message for message in said for number in range(decoders)]


def manifests() -> list[bytes]:
    """Manifests, an index and a configuration; the first byte says as what they are served."""
    descriptor = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": _DIGEST, "size": 7}
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": _DIGEST, "size": 3}
    platform = {"os": "linux", "architecture": "arm64", "variant": "v8"}
    documents: list[dict[str, object]] = [
        {"schemaVersion": 2, "config": config, "layers": [descriptor], "rootfs": {"diff_ids": [_DIGEST]}},
        {"schemaVersion": 2, "manifests": [{**config, "platform": platform, "annotations": {"a": "b"}}]},
        {"schemaVersion": 1, "fsLayers": []},
        {"errors": [{"code": "DENIED", "message": "no"}]},
    ]
    return [bytes((number,)) + json.dumps(document).encode() for document in documents for number in range(3)] + [
        f"docker.io/library/busybox:1@{_DIGEST}".encode()
    ]


TOKENS: dict[str, tuple[bytes, ...]] = {
    "tar": (
        b"ustar\x0000", b"ustar  \0", b"tar\0", b".wh.", b".wh..wh..opq", b"/../", b"././@LongLink", b"SCHILY.xattr.",
        b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default", b"trusted.", b"user.",
        b"GNU.sparse.map=", b"GNU.sparse.major=", b"GNU.sparse.minor=", b"GNU.sparse.size=", b"GNU.sparse.realsize=",
        b"GNU.sparse.numblocks=", b"GNU.sparse.offset=", b"GNU.sparse.numbytes=", b"GNU.sparse.name=", b"20 mtime=",
        b" path=", b" linkpath=", b" size=", b" uid=", b" gid=", b"-", b"9223372036854775807", b"18446744073709551616",
    ),
    "layer": (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"),
    "index": (b"IDX", b"\x02\x22", b"\x08\x20"),
    "chunk": (b"\x28\xb5\x2f\xfd",),
    "wire": (
        b"GET /v1/chunks/", b"/any?p=trace&n=8", b"?p=demand&w=1000", b" HTTP/1.1\r\n", b"\r\n\r\n",
        b"Imgdist-Lacks: ", b"Imgdist-Have: ", b"Imgdist-Peers: ", b"Imgdist-Wire: 1", b"Content-Length: ",
        b"Retry-After-Ms: ", b"IMGDSPLT", b"progress", b"join", b"seek", b"peers", b"welcome", b"[::1]:", b"unix://", b"http://",
    ),
    "manifest": (
        b'"mediaType":"', b'"schemaVersion":2', b'"config":{', b'"layers":[', b'"manifests":[', b'"digest":"sha256:',
        b'"size":', b'"platform":{', b'"os":"linux"', b'"architecture":"arm"', b'"variant":"v', b'"annotations":{',
        b'"rootfs":{"diff_ids":[', b'"errors":[', b'"code":', b"application/vnd.oci.image.index.v1+json",
        b"application/vnd.oci.image.manifest.v1+json", b"\\u00b2", b"1e999", b"null",
    ),
}  # fmt: skip
"""Words that mutation would hardly come upon, by target."""

"""Proving packs: a right one passes; damage, lies in data or metadata, and unfit tar-splits are told apart."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from io import BytesIO

import pytest
from blake3 import blake3
from raw_tar import END, directory, file, pax, symlink

from imgdist.erofs import LayerSummary, LayerWriter, Limits
from imgdist.errors import DeclinedError
from imgdist.pack import BLOCK, CHUNK_MAX, codec, records
from imgdist.pack.index import Index, IndexBuilder
from imgdist.pack.kinds import Kind
from imgdist.proving.proof import FalsePackError, RottenError, VerifiedImage, prove, prove_blob

_BIG = random.Random(1).randbytes(600_000)
TAR = (
    directory(b"etc/")
    + file(b"etc/passwd", b"root:x:0:0" * 100)
    + pax({b"mtime": b"1600000000.5"})
    + file(b"big", _BIG)
    + file(b"zeros", bytes(300_000))
    + symlink(b"l", b"big")
    + END
    + b"what follows"
)


@dataclass
class MadePack:
    """A pack in memory: `alter` it, then `sealed` makes it consistent again."""

    chunks: list[tuple[bytes, bool]]
    split: bytes
    summary: LayerSummary
    diff_id: bytes
    index: Index = field(init=False)

    def __post_init__(self) -> None:
        builder = IndexBuilder()
        body: list[records.Record] = [
            records.Chunk(len(raw) // BLOCK, blake3(raw).digest(), zero=codec.is_zero(raw), metadata=metadata)
            for raw, metadata in self.chunks
        ]
        body += self.summary.records(self.diff_id, records.TarSplit(blake3(self.split).digest(), len(self.split)))
        stream = builder.header + b"".join(builder.add(record) for record in body)
        self.index = Index.load(stream + records.encode(records.Seal(builder.pack_id())))

    def image(self) -> VerifiedImage:
        return VerifiedImage(self.index, lambda number: self.chunks[number][0])

    def prove(self) -> None:
        prove(self.image(), BytesIO(self.split))

    def with_chunk(self, number: int, raw: bytes) -> MadePack:
        """A consistent lie: another chunk, and an index over it."""
        chunks = list(self.chunks)
        chunks[number] = (raw, chunks[number][1])
        return replace(self, chunks=chunks)


def made(tar: bytes = TAR) -> MadePack:
    chunks: list[tuple[bytes, bool]] = []
    split: list[bytes] = []
    writer = LayerWriter(lambda raw, metadata: chunks.append((bytes(raw), metadata)), split=split.append)
    writer.feed(tar)
    summary = writer.finish(lambda: blake3(b"".join(blake3(raw).digest() for raw, _ in chunks)).digest())
    return MadePack(chunks, b"".join(split), summary, hashlib.sha256(tar).digest())


def flipped(raw: bytes, at: int = 0) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def test_a_pack_that_is_its_layer_passes() -> None:
    looked: list[int] = []
    pack = made()
    pack.image().check(looked.append)
    assert sum(looked) == pack.index.image_size - BLOCK
    looked.clear()
    prove(pack.image(), BytesIO(pack.split), looked.append)
    assert sum(looked) == len(TAR)


def test_other_data_under_right_digests_is_false() -> None:
    pack = made()
    lie = pack.with_chunk(0, flipped(pack.chunks[0][0]))
    lie.image().check()
    with pytest.raises(FalsePackError, match="expected the layer of diff ID"):
        lie.prove()


def test_other_metadata_under_right_digests_is_false() -> None:
    """The tar comes back as it was: what the kernel would mount is another tree."""
    pack = made()
    (number,) = [n for n in range(pack.index.chunk_count) if pack.index.is_metadata(n)]
    mode = pack.chunks[number][0].index(b"passwd") if b"passwd" in pack.chunks[number][0] else 64
    lie = pack.with_chunk(number, flipped(pack.chunks[number][0], mode))
    with pytest.raises(FalsePackError, match="it was altered"):
        lie.prove()


def test_another_superblock_is_false() -> None:
    pack = made()
    with pytest.raises(FalsePackError, match="it was altered"):
        replace(pack, summary=replace(pack.summary, superblock=flipped(pack.summary.superblock, 50))).prove()


def test_damage_is_told_from_a_lie() -> None:
    pack = made()
    pack.chunks[0] = (flipped(pack.chunks[0][0]), False)
    with pytest.raises(RottenError, match=r"1 of \d+ chunks are damaged; chunk 0"):
        pack.image().check()
    with pytest.raises(RottenError, match="chunk 0"):
        pack.prove()


@pytest.mark.parametrize("split", [b"", b"no split", made().split[:-1], made().split + b"\1\0\0\0\0"])
def test_a_wrong_split_proves_nothing(split: bytes) -> None:
    with pytest.raises(RottenError, match="proves nothing"):
        prove(made().image(), BytesIO(split))


@pytest.mark.parametrize(
    "split",
    [b"no split", made().split[:-1], made().split + b"\3", made().split + b"\2" + (1 << 40).to_bytes(8, "little") * 2],
)
def test_an_index_that_names_an_unusable_split_is_false(split: bytes) -> None:
    with pytest.raises(FalsePackError, match="no tar can be made of it"):
        replace(made(), split=split).prove()


def test_a_tar_larger_than_what_it_is_made_of_is_not_made() -> None:
    bomb = made().split + (b"\2" + (4096).to_bytes(8, "little") + (1 << 16).to_bytes(8, "little")) * 100
    pack = replace(made(), split=bomb)
    with pytest.raises(FalsePackError, match="larger than the"):
        pack.prove()


@pytest.mark.parametrize("limits", [Limits(members=2), Limits(tar_bytes=100_000), Limits(image_bytes=100_000)])
def test_a_layer_that_this_release_declines_is_not_called_a_lie(limits: Limits) -> None:
    """A supernode with wider limits may have converted it: revoked, it would be gone for good."""
    pack = made()
    with pytest.raises(DeclinedError, match="would not convert it"):
        prove(pack.image(), BytesIO(pack.split), limits=limits)


def test_a_proof_ends_when_it_takes_too_much_time() -> None:
    """A tar-split stream may be made of more records than anybody can read."""
    spin = "from imgdist.proving import worker as w; w.CPU_S = 1; w.report('soon', lambda progress: any(iter(int, 1)))"
    done = subprocess.run([sys.executable, "-c", spin], check=False, capture_output=True)
    assert (done.returncode, done.stdout) in ((-signal.SIGXCPU, b""), (-signal.SIGKILL, b""))


@pytest.mark.parametrize("size", [1, BLOCK, CHUNK_MAX, 600_001])
def test_a_raw_pack_is_held_against_its_blob(size: int) -> None:
    blob = random.Random(2).randbytes(size)
    prove_blob(raw_image(blob, hashlib.sha256(blob).digest()))
    with pytest.raises(FalsePackError, match="expected blob"):
        prove_blob(raw_image(flipped(blob), hashlib.sha256(blob).digest()))


def raw_image(content: bytes, digest: bytes) -> VerifiedImage:
    padded = content + bytes(-len(content) % BLOCK)
    chunks = [padded[at : at + CHUNK_MAX] for at in range(0, len(padded), CHUNK_MAX)]
    builder = IndexBuilder(f"sha256:{digest.hex()}", Kind.RAW, len(content))
    stream = b"".join(builder.add(records.Chunk(len(raw) // BLOCK, blake3(raw).digest())) for raw in chunks)
    stream += builder.add(records.Blob(digest, len(content)))
    index = Index.load(builder.header + stream + records.encode(records.Seal(builder.pack_id())))
    return VerifiedImage(index, lambda number: chunks[number])

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from imgdist.errors import CorruptError, DeclinedError, NotFoundError, UsageError
from imgdist.pack import BLOCK, codec
from imgdist.pack.index import Index
from imgdist.pack.kinds import early_name
from imgdist.pack.records import Chunk, DiffId, Metadata, Superblock, TarSplit
from supernode.metadata import metadata_bodies
from supernode.store import LocalStore
from supernode.store.scrub import open_tar_split
from supernode.store.writer import PackWriter

A, B = "sha256:" + "aa" * 32, "sha256:" + "bb" * 32
SPLIT = b"split stream " * 1000
RAWS = [random.Random(1).randbytes(2 * BLOCK), b"text" * BLOCK, bytes(3 * BLOCK), b"inodes" * BLOCK]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(tmp_path)
    made.recover()
    return made


def write_part(store: LocalStore, layer: str, raws: list[bytes] = RAWS, level: int = 1) -> bytes:
    """What a conversion worker leaves. Returns the pack id."""
    writer = PackWriter(store.begin(layer), layer)
    blocks = 1
    for raw in raws:
        encoding, body = codec.encode(raw, level)
        last = raw is raws[-1]
        chunk = Chunk(len(raw) // BLOCK, blake3(raw).digest(), zero=encoding == codec.ZERO, metadata=last)
        writer.add_chunk(chunk, encoding, body)
        blocks += chunk.blocks
    writer.add_split(SPLIT)
    writer.add_record(Metadata(blocks - chunk.blocks, chunk.blocks))
    writer.add_record(Superblock(b"super"))
    writer.add_record(DiffId(b"\xdd" * 32))
    writer.add_record(TarSplit(blake3(SPLIT).digest(), len(SPLIT)))
    return writer.finish()


def sealed(store: LocalStore, layer: str = A) -> Index:
    return store.seal(layer, write_part(store, layer))


def test_a_sealed_pack_is_found_by_layer_and_by_pack_id(store: LocalStore, tmp_path: Path) -> None:
    index = sealed(store)
    pack_id = index.pack_id.hex()
    assert store.find(A) == pack_id
    assert store.find(B) is None
    assert store.index(pack_id).layer_digest == A
    assert (tmp_path / "layers" / ("aa" * 32 + "-v0") / "chunks").exists()
    for name in (pack_id, early_name(A)):
        reader = store.open(name)
        assert reader is not None
        for number, raw in enumerate(RAWS):
            out = bytearray(len(raw))
            codec.decode_into(*reader.body(number), memoryview(out))
            assert out == raw
        with pytest.raises(NotFoundError):
            reader.row(len(RAWS))
    assert store.verify(pack_id) == []
    with open_tar_split(tmp_path / "packs" / pack_id) as split:
        assert split.read() == SPLIT


def test_a_pack_gets_its_name_only_when_all_of_it_is_on_disk(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[str, int] = {}
    at_rename: list[tuple[dict[str, int], dict[str, int]]] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(fd: int) -> None:
        synced[os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))] = os.fstat(fd).st_size
        fsync(fd)

    def note_rename(path: Path, target: Path) -> Path:
        if path.name.startswith(".part-"):
            at_rename.append((dict(synced), {entry.name: entry.stat().st_size for entry in path.iterdir()}))
            assert path.name in synced
            synced.clear()
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    sealed(store)
    [(durable, there)] = at_rename
    assert set(there) == {"index", "chunks", "table", "tar-split"}
    assert {name: durable.get(name) for name in there} == there
    assert {"packs", "layers"} <= set(synced)


def test_names_that_are_none_open_nothing(store: LocalStore) -> None:
    for name in ("", "..", "../packs", "sha256-", early_name(B), "ab" * 32, f"sha256-{'aa' * 32}-v1", "AA" * 32):
        assert store.open(name) is None
    with pytest.raises(UsageError, match="layer digest"):
        store.find("sha256:../../etc")
    with pytest.raises(UsageError, match="pack id"):
        store.index("../../etc")
    with pytest.raises(NotFoundError):
        store.index_bytes("ab" * 32)


def test_all_metadata_of_a_pack_or_none_beyond_what_is_allowed(store: LocalStore) -> None:
    pack_id = sealed(store).pack_id.hex()
    reader, stream = store.open(pack_id), store.index_bytes(pack_id)
    assert reader is not None
    (found,) = metadata_bodies(reader, stream, len(reader.body(3)[1]))
    assert (found.number, found.encoding, found.body) == (3, *reader.body(3))
    assert metadata_bodies(reader, stream, len(found.body) - 1) == ()


def test_the_index_stream_from_a_record_on(store: LocalStore) -> None:
    pack_id = sealed(store).pack_id.hex()
    whole = store.index_bytes(pack_id)
    assert store.index_bytes(pack_id, 1) == whole[38:]
    assert store.index_bytes(pack_id, 100) == b""


def test_a_part_is_served_while_it_grows_and_after_its_seal(store: LocalStore) -> None:
    assert store.open(early_name(A)) is None
    pack_id = write_part(store, A)
    reader = store.open(early_name(A))
    assert reader is not None
    assert reader.body(0) == (codec.RAW, RAWS[0])
    store.seal(A, pack_id)
    assert not reader.gone
    assert reader.body(0) == (codec.RAW, RAWS[0])
    assert store.open(early_name(A)) is reader


def test_a_reader_of_an_abandoned_part_is_replaced(store: LocalStore) -> None:
    write_part(store, A)
    first = store.open(early_name(A))
    assert first is not None
    store.abandon(A)
    assert first.gone
    assert store.open(early_name(A)) is None
    sealed(store)
    second = store.open(early_name(A))
    assert second is not None
    assert second is not first
    assert not second.gone


def test_a_twin_just_gets_a_link(store: LocalStore) -> None:
    index = sealed(store, A)
    part_reader = None
    pack_id = write_part(store, B, level=9)
    part_reader = store.open(early_name(B))
    assert store.seal(B, pack_id).pack_id == index.pack_id
    assert store.find(B) == store.find(A)
    assert part_reader is not None
    assert part_reader.body(0) == (codec.RAW, RAWS[0]), "who reads the twin's part goes on"
    assert store.pack_ids() == [index.pack_id.hex()]
    assert dict(store.layers()) == dict.fromkeys((A, B), index.pack_id.hex())
    assert (index.chunk_count, index.image_size) == (4, (1 + sum(map(len, RAWS)) // BLOCK) * BLOCK)
    assert store.pack_bytes(index.pack_id.hex()) >= len(RAWS[0])


def test_a_part_that_is_not_the_pack_is_not_sealed(store: LocalStore, tmp_path: Path) -> None:
    write_part(store, A)
    with pytest.raises(CorruptError, match="sealed as pack"):
        store.seal(A, bytes(32))
    assert store.find(A) is None
    assert list((tmp_path / "packs").iterdir()) == []


def test_recovery_keeps_what_is_whole_and_removes_the_rest(store: LocalStore, tmp_path: Path) -> None:
    pack_id = sealed(store).pack_id.hex()
    write_part(store, B)
    (tmp_path / "packs" / f".removed-{'cc' * 32}").mkdir()
    (tmp_path / "layers" / ("cc" * 32 + "-v0")).symlink_to("../packs/nowhere")
    again = LocalStore(tmp_path)
    again.recover()
    assert again.pack_ids() == [pack_id]
    assert sorted(entry.name for entry in (tmp_path / "packs").iterdir()) == [pack_id]
    assert list(again.layers()) == [(A, pack_id)]


def test_recovery_links_a_pack_whose_link_was_lost(store: LocalStore, tmp_path: Path) -> None:
    pack_id = sealed(store).pack_id.hex()
    (tmp_path / "layers" / ("aa" * 32 + "-v0")).unlink()
    again = LocalStore(tmp_path)
    again.recover()
    assert again.find(A) == pack_id


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("index", cut),
        ("index", grow),
        ("index", flip),
        ("index", Path.unlink),
        ("chunks", cut),
        ("chunks", grow),
        ("chunks", Path.unlink),
        ("table", cut),
        ("table", grow),
        ("table", Path.unlink),
        ("tar-split", Path.unlink),
    ],
)
def test_recovery_removes_a_broken_pack_and_its_links(
    store: LocalStore,
    tmp_path: Path,
    file: str,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pack_id = sealed(store).pack_id.hex()
    damage(tmp_path / "packs" / pack_id / file)
    again = LocalStore(tmp_path)
    with caplog.at_level(logging.WARNING, "imgdist.store"):
        again.recover()
    assert pack_id in caplog.text
    assert again.pack_ids() == []
    assert again.find(A) is None
    assert again.open(early_name(A)) is None
    assert again.seal(A, write_part(again, A)).pack_id.hex() == pack_id


@pytest.mark.parametrize(("file", "said"), [("chunks", "chunk 0"), ("tar-split", "tar-split")])
def test_verify_finds_a_flipped_bit(store: LocalStore, tmp_path: Path, file: str, said: str) -> None:
    pack_id = sealed(store).pack_id.hex()
    path = tmp_path / "packs" / pack_id / file
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    (wrong,) = store.verify(pack_id)
    assert said in wrong


def test_verify_survives_a_wild_table(store: LocalStore, tmp_path: Path) -> None:
    pack_id = sealed(store).pack_id.hex()
    table = tmp_path / "packs" / pack_id / "table"
    table.write_bytes(b"\xff" * 8 + b"\x01\0\0\0" + b"\x09\0\0\0" + b"\xff" * 16 + table.read_bytes()[32:])
    assert [line.split(":")[0] for line in store.verify(pack_id)] == ["chunk 0", "chunk 1"]


def test_removing_a_pack_leaves_its_readers_alone(store: LocalStore) -> None:
    pack_id = sealed(store).pack_id.hex()
    reader = store.open(pack_id)
    assert reader is not None
    store.remove(pack_id)
    store.remove(pack_id)
    assert store.open(pack_id) is None
    assert store.find(A) is None
    assert reader.body(0) == (codec.RAW, RAWS[0])


def test_a_revoked_pack_is_no_layers_any_more(store: LocalStore, tmp_path: Path) -> None:
    """Its bytes can still be read; neither a restart nor the same conversion brings it back."""
    pack_id = sealed(store).pack_id.hex()
    store.seal(B, write_part(store, B))
    assert store.revoke(pack_id, "it lies") == [A, B]
    assert store.find(A) is store.find(B) is None
    again = LocalStore(tmp_path)
    again.recover()
    assert again.find(A) is None
    reader = again.open(pack_id)
    assert reader is not None and reader.count == len(RAWS)
    assert again.revoked.all() == {pack_id: "it lies"}
    with pytest.raises(DeclinedError, match="was revoked: it lies"):
        again.seal(A, write_part(again, A))
    assert not list((tmp_path / "packs").glob(".part-*"))
    assert again.revoke(pack_id, "another reason") == []
    assert again.revoked.reason(pack_id) == "it lies"

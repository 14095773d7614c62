"""Copies between packs that take no disk space, where the file system can do that: XFS, on a loop device."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_layers import FakeView, MadeLayer, MemorySource, make_index
from parts import require
from prometheus_client import CollectorRegistry

from agent.chunkstore import ChunkStore
from agent.database import Database
from agent.imagefile import ImageFile
from agent.layerstore import LayerStore
from agent.transfer.transfers import Transfers

_DISK_BYTES = 300 << 20  # the least that mkfs.xfs makes
LAYER = MadeLayer([4, 64, 64, 64, 64, 2])


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    require(os.geteuid() == 0 and Path("/dev/loop-control").exists(), "root and loop devices")
    require(shutil.which("mkfs.xfs"), "mkfs.xfs (Debian: xfsprogs)")
    require("\txfs" in Path("/proc/filesystems").read_text(), "XFS in the kernel")
    disk, place = tmp_path / "disk", tmp_path / "xfs"
    place.mkdir()
    with disk.open("wb") as file:
        file.truncate(_DISK_BYTES)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def _free_bytes(place: Path) -> int:
    os.sync()
    status = os.statvfs(place)
    return status.f_bfree * status.f_frsize


def _content(store: LayerStore, chunk: int) -> bytes:
    with (store.directory / "image").open("rb") as image:
        image.seek(store.index.start(chunk))
        return image.read(store.index.size(chunk))


def test_a_copy_on_xfs_gives_its_own_blocks_back(xfs: Path) -> None:
    registry, view = CollectorRegistry(), FakeView(4)
    database = Database(xfs / "agent.db")
    chunks = ChunkStore(xfs / "packs", database)
    transfers = Transfers(
        view, [MemorySource(LAYER)], twins=chunks.twins, on_layer_complete=lambda _: None, registry=registry
    )
    try:
        first = chunks.create(LAYER.index_data)
        transfers.add(first)
        transfers.fetch_now(first, range(6)).result(10)
        other = chunks.create(make_index([*LAYER.chunks[1:5], b"own " * 1024]))
        transfers.add(other)
        before = _free_bytes(xfs)
        transfers.fetch_now(other, range(4)).result(10)
        shared = sum(map(len, LAYER.chunks[1:5]))
        assert registry.get_sample_value("imgdist_chunk_bytes_total", {"source": "dedup"}) == shared
        assert registry.get_sample_value("imgdist_dedup_shared_bytes_total") == shared
        assert other.received == {"dedup": shared}
        assert _free_bytes(xfs) - before > shared * 0.9
        transfers.remove(first.node)
        chunks.remove(first)
        assert [_content(other, chunk) for chunk in range(4)] == LAYER.chunks[1:5], "it lives on without the other pack"
    finally:
        transfers.stop()
        chunks.close()
        database.close()


def test_where_blocks_cannot_be_shared_nothing_is_done(tmp_path: Path) -> None:
    one, two = ImageFile(tmp_path / "one", new=True), ImageFile(tmp_path / "two", new=True)
    try:
        one.write(memoryview(b"x" * 4096), 0)
        assert not two.share(one.fd, 1, 100, 0), "no whole blocks"
        assert not two.share(two.fd, 0, 4096, 0), "beyond the end"
        assert os.fstat(two.fd).st_size == 0
    finally:
        one.close()
        two.close()

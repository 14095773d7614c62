"""The snapshotter on a disk without a free block: what containerd asks is done, at the cost of what can go."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import require

from agent.layers import mount
from agent.snapshotter.core import Snapshotter
from agent.snapshotter.model import Kind
from agent.snapshotter.store import BALLAST_BYTES, BALLAST_PIECE_BYTES, Store

_SIZE = 2 * BALLAST_BYTES


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    require(os.geteuid() == 0, "root")
    path = tmp_path / "disk"
    path.mkdir()
    mount.mount("tmpfs", str(path), "tmpfs", data=f"size={_SIZE}")
    try:
        yield path
    finally:
        mount.umount(str(path))


def fill(disk: Path, name: str = "filler") -> None:
    with open(disk / name, "ab", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))


async def test_containers_start_and_are_removed_at_the_cost_of_the_ballast(small_disk: Path) -> None:
    snapshotter = Snapshotter(small_disk, None)
    await snapshotter.prepare("before", "", {})
    fill(small_disk)
    for number in range(20):
        await snapshotter.prepare(f"c{number}", "", {})
    left = (small_disk / "ballast").stat().st_size
    assert left < BALLAST_BYTES
    for number in range(20):
        await snapshotter.remove(f"c{number}")
    await snapshotter.cleanup()
    assert [info.name for info in await snapshotter.walk()] == ["before"]
    assert (small_disk / "ballast").stat().st_size == left, "there is no space for the rest"
    snapshotter.close()


def test_ballast_is_given_up_by_pieces_and_made_again(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(small_disk)
    pieces = 0
    while store.give_up_ballast():
        pieces += 1
    assert pieces == BALLAST_BYTES // BALLAST_PIECE_BYTES and not (small_disk / "ballast").exists()
    store.restore_ballast()
    assert not (small_disk / "ballast").exists(), "too little is available"
    monkeypatch.setattr("agent.snapshotter.store.BALLAST_AGAIN_BYTES", BALLAST_BYTES)
    store.restore_ballast()
    assert (small_disk / "ballast").stat().st_size == BALLAST_BYTES
    store.close()


async def test_space_that_can_be_freed_is_asked_for_first(small_disk: Path) -> None:
    asked: list[int] = []

    async def make_room(size_bytes: int) -> bool:
        asked.append(size_bytes)
        (small_disk / "cache").unlink()
        return True

    snapshotter = Snapshotter(small_disk, None, make_room=make_room)
    (small_disk / "cache").write_bytes(bytes(1 << 20))
    fill(small_disk)
    await snapshotter.prepare("c", "", {})
    assert asked == [0] and (small_disk / "ballast").exists()
    snapshotter.close()


async def test_a_disk_that_stays_full_is_an_error_and_the_next_call_works(small_disk: Path) -> None:
    snapshotter = Snapshotter(small_disk, None)
    (small_disk / "ballast").unlink()
    fill(small_disk)
    with pytest.raises((OSError, sqlite3.Error)):
        for number in range(2000):
            await snapshotter.prepare(f"c{number}", "", {"label": "x" * 4096})
    before = {info.name for info in await snapshotter.walk()}
    (small_disk / "filler").unlink()
    await snapshotter.prepare("after", "", {})
    snapshotter.close()
    again = Store(small_disk)
    assert {row.info.name for row in again.metadata.walk(())} == before | {"after"}, (
        "what was said to be there is there"
    )
    again.close()


def test_a_commit_that_fails_leaves_no_transaction_open(small_disk: Path) -> None:
    store = Store(small_disk)
    (small_disk / "ballast").unlink()
    fill(small_disk)
    with pytest.raises((OSError, sqlite3.Error)):
        for number in range(2000):
            store.metadata.create(Kind.ACTIVE, f"c{number}", "", {"label": "x" * 4096})
    assert not store.metadata._db.in_transaction
    (small_disk / "filler").unlink()
    store.metadata.create(Kind.ACTIVE, "after", "", {})
    store.close()

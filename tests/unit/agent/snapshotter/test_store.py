"""snapshots.db on a disk that is full, and lost."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import require

from agent.layers import mount
from agent.snapshotter.model import Kind
from agent.snapshotter.store import BALLAST_BYTES, Store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    require(os.geteuid() == 0, "root")
    path = tmp_path / "disk"
    path.mkdir()
    mount.mount("tmpfs", str(path), "tmpfs", data=f"size={2 * BALLAST_BYTES}")
    try:
        yield path
    finally:
        mount.umount(str(path))


def fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))


def test_a_stopped_snapshotter_starts_again_on_a_full_disk(small_disk: Path) -> None:
    first = Store(small_disk)
    first.create(Kind.ACTIVE, "one", "", {})
    first.close()
    fill(small_disk)
    (small_disk / "ballast").rename(small_disk / "kept")
    with pytest.raises(sqlite3.OperationalError):  # so it is without
        Store(small_disk)
    (small_disk / "kept").rename(small_disk / "ballast")
    second = Store(small_disk)
    second.metadata.remove("one")
    second.close()
    (small_disk / "filler").unlink()
    third = Store(small_disk)
    assert third.metadata.walk(()) == []
    assert (small_disk / "ballast").stat().st_size == BALLAST_BYTES
    third.close()


def test_no_room_for_the_ballast_is_no_reason_not_to_start(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    (small_disk / "other").write_bytes(bytes(BALLAST_BYTES + 4096))
    store = Store(small_disk)
    store.close()
    assert not (small_disk / "ballast").exists() and "no room" in caplog.text


def test_what_containers_wrote_outlives_the_database(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Store(tmp_path)
    upper = first.directories.place(first.create(Kind.ACTIVE, "one", "", {}).id).upper
    Path(upper, "written").write_text("by a container")
    first.close()
    for lost in tmp_path.glob("snapshots.db*"):
        lost.unlink()
    Store(tmp_path).close()
    kept = upper.replace("/snapshots/", "/snapshots.1.bad/")
    assert Path(kept, "written").read_text() == "by a container"
    assert f"kept in {tmp_path}/snapshots.1.bad" in caplog.text
    caplog.clear()
    Store(tmp_path).close()
    assert not caplog.text

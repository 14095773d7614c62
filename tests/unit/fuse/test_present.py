"""The present map: ranges against a plain model, layout on disk, damaged files."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parts import require

from fuse.present import HEADER_SIZE, PresentMap, current_boot_id
from imgdist.errors import CorruptError, NewerFormatError

BLOCKS = 50
RANGES = st.tuples(st.integers(0, BLOCKS), st.integers(0, BLOCKS)).map(lambda ends: (min(ends), max(ends)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.tuples(st.booleans(), RANGES), max_size=12), RANGES)
def test_agrees_with_a_set_of_blocks(
    tmp_path: Path, steps: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]
) -> None:
    path = tmp_path / "present"
    path.unlink(missing_ok=True)
    present = PresentMap.create(path, BLOCKS, current_boot_id())
    model: set[int] = set()
    for mark, (first, end) in steps:
        (present.mark if mark else present.clear)(first, end - first)
        (model.update if mark else model.difference_update)(range(first, end))
    assert present.missing(asked[0], asked[1] - asked[0]) == bool(set(range(*asked)) - model)
    assert present.count() == len(model)
    assert present.all_present() == (len(model) == BLOCKS)
    present.close()


def test_layout_and_shared_fields(tmp_path: Path) -> None:
    path = tmp_path / "present"
    present = PresentMap.create(path, 3, "b" * 36)
    other = PresentMap.open(path)
    present.mark(1, 1)
    present.clean, present.last_read_ns, present.parked = True, 1 << 60, 7
    raw = path.read_bytes()
    assert raw[:8] == b"IMGDPRES" and len(raw) == HEADER_SIZE + 3
    assert struct.unpack_from("<II36s", raw, 8) == (1, 1, b"b" * 36)
    assert struct.unpack_from("<QQ", raw, 64) == (1 << 60, 7)
    assert raw[HEADER_SIZE:] == b"\0\1\0"
    assert (other.blocks, other.clean, other.last_read_ns, other.parked) == (3, True, 1 << 60, 7)
    assert other.boot_id == "b" * 36
    other.boot_id = current_boot_id()
    assert present.boot_id == current_boot_id() and len(current_boot_id()) == 36
    for each in (present, other):
        each.close()


def test_refuses_what_is_no_map(tmp_path: Path) -> None:
    path = tmp_path / "present"
    for content, error in (
        (b"", CorruptError),
        (bytes(HEADER_SIZE), CorruptError),
        (b"IMGDPRES" + struct.pack("<I", 2) + bytes(HEADER_SIZE), NewerFormatError),
    ):
        path.write_bytes(content)
        with pytest.raises(error):
            PresentMap.open(path)
    with pytest.raises(FileExistsError):
        PresentMap.create(path, 1, current_boot_id())


def test_marking_beyond_the_end_is_a_mistake(tmp_path: Path) -> None:
    present = PresentMap.create(tmp_path / "present", 4, current_boot_id())
    for first, count in ((4, 1), (-1, 1), (0, 5)):
        with pytest.raises(ValueError):
            present.mark(first, count)
    assert os.stat(tmp_path / "present").st_size == HEADER_SIZE + 4
    present.close()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a few pages."""
    require(os.geteuid() == 0, "root, to mount a small file system")
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


def test_full_disk_is_an_error_and_not_a_signal(full_disk: Path) -> None:
    """A store into a hole of a mapped file ends the process (SIGBUS) if the disk has no room for its page."""
    path = full_disk / "present"
    with pytest.raises(OSError, match="free some space") as caught:
        PresentMap.create(path, 1 << 20, current_boot_id())
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert not path.exists()
    small = PresentMap.create(path, 4096, current_boot_id())
    small.mark(0, 4096)
    small.close()
    os.truncate(path, 1 << 20)
    with pytest.raises(OSError) as caught:
        PresentMap.open(path)
    assert caught.value.errno == errno.ENOSPC


def test_sparse_map_gets_its_place_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "present"
    present = PresentMap.create(path, 1 << 20, current_boot_id())
    present.mark(0, 3)
    present.close()
    assert os.stat(path).st_blocks * 512 >= os.stat(path).st_size
    subprocess.run(["cp", "--sparse=always", path, tmp_path / "copy"], check=True)
    assert os.stat(tmp_path / "copy").st_blocks * 512 < os.stat(path).st_size
    opened = PresentMap.open(tmp_path / "copy")
    assert os.stat(tmp_path / "copy").st_blocks * 512 >= os.stat(path).st_size
    assert (opened.count(), opened.blocks) == (3, 1 << 20)
    opened.close()

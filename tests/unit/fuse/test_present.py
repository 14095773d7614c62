"""The present map: ranges against a plain model, layout on disk, damaged files."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse.present import HEADER_SIZE, PresentMap, current_boot_id
from imgdist.errors import CorruptError

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
    for content in (b"", bytes(HEADER_SIZE), b"IMGDPRES" + struct.pack("<I", 2) + bytes(HEADER_SIZE)):
        path.write_bytes(content)
        with pytest.raises(CorruptError):
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

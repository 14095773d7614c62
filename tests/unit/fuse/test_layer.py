"""A layer's image as the view reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuse.layer import AHEAD, Layer
from fuse.present import PresentMap
from imgdist.pack import BLOCK

BLOCKS = 4 * AHEAD // BLOCK


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(offset, bytes, advice) of each posix_fadvise."""
    seen: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *told: seen.append(told))
    return seen


def made(directory: Path, present_blocks: int) -> Layer:
    """A layer whose first blocks are present."""
    (directory / "image").write_bytes(bytes(range(256)) * (BLOCKS * BLOCK // 256))
    present = PresentMap.create(directory / "present", BLOCKS, "0" * 36)
    present.mark(0, present_blocks)
    present.close()
    descriptors = [os.open(directory / name, os.O_RDWR) for name in ("image", "present")]
    return Layer(2, BLOCKS * BLOCK, b"2", *descriptors)


def test_what_follows_a_read_is_read_ahead_as_far_as_it_is_present(
    tmp_path: Path, advised: list[tuple[int, int, int]]
) -> None:
    layer = made(tmp_path, 2 * AHEAD // BLOCK)
    assert advised == [(0, 0, os.POSIX_FADV_RANDOM)], "the disk's read-ahead is off"
    buffer = memoryview(bytearray(BLOCK))
    layer.read_into(buffer, 0)
    layer.read_into(buffer, AHEAD - BLOCK)
    layer.read_into(buffer, AHEAD)  # a block of what follows is absent
    assert advised[1:] == [(at, AHEAD, os.POSIX_FADV_WILLNEED) for at in (BLOCK, AHEAD)]


def test_nothing_is_read_ahead_beyond_the_end(tmp_path: Path, advised: list[tuple[int, int, int]]) -> None:
    layer = made(tmp_path, BLOCKS)
    buffer = memoryview(bytearray(BLOCK))
    layer.read_into(buffer, (BLOCKS - 3) * BLOCK)
    layer.read_into(buffer, (BLOCKS - 1) * BLOCK)
    assert bytes(buffer) == bytes(range(256)) * (BLOCK // 256)
    assert advised[1:] == [((BLOCKS - 2) * BLOCK, 2 * BLOCK, os.POSIX_FADV_WILLNEED)]


def test_what_is_advised_is_no_advice_to_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent sends peers the same image by the description that its descriptor shares with the one given here."""
    (tmp_path / "image").write_bytes(bytes(BLOCK))
    PresentMap.create(tmp_path / "present", 1, "0" * 36).close()
    image_fd = os.open(tmp_path / "image", os.O_RDWR)
    os.lseek(image_fd, 7, os.SEEK_SET)
    places: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *told: places.append(os.lseek(fd, 0, os.SEEK_CUR)))
    Layer(2, BLOCK, b"2", image_fd, os.open(tmp_path / "present", os.O_RDWR))
    assert places == [0], "another description"

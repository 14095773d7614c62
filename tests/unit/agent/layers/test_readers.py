"""Which loop devices show files of a view; a directory stands for the view, as only names matter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from parts import require

from agent.layers import loop
from agent.layers import readers as readers_module
from agent.layers.readers import ViewReaders


@pytest.fixture
def view(tmp_path: Path) -> Path:
    require(os.getuid() == 0, "root")
    require(os.path.exists("/dev/loop-control"), "loop devices")
    directory = tmp_path / "view"
    directory.mkdir()
    for name in "abc":
        (directory / name).write_bytes(bytes(8192))
    return directory


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_devices_of_earlier_agents_are_found_and_later_ones_are_told(view: Path, undo: ExitStack) -> None:
    first = undo.enter_context(loop.attached(str(view / "a")))
    readers = ViewReaders(view)
    assert readers.of("a") == [first] and readers.of("b") == []
    second = undo.enter_context(loop.attached(str(view / "b")))
    third = undo.enter_context(loop.attached(str(view / "b")))
    readers.add("b", second)
    readers.add("b", third)
    assert readers.of("b") == sorted([second, third])
    (view / "b").unlink()
    assert readers.of("b") == sorted([second, third])


def test_a_device_that_shows_something_else_or_is_free_is_no_reader(view: Path, undo: ExitStack) -> None:
    readers = ViewReaders(view)
    with loop.attached(str(view / "a")) as freed:
        readers.add("a", freed)
        assert readers.of("a") == [freed]
    other = undo.enter_context(loop.attached(str(view / "c")))
    readers.add("a", other)
    assert readers.of("a") == []
    image = os.open(view / "a", os.O_RDONLY)
    undo.callback(os.close, image)
    loop.change_file(other, image)  # as a rescue does: the device was of a dead view's file
    assert readers.of("a") == [other]
    readers.forget("a")
    assert readers.of("a") == []


def test_sysfs_is_searched_once(view: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[None] = []
    monkeypatch.setattr(readers_module, "devices", lambda: searches.append(None) or iter(()))
    readers = ViewReaders(view)
    assert [readers.of(name) for name in "abc"] == [[], [], []]
    assert len(searches) == 1

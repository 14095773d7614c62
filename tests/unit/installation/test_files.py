"""Files of ours: replaced in one step, known again, left alone once somebody else has a hand in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgdist.errors import ImgdistError
from imgdist.installation import files
from imgdist.installation.files import Standing


def test_ours_edited_and_foreign_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "etc/unit"
    assert files.standing(path) is Standing.NOTHING
    assert files.replace(path, files.marked("[Unit]\n")) and not files.replace(path, files.marked("[Unit]\n"))
    assert files.standing(path) is Standing.OURS
    path.write_text(path.read_text() + "Nice=1\n")
    assert files.standing(path) is Standing.EDITED
    assert files.set_aside(path) == tmp_path / "etc/unit.edited"
    path.write_text("[Unit]\n")
    assert files.standing(path) is Standing.FOREIGN


def test_owner_and_mode_of_what_is_replaced_stay_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("x")
    path.chmod(0o640)
    files.replace(path, "y")
    assert (path.stat().st_mode & 0o7777, path.read_text(), os.listdir(tmp_path)) == (0o640, "y", ["c.toml"])


def test_line_ends_stay_and_symlinks_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "managed").write_bytes(b"a\r\nb\n")
    link = tmp_path / "c.toml"
    link.symlink_to("managed")
    text = files.read(link)
    assert text is not None and files.replace(link, text + "c\n")
    assert link.is_symlink() and (tmp_path / "managed").read_bytes() == b"a\r\nb\nc\n"


def test_what_is_set_aside_twice_is_kept_twice(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    for text in ("one", "two", "three"):
        path.write_text(text)
        files.set_aside(path)
    assert sorted(os.listdir(tmp_path)) == [f"agent.toml.edited{number}" for number in ("", 1, 2)]
    assert [(tmp_path / f"agent.toml.edited{number}").read_text() for number in ("", 1, 2)] == ["one", "two", "three"]


def test_a_directory_goes_with_its_last_file(tmp_path: Path) -> None:
    for name in "ab":
        files.replace(tmp_path / "d" / name, name)
    files.remove(tmp_path / "d/a")
    assert (tmp_path / "d").exists()
    files.remove(tmp_path / "d/b")
    assert not (tmp_path / "d").exists()


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ImgdistError, match=r"file/x: cannot be read: "):
        files.replace(tmp_path / "file/x", "y")
    with pytest.raises(ImgdistError, match=r"sys/x: cannot be written: "):
        files.replace(Path("/sys/x"), "y")

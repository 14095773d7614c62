"""ROOT/format: what a newer release wrote is refused by name and left as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgdist import rootformat
from imgdist.errors import ImgdistError, NewerFormatError


def test_a_new_directory_gets_this_releases_version(tmp_path: Path) -> None:
    rootformat.check(tmp_path)
    rootformat.mark(tmp_path)
    rootformat.check(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"format": f"{rootformat.VERSION}\n"}


def test_an_older_one_is_raised(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("0\n")
    rootformat.check(tmp_path)
    rootformat.mark(tmp_path)
    assert (tmp_path / "format").read_text() == f"{rootformat.VERSION}\n"


def test_a_newer_one_is_refused_and_kept(tmp_path: Path) -> None:
    newer = str(rootformat.VERSION + 1)
    (tmp_path / "format").write_text(newer)
    with pytest.raises(NewerFormatError, match=f"{tmp_path} is of format {newer}.*newer release"):
        rootformat.check(tmp_path)
    assert (tmp_path / "format").read_text() == newer


def test_what_is_no_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "format").write_bytes(b"\xff\x00")
    with pytest.raises(ImgdistError, match="cannot be read"):
        rootformat.check(tmp_path)
    (tmp_path / "format").write_text("ext4")
    with pytest.raises(ImgdistError, match="found 'ext4'"):
        rootformat.check(tmp_path)

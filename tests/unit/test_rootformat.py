"""ROOT/format: what a newer release wrote is refused by name and left as it is."""

from __future__ import annotations

import os
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


def test_the_number_is_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").read_text())
        real_sync(fd)

    def replace(source: Path, target: Path) -> None:
        assert synced == [f"{rootformat.VERSION}\n"]
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    rootformat.mark(tmp_path)
    rootformat.check(tmp_path)
    assert synced

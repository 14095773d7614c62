"""What an image's first layer may not hold."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from parts import require

from agent.layers import first_layer
from imgdist.errors import DeclinedError


@pytest.fixture(autouse=True)
def _root() -> None:
    require(os.getuid() == 0, "root")


def test_an_ordinary_first_layer(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/f").write_text("1")
    (tmp_path / "d/l").symlink_to("nowhere")
    os.mkfifo(tmp_path / "d/p")
    os.mknod(tmp_path / "d/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.setxattr(tmp_path / "d/e", "trusted.overlay.opaque", b"y")
    first_layer.check(str(tmp_path), [b"d", b"d/e"])


def test_a_whiteout_declines(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.mknod(tmp_path / "d/gone", stat.S_IFCHR, os.makedev(0, 0))
    with pytest.raises(DeclinedError, match="d/gone"):
        first_layer.check(str(tmp_path), [])


def test_an_opaque_directory_around_an_implied_one_declines(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    os.setxattr(tmp_path / "d", "trusted.overlay.opaque", b"y")
    first_layer.check(str(tmp_path), [b"d"])
    with pytest.raises(DeclinedError, match="d/e"):
        first_layer.check(str(tmp_path), [b"d", b"d/e"])

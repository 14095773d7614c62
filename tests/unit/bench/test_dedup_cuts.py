"""What a cut shares is counted in bodies as they travel, with chunks as the converter cuts them."""

from __future__ import annotations

import tarfile
from pathlib import Path
from random import Random

import pytest

from bench.dedup_cuts import CUTS, shares
from imgdist.demo.image import add_file
from imgdist.pack import CHUNK_MAX, chunker

_KIB = 1 << 10


def _layer(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            add_file(tar, name, content)
    return path


@pytest.mark.parametrize(("largest", "chunks", "saved"), [(64 * _KIB, 9, 8 / 9), (256 * _KIB, 3, 5 / 9)])
def test_a_smaller_cut_saves_what_stands_beside_a_change(
    tmp_path: Path, largest: int, chunks: int, saved: float
) -> None:
    """A small file that is new, three and a large one that are not: nine times 64 KiB."""
    content = [Random(n).randbytes(64 * _KIB) for n in range(10)]
    small = {f"a{n}": content[n] for n in range(3)}
    old = _layer(tmp_path / "old", {"a": content[9], **small, "b": b"".join(content[3:8])})
    new = _layer(tmp_path / "new", {"a": content[8], **small, "b": b"".join(content[3:8]), "c": b"inline"})
    found = shares(old, new, largest)
    assert (found.chunks, found.saved) == (chunks, pytest.approx(saved, abs=0.001))
    assert found.encoded_bytes >= 9 * 64 * _KIB and chunker.CHUNK_MAX == CHUNK_MAX


def test_todays_cut_is_among_those_compared() -> None:
    assert CHUNK_MAX in CUTS

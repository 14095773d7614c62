"""A layer's pack id depends on its bytes and the format version alone, and never changes without that version."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import zstandard
from golden_layers import LAYERS, pack_id, pack_ids
from isal import igzip

from imgdist.pack import FORMAT_VERSION

_HERE = Path(__file__).parent
_TOP = _HERE.parents[1]
GOLDEN: dict[str, dict[str, str]] = json.loads((_HERE / "golden_packs.json").read_text(encoding="utf-8"))


def test_pack_ids_are_those_of_this_format_version() -> None:
    """Another id is another format: nodes would take one layer for two, and share none of its chunks."""
    known = GOLDEN.get(str(FORMAT_VERSION))
    assert known is not None, (
        f"no pack ids of format version {FORMAT_VERSION}: run tests/determinism/golden_layers.py, look at each change, "
        "and add what it prints to golden_packs.json under the new version"
    )
    changed = [name for name, pack in pack_ids() if known.get(name) != pack]
    assert not changed, (
        f"pack ids changed: {', '.join(changed)}. If that is meant, raise FORMAT_VERSION (imgdist/pack/__init__.py), "
        "and add the ids of the new version to golden_packs.json; those of an old one stay as they are"
    )
    assert known.keys() == LAYERS.keys()


def test_no_two_layers_share_an_id() -> None:
    ids = [pack for known in GOLDEN.values() for pack in known.values()]
    assert len(set(ids)) == len(ids)


class _Pieces:
    """Gives the bytes in pieces of random sizes."""

    def __init__(self, data: bytes, seed: int) -> None:
        self._data, self._dice = io.BytesIO(data), random.Random(seed)

    def read(self, size: int, /) -> bytes:
        return self._data.read(min(size, self._dice.choice((1, 100, 511, 512, 4097, 70_000, 300_000))))


@pytest.mark.parametrize("seed", range(4))
def test_the_pieces_in_which_a_layer_comes_do_not_matter(seed: int) -> None:
    for name in ("directories", "xattrs", "sparse", "large file", "behind the end"):
        assert pack_id(_Pieces(LAYERS[name], seed)) == GOLDEN[str(FORMAT_VERSION)][name]


@pytest.mark.parametrize(("threads", "level"), [(1, 1), (2, 1), (7, 1), (3, None), (2, 3), (2, 12)])
def test_threads_and_levels_do_not_matter(threads: int, level: int | None) -> None:
    for name in ("chunk cuts", "large file", "small files"):
        assert pack_id(io.BytesIO(LAYERS[name]), threads, level) == GOLDEN[str(FORMAT_VERSION)][name]


def test_compression_does_not_matter() -> None:
    tar = LAYERS["large file"]
    twins = [gzip.compress(tar, level) for level in (0, 1, 9)] + [igzip.compress(tar, level) for level in (0, 3)]
    twins += [zstandard.ZstdCompressor(level=level).compress(tar) for level in (-5, 1, 19)]
    twins += [
        gzip.compress(tar[:100_000]) + igzip.compress(tar[100_000:]) + bytes(700),
        b"\x50\x2a\x4d\x18\x02\0\0\0hi" + b"".join(map(zstandard.compress, (tar[:99_999], b"", tar[99_999:]))),
    ]
    assert {pack_id(io.BytesIO(twin)) for twin in twins} == {GOLDEN[str(FORMAT_VERSION)]["large file"]}


def _pythons() -> list[str]:
    """Other CPythons of this machine that are new enough: in PATH, of pyenv and of uv."""
    home = Path.home()
    directories = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep)]
    directories += sorted((home / ".pyenv/versions").glob("*/bin"))
    directories += sorted((home / ".local/share/uv/python").glob("cpython-*/bin"))
    found: dict[str, str] = {}
    for path in (path for directory in directories for path in sorted(directory.glob("python3.*"))):
        minor = path.name.removeprefix("python3.")
        if minor.isdecimal() and int(minor) >= 11 and not _is_script(path):
            found.setdefault(os.path.realpath(path), str(path))
    found.pop(os.path.realpath(sys.executable), None)
    return list(found.values())


def _is_script(path: Path) -> bool:
    """As the stand-ins are that pyenv puts in PATH."""
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def _ids_by(python: str | Path, *options: str, **environment: str) -> dict[str, str]:
    done = subprocess.run(
        [python, *options, str(_HERE / "golden_layers.py")],
        env={**os.environ, "PYTHONPATH": str(_TOP), **environment},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ids: dict[str, str] = json.loads(done.stdout)
    return ids


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("python", _pythons())
def test_every_python_at_hand_makes_the_same_packs(python: str, tmp_path: Path) -> None:
    """With the oldest libraries that are allowed and the newest that are known."""
    allowed = tomllib.loads((_TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    libraries = ("blake3", "isal", "msgspec", "xxhash", "zstandard")
    oldest = [need.replace(">=", "==") + ".*" for need in allowed if need.startswith(libraries)]
    newest = [need.partition("==")[0] for need in oldest]
    for number, wanted in enumerate((oldest, newest)):
        place = tmp_path / str(number)
        subprocess.run([python, "-m", "venv", place], check=True)
        pip = [place / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--only-binary", ":all:", *wanted], check=True)
        assert _ids_by(place / "bin/python") == GOLDEN[str(FORMAT_VERSION)]


def test_hash_seed_locale_and_time_zone_do_not_matter() -> None:
    settings = {"PYTHONHASHSEED": "12345", "LC_ALL": "C", "PYTHONUTF8": "0", "TZ": "Pacific/Apia"}
    assert _ids_by(sys.executable, "-O", **settings) == GOLDEN[str(FORMAT_VERSION)]

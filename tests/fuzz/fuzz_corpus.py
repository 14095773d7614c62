"""The inputs that are kept of each target: one zip file, the same bytes for the same inputs."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from pathlib import Path

from fuzz_targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


def inputs(target: str) -> list[bytes]:
    """The target's seeds and what was kept of earlier runs."""
    path = CORPUS / f"{target}.zip"
    kept: list[bytes] = []
    if path.exists():
        with zipfile.ZipFile(path) as archive:
            kept = [archive.read(name) for name in sorted(archive.namelist())]
    return TARGETS[target].seeds() + kept


def keep(target: str, found: Iterable[bytes]) -> Path:
    """Replace what is kept of a target, without its seeds. Returns the file."""
    seeds = set(TARGETS[target].seeds())
    named = {hashlib.sha256(data).hexdigest()[:16]: data for data in found if data not in seeds}
    path = CORPUS / f"{target}.zip"
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(named):
            archive.writestr(zipfile.ZipInfo(name), named[name], zipfile.ZIP_DEFLATED, 9)
    return path

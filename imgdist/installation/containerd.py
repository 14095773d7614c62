"""containerd's configuration: what is written where, for 1.x in its own file, for 2.x in a file of ours beside it."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from imgdist.config import AgentConfig
from imgdist.errors import ImgdistError, UnsupportedError
from imgdist.installation import files, layout, tomltext
from imgdist.installation.layout import Layout

_DEFAULT_IMPORTS = ["/etc/containerd/conf.d/*.toml"]
"""What 2.x reads unless its configuration says otherwise (tried with 2.4.2)."""

_TIMEOUT_S = 20.0


def found_major() -> int | None:
    """Major version of the containerd in PATH; None if there is none. ImgdistError if it does not say."""
    program = shutil.which("containerd")
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    match = re.search(r" v?(\d+)\.\d+", said.stdout)
    if match is None:
        raise ImgdistError(f"{program} --version: expected a version, found {said.stdout + said.stderr!r}")
    return int(match[1])


def wanted(place: Layout, config: AgentConfig, major: int) -> Iterator[tuple[Path, str]]:
    """(path, text) of what containerd of that major version has to read. UnsupportedError if its own file is beyond
    us: then nothing may be written.

    1.x replaces the whole section of a plugin by an imported one (tried with 1.6.20), and its own file nearly always
    has one for CRI: so the keys are set there.
    """
    own = files.read(place.containerd)
    name, part = str(place.containerd), layout.containerd_part(config, major)
    document = tomltext.parsed(tomltext.without_keys(own or ""), name)
    if major < 2:
        keys = tomllib.loads(part)
        if document and document.get("version", 1) < 2:
            raise UnsupportedError(f"{name}: expected version = 2; `containerd config migrate` makes it so")
        if document:
            keys.pop("version")
        yield place.containerd, tomltext.with_keys(own or "", keys, name)
        return
    imports = document.get("imports", _DEFAULT_IMPORTS)
    if own is not None and not _reads(imports, place):
        yield place.containerd, tomltext.with_keys(own, {"imports": [*imports, _pattern(place)]}, name)
    yield place.drop_in, files.marked(part)


def removal(place: Layout) -> tuple[Path, str] | None:
    """containerd's own file as it was before; None if nothing of ours is in it. Empty text: it was ours alone."""
    own = files.read(place.containerd)
    if own is None or (before := tomltext.without_keys(own)) == own:
        return None
    return place.containerd, before


def _reads(imports: Sequence[str], place: Layout) -> bool:
    """Whether containerd reads our part by what it imports already."""
    directory = Path(_pattern(place)).parent.parent
    part = str(directory / "conf.d" / place.drop_in.name)
    return any(fnmatch.fnmatchcase(part, str(directory / pattern)) for pattern in imports)


def _pattern(place: Layout) -> str:
    """What containerd is told to import: its paths know nothing of a prefix."""
    return "/" + str((place.drop_in.parent / "*.toml").relative_to(place.prefix))

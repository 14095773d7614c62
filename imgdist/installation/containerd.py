"""containerd's configuration: what is written where, for 1.x in its own file, for 2.x in a file of ours beside it,
which its own is told to import."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from imgdist.config import AgentConfig
from imgdist.errors import ImgdistError, UnsupportedError
from imgdist.installation import files, layout, tomltext
from imgdist.installation.layout import Layout

_FORMATS = {1: 2, 2: 3}
"""Least version of the configuration file, by containerd's major version. A 2.x whose own file is of version 2 either
does not start with a file of version 3 beside it (containerd pull request 12891), or no longer migrates its own."""

_CRI = {1: "io.containerd.grpc.v1.cri", 2: "io.containerd.cri.v1.images"}
"""The plugin that knows of registries, by major version."""

_TIMEOUT_S = 20.0


def found_major() -> int | None:
    """Major version of the containerd in PATH; None if there is none. ImgdistError if it does not say."""
    program = shutil.which("containerd")
    if program is None:
        return None
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImgdistError(f"{program} --version: {error}; --containerd says which one it is") from None
    match = re.search(r" v?(\d+)\.\d+", said.stdout)
    if match is None:
        raise ImgdistError(f"{program} --version: expected a version, found {said.stdout + said.stderr!r}")
    return int(match[1])


def wanted(place: Layout, config: AgentConfig, major: int) -> Iterator[tuple[Path, str]]:
    """(path, text) of what containerd of that major version has to read. UnsupportedError if its own file is beyond
    us: then nothing may be written.

    1.x replaces the whole section of a plugin by an imported one (tried with 1.6.20), and its own file nearly always
    has one for CRI: so the keys are set there. 2.x merges key by key (tried with 2.4.2); what it imports is said, as
    2.0 and 2.1 import nothing by themselves.
    """
    own = _own(place)
    name, part = str(place.containerd), layout.containerd_part(config, major)
    document = tomltext.parsed(tomltext.without_keys(own), name)
    _check_format(document, _FORMATS[major], name)
    keys, imports = tomllib.loads(part), document.get("imports", [])
    if config.mirror_listen and not _registry(document):
        registry = {"plugins": {_CRI[major]: {"registry": {"config_path": _certs(place)}}}}
        keys = tomltext.overlaid(keys, registry)
        part += f'\n[plugins."{_CRI[major]}".registry]\n  config_path = "{_certs(place)}"\n'
    if major >= 2:
        keys = {"version": keys["version"], "imports": [*imports, _pattern(place)]}
    if document:
        keys.pop("version")
    if major < 2 or not _reads(imports, place):
        yield place.containerd, tomltext.with_keys(own, keys, name)
    if major >= 2:
        yield place.drop_in, files.marked(part)


def removal(place: Layout) -> tuple[Path, str] | None:
    """containerd's own file as it was before; None if nothing of ours is in it. Empty text: it was ours alone."""
    own = _own(place)
    before = tomltext.without_keys(own)
    return None if before == own else (place.containerd, before)


def still_told(place: Layout) -> list[Path]:
    """Files that tell containerd of imgdist in words that install did not write, or that lost their marks since (as
    by `containerd config migrate`)."""
    own = tomltext.without_keys(_own(place))
    beside = files.read(place.drop_in) if files.standing(place.drop_in) is files.Standing.FOREIGN else None
    return [path for path, text in ((place.containerd, own), (place.drop_in, beside or "")) if _tells(text)]


def keeps_mirrors(place: Layout) -> bool:
    """Whether its own file says of registries what excludes a directory of hosts.toml files."""
    document = tomltext.parsed(tomltext.without_keys(_own(place)), str(place.containerd))
    return not {"mirrors", "configs"}.isdisjoint(_registry(document))


def _registry(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a configuration says of registries: then it is left as it is."""
    plugins = document.get("plugins", {})
    return {key: value for name in _CRI.values() for key, value in plugins.get(name, {}).get("registry", {}).items()}


def _certs(place: Layout) -> str:
    """Where containerd finds hosts.toml files: its paths know nothing of a prefix."""
    return "/" + str(place.hosts.parent.parent.relative_to(place.prefix))


def _tells(text: str) -> bool:
    try:
        return "imgdist" in tomllib.loads(text).get("proxy_plugins", {})
    except tomllib.TOMLDecodeError:
        return False  # containerd does not read it either


def _own(place: Layout) -> str:
    """Text of containerd's own file, empty if there is none."""
    if not place.is_this_machine and place.containerd.is_symlink():
        raise UnsupportedError(
            f"{place.containerd}: expected a file, found a symlink, which may lead out of {place.prefix}; "
            "name the file itself (--containerd-config)"
        )
    return files.read(place.containerd) or ""


def _check_format(document: Mapping[str, Any], least: int, name: str) -> None:
    version = document.get("version", 1)
    if document and not (isinstance(version, int) and version >= least):
        raise UnsupportedError(
            f"{name}: expected version = {least} or newer, found {version!r}; `containerd config migrate` makes it so"
        )


def _reads(imports: Sequence[str], place: Layout) -> bool:
    """Whether containerd reads our part by what it imports already."""
    directory = Path(_pattern(place)).parent.parent
    part = str(directory / "conf.d" / place.drop_in.name)
    return any(PurePosixPath(part).match(str(directory / pattern)) for pattern in imports)  # "*" stops at "/"


def _pattern(place: Layout) -> str:
    """What containerd is told to import: its paths know nothing of a prefix."""
    return "/" + str((place.drop_in.parent / "*.toml").relative_to(place.prefix))

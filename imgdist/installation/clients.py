"""Registry clients that are told of the mirror: containerd by hosts.toml, and where they are installed Docker by
daemon.json, Podman and CRI-O by a file of ours in registries.conf.d."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imgdist.config import AgentConfig
from imgdist.errors import UnsupportedError
from imgdist.installation import docker, files, tomltext
from imgdist.installation.files import Standing
from imgdist.installation.layout import Layout
from imgdist.wire.address import Address


def url(config: AgentConfig) -> str:
    """The mirror's, as clients of this node reach it; empty if there is none."""
    if not config.mirror_listen:
        return ""
    address = Address.parse(config.mirror_listen)
    return Address("127.0.0.1", address.port).url if address.is_wildcard else address.url


def wanted(place: Layout, config: AgentConfig, *, with_containerd: bool) -> Iterator[tuple[Path, str]]:
    """(path, text) of what clients have to read, and no more; empty text: no file. UnsupportedError if one of their
    files is beyond us."""
    mirror = url(config)
    if not mirror:
        yield from removals(place, config)
        if files.standing(place.registries) in (Standing.OURS, Standing.EDITED):
            yield place.registries, ""
        return
    if with_containerd:
        own = files.read(place.hosts) or ""
        keys = {"host": {mirror: {"capabilities": ["pull", "resolve"]}}}
        yield place.hosts, tomltext.with_keys(own, keys, str(place.hosts))
    if place.docker.parent.is_dir():
        own = _without(files.read(place.docker) or "", _told(place) - {mirror})
        yield place.docker, docker.with_mirror(own, mirror, str(place.docker))
    if place.registries.parent.is_dir():
        others = _mentioned(place)
        told = [registry for registry in config.mirror_registries if registry not in others]
        yield place.registries, files.marked(_registries(told, mirror.removeprefix("http://")))


def removals(place: Layout, config: AgentConfig) -> Iterator[tuple[Path, str]]:
    """(path, text as it was before) of the files that others have a share in; empty text: it was ours alone."""
    mirrors = _told(place) | {url(config)}
    if own := files.read(place.hosts):
        before = tomltext.without_keys(own)
        if before != own:
            yield place.hosts, before
    if own := files.read(place.docker):
        before = _without(own, mirrors)
        if before != own:
            yield place.docker, before


def _told(place: Layout) -> set[str]:
    """Mirrors that hosts.toml has of us: the settings may name another one since, or none."""
    own = files.read(place.hosts) or ""
    try:
        now, theirs = (tomllib.loads(text).get("host", {}) for text in (own, tomltext.without_keys(own)))
    except tomllib.TOMLDecodeError:
        return set()
    return set(now) - set(theirs)


def _without(daemon: str, mirrors: set[str]) -> str:
    """Docker's daemon.json without these."""
    for mirror in sorted(mirrors):
        daemon = docker.without_mirror(daemon, mirror)
    return daemon


def _registries(registries: list[str], mirror: str) -> str:
    """An entry each: the location's path tells the mirror which registry is meant."""
    entries = (
        f'\n[[registry]]\nprefix = "{registry}"\nlocation = "{registry}"\n\n'
        f'[[registry.mirror]]\nlocation = "{mirror}/{registry.replace(":", "_")}"\ninsecure = true\n'
        for registry in registries
    )
    return (
        "# Registries that are pulled through this node's mirror first (mirror_registries of agent.toml).\n"
        + "".join(entries)
    )


def _mentioned(place: Layout) -> set[str]:
    """Registries that somebody else has an entry for: a second one would replace it."""
    found: set[str] = set()
    for path in (place.registries.parent.parent / "registries.conf", *sorted(place.registries.parent.glob("*.conf"))):
        if path == place.registries and files.standing(path) is not Standing.FOREIGN:
            continue
        for entry in _entries(path):
            found.update(str(entry[key]) for key in ("prefix", "location") if key in entry)
    return found


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries = tomllib.loads(files.read(path) or "").get("registry", [])
    except tomllib.TOMLDecodeError as error:
        raise UnsupportedError(f"{path}: expected TOML: {error}") from None
    return [entry for entry in entries if isinstance(entry, dict)]

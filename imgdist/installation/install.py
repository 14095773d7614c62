"""What `imgdist install` does: the agent's unit, rules and settings, then containerd's part, then what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imgdist.installation import clients, containerd, files, layout, systemd
from imgdist.installation.files import Standing
from imgdist.installation.layout import Layout


@dataclass
class Installed:
    """Paths by what became of them, and what is left to do, as lines for people."""

    written: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """What somebody else wrote or edited: it stays as it is."""
    next: list[str] = field(default_factory=list)


def install(place: Layout, major: int | None, *, dry_run: bool = False) -> Installed:
    """Write what is missing or old; `major` is containerd's, None: leave it alone. The agent is started before
    containerd is told of it, as a containerd that finds no snapshotter drops its images.

    UnsupportedError before anything is written if containerd's configuration is beyond us.
    """
    done = Installed()
    config = place.config()
    told = list(containerd.wanted(place, config, major)) if major is not None else []
    mirrored = list(clients.wanted(place, config, with_containerd=major is not None))
    for path, text in _own(place):
        _put(path, text, done, dry_run=dry_run)
    if not dry_run and systemd.runs() and place.is_this_machine:
        systemd.systemctl("daemon-reload")
        systemd.systemctl("enable", "--now", systemd.UNIT)
    else:
        start = f"start `imgdist agent --config {place.settings}` before containerd"
        done.next.append(start if systemd.runs() else f"{start} yourself: systemd does not run here")
    for path, text in told:
        if path == place.drop_in:
            _put(path, text, done, dry_run=dry_run)
        else:
            _record(path, text, done, dry_run=dry_run)
    for path, text in mirrored:
        if path == place.registries:
            _put(path, text, done, dry_run=dry_run)
        else:
            _record(path, text, done, dry_run=dry_run)
    if str(place.docker) in (*done.written, *done.removed):
        done.next.append("systemctl reload docker, for its registry mirror")
    if major is not None and containerd.keeps_mirrors(place):
        done.next.append(
            f"{place.containerd} has registry.mirrors or registry.configs: until they are gone, CRI ignores hosts.toml"
        )
    if major is None:
        done.next.append("containerd was not found: run imgdist install again when it is there")
    elif any(str(path) in done.written for path, _ in told):
        done.next.append("restart containerd; containers that run go on")
    return done


def _own(place: Layout) -> Iterator[tuple[Path, str]]:
    config = place.config()
    if files.standing(place.settings) is Standing.NOTHING:
        yield place.settings, files.marked(layout.shipped("imgdist/agent.toml"))
    yield place.rules, files.marked(layout.rules(config))
    yield place.unit, files.marked(layout.unit(config))


def _put(path: Path, text: str, done: Installed, *, dry_run: bool) -> None:
    if files.standing(path) in (Standing.EDITED, Standing.FOREIGN):
        done.kept.append(str(path))
    else:
        _record(path, text, done, dry_run=dry_run)


def _record(path: Path, text: str, done: Installed, *, dry_run: bool) -> None:
    changed = (files.read(path) or "") != text
    if changed and not dry_run:
        files.give_back(path, text)
    became = done.unchanged if not changed else done.written if text.strip() else done.removed
    became.append(str(path))

"""What `imgdist uninstall` does, step by step: everything is put out of the way of what runs before anything goes."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imgdist import kernel_state
from imgdist.config import AgentConfig
from imgdist.errors import ImgdistError
from imgdist.installation import clients, containerd, files, holder, purge, systemd
from imgdist.installation.files import Standing
from imgdist.installation.layout import Layout

_STOP_S = 15.0  # beyond stop_timeout_s: the holder's own grace for its children
_SOCKETS = ("api.sock", "view.sock", "holder.sock", "supernode.sock", "chunks.sock")

Drain = Callable[[], dict[str, Any]]
"""Drains the agent; its report. ImgdistError if none answers, or one that cannot."""


@dataclass
class Removed:
    """What became of it: paths and mounts that are gone, what stays (with the reason), what is left to do."""

    removed: list[str] = field(default_factory=list)
    kept: list[dict[str, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Who gets I/O errors from now on, by force."""
    next: list[str] = field(default_factory=list)

    def keep(self, path: object, reason: str) -> None:
        self.kept.append({"path": str(path), "reason": reason})


def depends(config: AgentConfig, drain: Drain) -> list[str]:
    """Who would break without an agent: asked of the agent once it has drained itself, else of the kernel, which
    knows which layers are still read through a view."""
    try:
        left = drain()["left"]
    except ImgdistError:
        return [f"{user} (no agent completes its layer)" for user in _behind_view(config)]
    return sorted({user for layer in left for user in layer["used_by"]})


def _behind_view(config: AgentConfig) -> list[str]:
    """Who reads through a view: overlays over its layers, what shows one alone (`imgdist mount` of an image of one
    layer), and what holds a layer where we cannot see it."""
    mounted = {entry.source: entry for entry in kernel_state.mounts_below(os.path.join(config.root, "l"))}
    users: set[str] = set()
    for loop in kernel_state.loops_below(os.path.join(config.run, "view")):
        layer = mounted.get(loop.path)
        if layer is None:
            users.add(f"a reader of {loop.path}")
        else:
            users.update(kernel_state.overlays_over(layer.path), kernel_state.bound_from(layer))
    return sorted(users)


def uninstall(place: Layout, config: AgentConfig, *, purges: bool, dry_run: bool = False) -> Removed:
    """Take off files, processes, mounts and, if it `purges`, ROOT. `depends` was asked before, and answered."""
    done = Removed()
    is_live = place.is_live(config)
    _tell_clients(place, config, done, dry_run=dry_run)
    had_containerd = _tell_containerd(place, done, dry_run=dry_run)
    with ExitStack() as stack:
        if is_live and not dry_run:
            _stop(place, config, done)
            stack.enter_context(purge.unused(config.root))
        for path in (place.unit, place.rules, place.settings):
            _take_off(path, done, dry_run=dry_run)
        if is_live and not dry_run:
            if systemd.runs() and place.is_this_machine:
                systemd.systemctl("daemon-reload")
            _clear(config, done)
        if is_live and purges:
            _purge(config.root, done, dry_run=dry_run)
    for path in containerd.still_told(place):
        done.next.append(f"take imgdist out of {path}, which install did not write: pulls need it until then")
    if had_containerd:
        done.next.append("restart containerd; containers that run go on")
    return done


def _tell_clients(place: Layout, config: AgentConfig, done: Removed, *, dry_run: bool) -> None:
    """They go to the registries themselves again."""
    for path, text in clients.removals(place, config):
        done.removed.append(f"the mirror in {path}")
        if path == place.docker:
            done.next.append("systemctl reload docker, which goes on without its registry mirror")
        if not dry_run:
            files.give_back(path, text)
    _take_off(place.registries, done, dry_run=dry_run)


def _tell_containerd(place: Layout, done: Removed, *, dry_run: bool) -> bool:
    """Whether there was anything of ours in containerd's configuration."""
    before = containerd.removal(place)
    if before is not None:
        path, text = before
        done.removed.append(f"entries in {path}")
        if not dry_run:
            files.give_back(path, text)
    return _take_off(place.drop_in, done, dry_run=dry_run) or before is not None


def _take_off(path: Path, done: Removed, *, dry_run: bool) -> bool:
    """Remove a file of ours; one that was edited since is set aside, where nobody reads it."""
    standing = files.standing(path)
    if standing is Standing.OURS:
        done.removed.append(str(path))
        if not dry_run:
            files.remove(path)
    elif standing is Standing.EDITED:
        aside = path if dry_run else files.set_aside(path)
        done.keep(aside, f"it was edited since it was installed as {path}")
    elif standing is Standing.FOREIGN:
        done.keep(path, "imgdist install did not write it")
    return standing in (Standing.OURS, Standing.EDITED)


def _stop(place: Layout, config: AgentConfig, done: Removed) -> None:
    if systemd.runs() and place.is_this_machine and place.unit.exists():
        systemd.systemctl("disable", "--now", systemd.UNIT)
    pid = holder.find(config.run)
    if pid is None:
        return
    how = "in order" if holder.stop(pid, config.stop_timeout_s + _STOP_S) else "killed, as it did not end in time"
    done.removed.append(f"the agent (process {pid}, {how})")


def _clear(config: AgentConfig, done: Removed) -> None:
    """Unmount what nothing needs. Containers keep their own hold of the layers below them, and through it the files."""
    view = os.path.join(config.run, "view")
    for entry in kernel_state.mounts_below(view):
        kernel_state.abort(entry)
        kernel_state.unmount(entry.path, lazy=True)
        done.removed.append(f"the view at {entry.path}")
    for entry in kernel_state.mounts_below(os.path.join(config.root, "l")):
        if kernel_state.unmount(entry.path):
            done.removed.append(f"the mount {entry.path}")
        else:
            done.keep(entry.path, "something holds the mount")
    _remove_run(config)


def _remove_run(config: AgentConfig) -> None:
    """The sockets of an agent that is gone, and the place of its view."""
    for path in (*(os.path.join(config.run, name) for name in _SOCKETS), config.snapshotter_socket):
        with suppress(OSError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
    for directory in (os.path.join(config.run, "view"), config.run):
        with suppress(OSError):  # there is more in it, which is not ours
            os.rmdir(directory)


def _purge(root: str, done: Removed, *, dry_run: bool) -> None:
    try:
        left = purge.delete(root, dry_run=dry_run)
    except (OSError, shutil.Error) as error:
        raise ImgdistError(f"{root}: cannot be deleted: {error}; run imgdist uninstall --purge again") from None
    done.removed.append(f"{root}{', but for what is named below' if left else ''}")
    for one in left:
        done.keep(one.path, one.reason)

"""Where the files of an installed node are, and what they say for this node's configuration."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

import imgdist
from imgdist import command
from imgdist.config import AgentConfig, load

_SHIPPED_RUN, _SHIPPED_ROOT = "/run/imgdist", "/var/lib/imgdist"
_SHIPPED_COMMAND = "/opt/imgdist/bin/imgdist"
_SHIPPED_STOP_S, _STOP_MARGIN_S = 60, 30  # TimeoutStopSec= of the unit, and by how much it exceeds stop_timeout_s
_OWN_DIRECTORIES = ("RuntimeDirectory", "StateDirectory")
"""Keys of the unit by which systemd makes the shipped run and root directories, and no others."""


@dataclass(frozen=True)
class Layout:
    """The files below `prefix` ("/" but for images and tests, which are put together elsewhere)."""

    prefix: Path
    containerd: Path
    """containerd's own configuration file."""

    @classmethod
    def below(cls, prefix: str, containerd: str) -> Layout:
        """The layout whose absolute paths all lie below `prefix`."""
        return cls(Path(prefix), _below(prefix, containerd))

    @property
    def unit(self) -> Path:
        return _below(self.prefix, "/etc/systemd/system/imgdist-agent.service")

    @property
    def rules(self) -> Path:
        return _below(self.prefix, "/etc/udev/rules.d/59-imgdist.rules")

    @property
    def settings(self) -> Path:
        return _below(self.prefix, "/etc/imgdist/agent.toml")

    @property
    def drop_in(self) -> Path:
        return self.containerd.parent / "conf.d/imgdist.toml"

    @property
    def hosts(self) -> Path:
        """What containerd reads of registries that have no file of their own (its documentation, "hosts.md")."""
        return self.containerd.parent / "certs.d/_default/hosts.toml"

    @property
    def docker(self) -> Path:
        return _below(self.prefix, "/etc/docker/daemon.json")

    @property
    def registries(self) -> Path:
        """Of Podman, Buildah, Skopeo and CRI-O (containers-registries.conf.d(5))."""
        return _below(self.prefix, "/etc/containers/registries.conf.d/50-imgdist.conf")

    @property
    def is_this_machine(self) -> bool:
        """Whether the files are those that this machine's systemd reads."""
        return self.prefix == Path("/")

    def is_live(self, config: AgentConfig) -> bool:
        """Whether processes, mounts and ROOT belong to these files: below a prefix only if its own settings say where
        they are. Else they would be this machine's, and the files are an image's."""
        return self.is_this_machine or config.run != _SHIPPED_RUN

    def config(self) -> AgentConfig:
        """The agent's configuration, as installed or by default, its directories absolute."""
        found = load(AgentConfig, str(self.settings) if self.settings.exists() else None)
        return load(
            AgentConfig,
            str(self.settings) if self.settings.exists() else None,
            flags={
                "root": os.path.abspath(found.root),
                "run": os.path.abspath(found.run),
                "snapshotter_socket": os.path.abspath(
                    found.snapshotter_socket or os.path.join(found.run, "snapshotter.sock")
                ),
            },
        )


def shipped(name: str) -> str:
    """A file of deploy/, which is part of the package where that is installed."""
    package = Path(imgdist.__file__).parent
    packaged = package / "deploy"
    return ((packaged if packaged.is_dir() else package.parent / "deploy") / name).read_text(encoding="utf-8")


def unit(config: AgentConfig) -> str:
    """The agent's systemd unit, starting the command that runs now."""
    text = shipped("systemd/imgdist-agent.service").replace(_SHIPPED_COMMAND, " ".join(command.installed()))
    text = text.replace(f"--run {_SHIPPED_RUN}\n", f"--run {config.run}\n")
    stop_s = max(_SHIPPED_STOP_S, math.ceil(config.stop_timeout_s) + _STOP_MARGIN_S)
    text = text.replace(f"TimeoutStopSec={_SHIPPED_STOP_S}s", f"TimeoutStopSec={stop_s}s")
    lines = text.splitlines(keepends=True)
    if (config.run, config.root) != (_SHIPPED_RUN, _SHIPPED_ROOT):
        lines = [line for line in lines if not line.startswith(_OWN_DIRECTORIES)]
    return "".join(lines)


def rules(config: AgentConfig) -> str:
    """udev's rules for the agent's loop devices, whose files the kernel names without symlinks."""
    resolved = replace(config, root=os.path.realpath(config.root), run=os.path.realpath(config.run))
    return _placed(shipped("udev/59-imgdist.rules"), resolved)


def containerd_part(config: AgentConfig, major: int) -> str:
    """What containerd of that major version is told."""
    text = shipped("containerd/imgdist-2.toml" if major >= 2 else "containerd/imgdist-1.6.toml")
    return _placed(text, config)


def _placed(text: str, config: AgentConfig) -> str:
    """In one pass: what is put in may itself begin as what is shipped does."""
    places = {
        f"{_SHIPPED_RUN}/snapshotter.sock": config.snapshotter_socket,
        f"{_SHIPPED_RUN}/": f"{config.run}/",
        _SHIPPED_ROOT: config.root,
    }
    return re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], text)


def _below(prefix: str | Path, path: str) -> Path:
    return Path(prefix) / path.lstrip("/")

"""Real containerds, of Debian (1.6) and of the Go module (2.x), configured by the files that deploy/ ships."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc
from parts import require
from rig.cri import Cri

from imgdist.demo import leftovers
from imgdist.demo.containerd import Install, installs
from imgdist.demo.processes import Process, command, wait_until
from imgdist.errors import ImgdistError

Version = Literal["1.6", "2"]
_DEPLOY = Path(__file__).parents[3] / "deploy/containerd"
_SHIPPED_SOCKET = "/run/imgdist/snapshotter.sock"
_ANNOTATIONS: dict[Version, str] = {
    "1.6": "disable_snapshot_annotations = false",
    "2": 'enable_remote_snapshot_annotations = "true"',
}
_FORMAT: dict[Version, int] = {"1.6": 2, "2": 3}
# NRI would bind a socket in /var/run, opt make a directory in /opt.
_MAIN = """version = {format}
root = "{directory}/root"
state = "{directory}/state"
imports = ["{directory}/imgdist.toml"]
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{directory}/c.sock"
[ttrpc]
  address = "{directory}/c.sock.ttrpc"
"""
# This machine may not lower oom_score_adj below its parent's (no CAP_SYS_RESOURCE), as in many CI containers.
_CRI = {
    "1.6": """
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
""",
    "2": """
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
""",
}


@dataclass(frozen=True)
class Setting:
    """What distinguishes one containerd of the tests from another.

    `annotations`: the shipped configuration as it is, which sends image reference and layer digests; without it, what
    the administrator has who only named the plugin: chain IDs alone. `snapshotter`: CRI's default. `is_told`: without
    it nothing of imgdist is in the configuration, and `imgdist install` may put it there.
    """

    version: Version
    annotations: bool = True
    snapshotter: str = "imgdist"
    is_told: bool = True

    def install(self) -> Install | None:
        """Where its programs are; None: not on this machine."""
        return next((found for found in installs() if found.version.startswith(f"{self.version}.")), None)


class Containerd:
    """A running containerd. `start` and `stop` may be repeated; containers live on in between."""

    def __init__(self, directory: Path, setting: Setting, snapshotter_socket: Path, pause: str) -> None:
        install = setting.install()
        assert install is not None
        self.setting = setting
        self._programs, self._directory = install.directory, directory
        self.root = directory / "root"
        self.socket = directory / "c.sock"
        self.config = directory / "config.toml"
        self._write(snapshotter_socket, pause)
        self._environment = {**os.environ, "PATH": f"{install.directory}:{os.environ['PATH']}"}
        self._process: Process | None = None

    def _write(self, snapshotter_socket: Path, pause: str) -> None:
        version = self.setting.version
        main = _MAIN.format(format=_FORMAT[version], directory=self._directory)
        if not self.setting.is_told:
            main = main.replace("imgdist.toml", "conf.d/*.toml")
            self.config.write_text(main + _CRI[version].format(pause=pause))
            return
        drop_in = (_DEPLOY / f"imgdist-{version}.toml").read_text(encoding="utf-8")
        changes = {_SHIPPED_SOCKET: str(snapshotter_socket)}
        if self.setting.snapshotter != "imgdist":
            changes['\n  snapshotter = "imgdist"'] = f'\n  snapshotter = "{self.setting.snapshotter}"'
        if not self.setting.annotations:
            changes[_ANNOTATIONS[version]] = ""
        for shipped, wanted in changes.items():
            assert shipped in drop_in, f"deploy/containerd/imgdist-{version}.toml no longer says {shipped!r}"
            drop_in = drop_in.replace(shipped, wanted, 1)
        (self._directory / "imgdist.toml").write_text(drop_in + _CRI[version].format(pause=pause))
        self.config.write_text(main)

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """SIGTERM, as systemd does it, or SIGKILL; containers and their shims stay."""
        if self._process is not None:
            self._process.stop(signal_number)
            self._process = None

    def launch(self) -> None:
        """Start it without waiting; `wait_ready` does."""
        argv = [self._programs / "containerd", "--config", self.config]
        self._process = Process("containerd", argv, self._directory / "containerd.log", env=self._environment)

    def wait_ready(self) -> None:
        """Until CRI answers."""
        assert self._process is not None
        self._process.wait_until(self._answers)

    def _answers(self) -> bool:
        """CRI is loaded last: once it answers, everything does."""
        try:
            with self.cri() as client:
                client.version()
        except grpc.RpcError:
            return False
        return True

    def wait_for_snapshotter(self) -> None:
        """Until containerd has found a snapshotter that was away: it tries again after 3 s at the latest."""

        def reached() -> bool:
            try:
                self.ctr("snapshots", "--snapshotter", "imgdist", "usage", namespace="k8s.io")
            except ImgdistError:
                return False
            return True

        wait_until(reached, "containerd's connection to the snapshotter", 15)

    def ctr(self, *arguments: str, namespace: str = "default") -> str:
        """Run this version's `ctr`; its stdout. Raises ImgdistError with what it said."""
        fixed = (str(self._programs / "ctr"), "--address", str(self.socket), "--namespace", namespace)
        return command(*fixed, *arguments, env=self._environment)

    def run(
        self, reference: str, name: str, *argv: str, snapshotter: str = "imgdist", namespace: str = "default"
    ) -> str:
        """Run a container to its end; what it wrote. Raises ImgdistError unless it exits 0."""
        flags = ("run", "--rm", "--snapshotter", snapshotter)
        return self._logged(*flags, last=[reference, name, *argv], namespace=namespace)

    def execute(self, container: str, exec_id: str, *argv: str) -> str:
        """Run a command in a running container to its end; what it wrote. Raises ImgdistError unless it exits 0."""
        return self._logged("tasks", "exec", "--exec-id", exec_id, last=[container, *argv])

    def _logged(self, *arguments: str, last: list[str], namespace: str = "default") -> str:
        """The shim writes the log. Through ctr's FIFOs, what a short command writes is lost when ctr opens them after
        its end: 15 of 800 of containerd's own overlayfs on a busy machine."""
        log = self._directory / f"{uuid.uuid4().hex}.said"
        self.ctr(*arguments, "--log-uri", f"file://{log}", *last, namespace=namespace)
        return log.read_text()

    def ctr_remote(self, *arguments: str) -> str:
        """Debian's `ctr-remote` (package stargz-snapshotter), a client of remote snapshotters by others."""
        return command("ctr-remote", "--address", str(self.socket), *arguments, env=self._environment)

    def cri(self) -> Cri:
        return Cri(self.socket)

    def holds_blob(self, digest: str) -> bool:
        """Whether the content store has the blob: a layer that was taken over was never downloaded."""
        return (self.root / "io.containerd.content.v1.content/blobs" / digest.replace(":", "/")).exists()

    @contextmanager
    def mounted(self, chain_id: str, snapshotter: str, directory: Path, namespace: str = "default") -> Iterator[Path]:
        """What a container of the snapshot `chain_id` would see, mounted at `directory` as the snapshotter says.

        Prepared, not viewed: ctr protects only the former from containerd's garbage collector.
        """
        key = f"look-{directory.name}"
        directory.mkdir()
        self.ctr("snapshots", "--snapshotter", snapshotter, "prepare", key, chain_id, namespace=namespace)
        try:
            line = self.ctr(
                "snapshots", "--snapshotter", snapshotter, "mounts", str(directory), key, namespace=namespace
            )
            _mount(line.split())
            try:
                yield directory
            finally:
                command("umount", str(directory))
        finally:
            self.ctr("snapshots", "--snapshotter", snapshotter, "rm", key, namespace=namespace)


def _mount(argv: list[str]) -> None:
    """Run a mount command as ctr prints it, lower directories made relative: together they may exceed a page."""
    options = next((word for word in argv if "lowerdir=" in word), "")
    lowers = [part for part in options.partition("lowerdir=")[2].split(",")[0].split(":") if part]
    common = os.path.commonpath([os.path.dirname(lower) for lower in lowers]) if lowers else "/"
    relative = [word.replace(f"{common}/", "") if word is options else word for word in argv]
    subprocess.run(relative, cwd=common, check=True)


@contextmanager
def containerd(directory: Path, setting: Setting, snapshotter_socket: Path, pause: str) -> Iterator[Containerd]:
    """A containerd of its own in `directory`; skips (in CI: fails) where its programs are missing."""
    require(os.getuid() == 0, "root")
    require(shutil.which("runc"), "runc (Debian: runc)")
    require(setting.install(), f"containerd {setting.version} (scripts/parts test)")
    directory.mkdir(parents=True)
    daemon = Containerd(directory, setting, snapshotter_socket, pause)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()
        for pid in leftovers.processes_with("-address", str(daemon.socket)):
            leftovers.kill_with_children(pid)
        leftovers.unmount_below(directory)


class CtrContainer:
    """A container started by `ctr run`, with the part of `rig.cri.Container` that both share."""

    def __init__(self, daemon: Containerd, name: str) -> None:
        self._daemon, self._name, self._runs = daemon, name, 0

    def run(self, *command: str) -> bytes:
        """Run a command inside; its stdout. Raises ImgdistError unless it exits 0."""
        self._runs += 1
        return self._daemon.execute(self._name, f"x{self._runs}", *command).encode()


@contextmanager
def ctr_container(daemon: Containerd, reference: str, name: str, *argv: str) -> Iterator[CtrContainer]:
    """A container of an image in the imgdist snapshotter, running `argv`; killed and removed at the end."""
    daemon.ctr("run", "--detach", "--snapshotter", "imgdist", reference, name, *argv)
    try:
        yield CtrContainer(daemon, name)
    finally:
        daemon.ctr("tasks", "delete", "--force", name)
        daemon.ctr("containers", "delete", name)

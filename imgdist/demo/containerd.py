"""containerd with root, state and socket of its own: 2.x pulling by its transfer service, 1.6 by CRI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from imgdist.demo import cri, leftovers
from imgdist.demo.cache import cache_directory
from imgdist.demo.processes import Daemon, Process, command
from imgdist.errors import ImgdistError, UnsupportedError

BUILT_VERSION = "2.4.2"
"""What scripts/parts builds from the Go module proxy into the cache directory."""


@dataclass(frozen=True)
class Install:
    """A containerd found on this machine: its version, and the directory of containerd, ctr and the shim."""

    version: str
    directory: Path

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def programs(self) -> tuple[Path, ...]:
        return tuple(self.directory / name for name in ("containerd", "ctr", "containerd-shim-runc-v2"))


def installs() -> list[Install]:
    """The containerds of this machine, the newest first: the built one in the cache directory and the one in PATH."""
    found: dict[str, Install] = {}
    in_path = shutil.which("containerd")
    for directory in (cache_directory() / f"containerd-{BUILT_VERSION}", Path(in_path).parent if in_path else None):
        if directory is None or not all((directory / name).exists() for name in ("containerd", "ctr")):
            continue
        match = re.search(r" v?(\d+\.\d+\.\d+)", command(directory / "containerd", "--version"))
        if match:
            found.setdefault(match[1], Install(match[1], directory))
    return sorted(found.values(), key=lambda install: [int(part) for part in install.version.split(".")], reverse=True)


def newest() -> Install:
    """The containerd that the demo uses. Raises UnsupportedError if there is none."""
    found = installs()
    if not found:
        raise UnsupportedError(
            "containerd: expected in PATH or in the cache directory, not found; run scripts/parts demo"
        )
    return found[0]


SILENCE_S = 60.0
"""How long a program that may serve for ever can take to its first output."""


@dataclass(frozen=True)
class Run:
    """One `ctr run`: what the container printed, and when, on time.monotonic()'s clock."""

    started_s: float
    first_output_s: float | None
    ended_s: float
    exit_code: int
    output: bytes


class Containerd(Daemon):
    """A running containerd; a context manager that also ends its containers, shims and mounts.

    `directory` (short: unix sockets live there) takes root, state, log and configuration. With `snapshotter` (socket
    of a proxy snapshotter named "imgdist") images live there, else in overlayfs. `plain_http`: registries without TLS.
    """

    def __init__(
        self,
        install: Install,
        directory: Path,
        *,
        snapshotter: Path | None = None,
        exports_root: Path | None = None,
        plain_http: Sequence[str] = (),
    ) -> None:
        self.install = install
        self.directory = directory
        self.socket = directory / "c.sock"
        self.snapshotter = "imgdist" if snapshotter else "overlayfs"
        # CRI has a namespace of its own; its images are run from there.
        self.namespace = "default" if install.major >= 2 else "k8s.io"
        self._hosts = directory / "certs.d"
        directory.mkdir(parents=True)
        for registry in plain_http:
            _write_hosts(self._hosts, registry)
        config = directory / "containerd.toml"
        config.write_text(configuration(install.major, directory, snapshotter, exports_root))
        # Its own directory first: containerd looks the shim up in PATH.
        path = f"{install.directory}:{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}"
        self.environment = {**os.environ, "PATH": path}
        self._process = Process(
            f"containerd {install.version}",
            [install.directory / "containerd", "--config", config],
            directory / "containerd.log",
            env=self.environment,
        )

    def ctr(self, *arguments: str) -> str:
        """Output of one `ctr` command in our namespace. Raises ImgdistError with what it wrote."""
        return command(*self._ctr(), *arguments, env=self.environment)

    def pull(self, reference: str) -> None:
        """Pull into our snapshotter: 2.x by transfer service, 1.6 by CRI (its `ctr pull` sends no labels)."""
        if self.install.major >= 2:
            self.ctr("images", "pull", "--snapshotter", self.snapshotter, "--hosts-dir", str(self._hosts), reference)
        else:
            cri.pull(self.socket, reference)

    def run(self, reference: str, name: str, *argv: str, linger_s: float | None = None) -> Run:
        """Run a container and note its first output. Raises ImgdistError if it fails.

        It runs to its end, or (`linger_s`, for programs that serve) is killed so long after its first output; then
        printing nothing for SILENCE_S is a failure too.
        """
        arguments = [*self._ctr(), "run", "--rm", "--snapshotter", self.snapshotter, reference, name, *argv]
        errors = self.directory / f"{name}.err"
        started = time.monotonic()
        with errors.open("wb") as stderr:
            child = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=self.environment,
                start_new_session=True,
            )
        with child, _Limit(lambda: self._kill(name)) as limit:
            try:
                assert child.stdout is not None
                if linger_s is not None:
                    limit.set(SILENCE_S)
                first = child.stdout.read(1)
                first_at = time.monotonic() if first else None
                if linger_s is not None and first:
                    limit.set(linger_s)
                output = first + child.stdout.read()
                code = child.wait()
            except BaseException:
                child.kill()
                raise
        ended = time.monotonic()
        if limit.reached and first_at is None:
            raise ImgdistError(
                f"{reference}: expected some output of its program within {SILENCE_S:g} s, there is none"
            )
        if code and not limit.reached:
            said = errors.read_text(errors="replace").strip()[-500:]
            raise ImgdistError(f"ctr run {reference} {' '.join(argv)}: expected exit 0, seen {code}: {said}")
        return Run(started, first_at, ended, code, output)

    def stop(self) -> None:
        """End containers, shims and containerd, unmount what they left. Again: does nothing."""
        if self._process.running:
            self._end_containers()
        super().stop()
        for pid in leftovers.processes_with("-address", str(self.socket)):
            leftovers.kill_with_children(pid)
        leftovers.unmount_below(self.directory)

    def _wait_ready(self) -> None:
        self._process.wait_until(self._serving)

    def _kill(self, name: str) -> None:
        try:
            self.ctr("tasks", "kill", "--signal", "SIGKILL", name)
        except ImgdistError:
            return  # it has just ended by itself

    def _end_containers(self) -> None:
        try:
            for name in self.ctr("tasks", "list", "--quiet").split():
                self.ctr("tasks", "delete", "--force", name)
            for name in self.ctr("containers", "list", "--quiet").split():
                self.ctr("containers", "delete", name)
        except ImgdistError:
            return  # killing the shims does it too, less politely

    def _ctr(self) -> list[str]:
        return [str(self.install.directory / "ctr"), "--address", str(self.socket), "--namespace", self.namespace]

    def _serving(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            if self.install.major >= 2:
                self.ctr("version")
            else:
                cri.status(self.socket)
        except ImgdistError:
            return False
        return True


class _Limit:
    """Calls `act` when the time last set is over; a context manager that calls it off. `reached`: it was called."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._timer: threading.Timer | None = None
        self.reached = False

    def set(self, seconds: float) -> None:
        self._call_off()
        self._timer = threading.Timer(seconds, self._over)
        self._timer.start()

    def _over(self) -> None:
        self.reached = True
        self._act()

    def _call_off(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()

    def __enter__(self) -> _Limit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call_off()


def configuration(major: int, directory: Path, snapshotter: Path | None, exports_root: Path | None) -> str:
    """containerd's TOML: everything below `directory`; the tables of deploy/containerd with our addresses."""
    lines = [
        f"version = {3 if major >= 2 else 2}",
        f'root = "{directory}/root"',
        f'state = "{directory}/state"',
        # NRI would bind a socket in /var/run.
        'disabled_plugins = ["io.containerd.nri.v1.nri"]' if major >= 2 else "disabled_plugins = []",
        "[grpc]",
        f'address = "{directory}/c.sock"',
        "[ttrpc]",
        f'address = "{directory}/c.sock.ttrpc"',
        '[plugins."io.containerd.internal.v1.opt"]',
        f'path = "{directory}/opt"',
    ]
    images = "io.containerd.cri.v1.images" if major >= 2 else "io.containerd.grpc.v1.cri"
    lines += [f'[plugins."{images}".registry]', f'config_path = "{directory}/certs.d"']
    if major >= 2:
        lines += ['[plugins."io.containerd.transfer.v1.local"]', f'config_path = "{directory}/certs.d"']
    if snapshotter is None:
        return "\n".join(lines) + "\n"
    lines += ["[proxy_plugins.imgdist]", 'type = "snapshot"', f'address = "{snapshotter}"']
    if major >= 2:
        lines += ['capabilities = ["remap-ids"]']
        if exports_root is not None:
            lines += ["[proxy_plugins.imgdist.exports]", f'root = "{exports_root}"']
            lines += ['enable_remote_snapshot_annotations = "true"']
        lines += [f'[plugins."{images}"]', 'snapshotter = "imgdist"']
        for name in ("imgdist", "overlayfs"):
            lines += ['[[plugins."io.containerd.transfer.v1.local".unpack_config]]']
            lines += ['platform = "linux"', f'snapshotter = "{name}"']
    else:
        lines += [f'[plugins."{images}".containerd]', 'snapshotter = "imgdist"', "disable_snapshot_annotations = false"]
    return "\n".join(lines) + "\n"


def _write_hosts(directory: Path, registry: str) -> None:
    folder = directory / registry
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(
        f'server = "http://{registry}"\n[host."http://{registry}"]\n  capabilities = ["pull", "resolve"]\n'
    )

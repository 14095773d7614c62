"""A node to be killed: registry and supernode beside it, the real holder with its children, one image mounted."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults import content
from faults.edge import Hook
from faults.link import Link
from faults.readers import Target
from parts import require_lazy_layers

from agent import launch
from agent.layers import loop
from imgdist import mountinfo
from imgdist.api import JsonApi
from imgdist.config import AgentConfig, load
from imgdist.demo import leftovers
from imgdist.demo.agent import IMGDIST, Supernode
from imgdist.demo.ports import free_port
from imgdist.demo.processes import Process, wait_until
from imgdist.demo.push import push
from imgdist.demo.registry import registry
from imgdist.errors import ImgdistError

_WORDS = {"view": "fuse.main", "agent": "agent.main", "supernode": "imgdist.cli"}
_EDGE = Path(__file__).with_name("edge.py")
_TOP = Path(__file__).parents[2]
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty settings (RFC 9113, 3.4)

FILLING = ("fill.quiet_s=0", "swarm.down_bytes_per_s=1000000")
"""Settings: layers are being filled all the while, slowly, whatever readers do."""


class Site:
    """A registry, a supernode, and an image of known content (faults/content.py) in both. `link` is what agents get
    chunk bodies through."""

    def __init__(
        self, directory: Path, address: str, reference: str, link: Link, layers: int, layer_blocks: int
    ) -> None:
        self.directory, self.reference, self.link = directory, reference, link
        self.layers, self.layer_blocks = layers, layer_blocks
        self._address, self._listen = address, f"127.0.0.1:{_port_pair()}"
        self.supernode = self._begin()

    def kill_supernode(self) -> None:
        """SIGKILL for the supernode and its children, and another one in its place."""
        for pid in (self.supernode.pid, *children(self.supernode.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.supernode.stop()
        self.supernode = self._begin()

    def _begin(self) -> Supernode:
        host, _, port = self._listen.partition(":")
        self.link.target = f"{host}:{int(port) + 1}"
        flags = ["--set", f"chunk_advertise=http://{self.link.address}"]
        made = Supernode(self.directory / "sn", self._listen, plain_http=[self._address], flags=flags)
        return made.__enter__()


@contextmanager
def site(directory: Path, *, layers: int, layer_blocks: int) -> Iterator[Site]:
    """A site with an image of `layers` layers, each with a file of so many blocks."""
    require_lazy_layers("docker-registry")
    with registry(directory / "registry", f"127.0.0.1:{free_port()}") as address, Link() as link:
        made = content.image(directory / "image", layers, layer_blocks)
        reference, _ = push(made, address, "known", "1")
        running = Site(directory, address, reference, link, layers, layer_blocks)
        try:
            running.supernode.preheat(reference)
            yield running
        finally:
            running.supernode.stop()


def children(pid: int) -> list[int]:
    """The processes that `pid`'s main thread has started and that live."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _port_pair() -> int:
    """A free port below another free one."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port


class Node:
    """An agent of `site` with the image mounted at `place`; a context manager that leaves nothing.

    `edges`: hooks (faults/edge.py) by role.
    """

    def __init__(
        self,
        site: Site,
        name: str,
        settings: Sequence[str] = (),
        *,
        edges: Mapping[str, Sequence[Hook]] | None = None,
    ) -> None:
        self.site, self._edges = site, edges or {}
        self.directory = site.directory / name
        self.root, self.run, self.place = (self.directory / part for part in ("root", "run", "m"))
        for path in (self.root, self.run, self.place):
            path.mkdir(parents=True)
        self._flags = {"root": str(self.root), "run": str(self.run), "supernode": site.supernode.url}
        self._flags |= {"mirror_listen": "", "peer_listen": f"127.0.0.1:{free_port()}"}
        self._settings = ("trace.enabled=false", "stop_timeout_s=3", *settings)
        self._process: Process | None = None

    def __enter__(self) -> Node:
        try:
            self.start()
            self.api.post("/v1/mounts", {"reference": self.site.reference, "directory": str(self.place)})
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin a holder, as the service manager does; returns once it serves."""
        environment = {**os.environ, "PYTHONPATH": str(_TOP), "PYTHONSAFEPATH": "1"}
        argv = self._with_edges() if self._edges else self._as_users_do()
        self._process = Process("holder", argv, self.directory / "agent.log", env=environment, stop_timeout_s=20)
        self._process.wait_for_line("ready")

    def _as_users_do(self) -> list[str]:
        argv = [*IMGDIST, "agent"]
        for key, value in self._flags.items():
            argv += [f"--{key.replace('_', '-')}", value]
        for setting in self._settings:
            argv += ["--set", setting]
        return argv

    def _with_edges(self) -> list[str]:
        """The holder itself, with a plan in which children run behind faults/edge.py."""
        config = load(AgentConfig, None, self._settings, {**self._flags, "supernode": (self._flags["supernode"],)})
        plan = launch.holder_plan(launch.absolute(config), lazy=True)
        for child in plan["children"]:
            if hooks := self._edges.get(child["role"]):
                python, _, module, *rest = child["argv"]
                child["argv"] = [python, str(_EDGE), json.dumps(list(hooks)), module, *rest]
        return [sys.executable, "-m", "agent.holder", json.dumps(plan)]

    @property
    def api(self) -> JsonApi:
        """The agent's API."""
        return JsonApi(f"unix://{self.run}/api.sock", "agent", timeout_s=60.0)

    @property
    def holder(self) -> int:
        """The holder's pid."""
        assert self._process is not None
        return self._process.pid

    def pid(self, role: str) -> int | None:
        """The process that has this role now; None between death and restart."""
        for child in children(self.holder):
            try:
                if _WORDS[role].encode() in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                    return child
            except OSError:
                continue
        return None

    def kill(self, role: str) -> float:
        """SIGKILL for "view" or "agent", and wait for its end; when that was (CLOCK_MONOTONIC)."""
        wait_until(lambda: self.pid(role) is not None, f"a {role} to be killed")
        pid = self.pid(role)
        assert pid is not None
        _kill(pid)
        return time.monotonic()

    def pause(self, role: str, seconds: float) -> None:
        """The process of "view" or "agent" does not run meanwhile (SIGSTOP)."""
        pid = self.pid(role)
        if pid is not None:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)

    def kill_holder(self) -> float:
        """SIGKILL for the holder alone: its children end with it. When all are gone."""
        assert self._process is not None
        ends = [os.pidfd_open(pid) for pid in children(self.holder)]
        os.kill(self.holder, signal.SIGKILL)
        for end in ends:
            assert select.select([end], [], [], 10)[0], "a child outlived its holder"
            os.close(end)
        self._process.stop()
        return time.monotonic()

    def layers(self) -> list[dict[str, Any]]:
        """As `imgdist layers --json`."""
        found: list[dict[str, Any]] = self.api.get("/v1/layers")
        return found

    def is_filling(self) -> bool:
        """Whether every layer of the image is still behind the view, with bytes missing."""
        return all(layer["state"] == "filling" for layer in self.layers())

    def present_share(self) -> float:
        """How much of the image is here, from 0 to 1."""
        layers = self.layers()
        return sum(layer["present_bytes"] for layer in layers) / sum(layer["size_bytes"] for layer in layers)

    def wait_agent(self, timeout_s: float = 20.0) -> None:
        """Until the agent answers its API."""
        wait_until(self._answers, "the agent's API", timeout_s)

    def _answers(self) -> bool:
        try:
            self.api.get("/v1/status")
        except ImgdistError:
            return False
        return True

    def greet_snapshotter(self, timeout_s: float = 20.0) -> float:
        """Seconds until the snapshotter socket speaks HTTP/2 to a caller who comes now, and calls again when cut off.
        The connection is taken at any time: its listener is the holder's."""
        begun = time.monotonic()
        while True:
            with socket.socket(socket.AF_UNIX) as caller:
                caller.settimeout(timeout_s)
                caller.connect(str(self.run / "snapshotter.sock"))
                try:
                    caller.sendall(_PREFACE)
                    if len(caller.recv(9)) == 9:  # a frame's header: its settings
                        return time.monotonic() - begun
                except (ConnectionError, BrokenPipeError):
                    pass
            if time.monotonic() - begun > timeout_s:
                raise AssertionError(f"the snapshotter socket does not speak HTTP/2 after {timeout_s} s")

    def mounts(self) -> dict[int, mountinfo.MountEntry]:
        """The mount of each layer, by the layer's number in the image."""
        entries = self._layer_mounts()
        found = {n: e for e in entries for n in range(self.site.layers) if (Path(e.path) / f"d{n}").exists()}
        assert len(found) == self.site.layers, entries
        return found

    def is_rescued(self) -> bool:
        """Whether every loop device shows a file of today's view again."""
        view = os.stat(self.run / "view").st_dev
        return all(loop.backing(entry.source).device == view for entry in self._layer_mounts())

    def is_local(self) -> bool:
        """Whether every loop device shows the layer's own image: none needs the view any more."""
        images = {(stat.st_dev, stat.st_ino) for stat in map(os.stat, self.root.glob("packs/*/image"))}
        shown = [loop.backing(entry.source) for entry in self._layer_mounts()]
        return all((backing.device, backing.inode) in images for backing in shown)

    def targets(self, *, fresh_per_s: float) -> list[Target]:
        """Each layer three ways: its loop device and its file past the page cache, its file through it."""
        found = []
        for number, entry in self.mounts().items():
            file = str(self.place / f"d{number}" / content.FILE)
            for path, how, shift in (
                (entry.source, "direct", content.DATA_AT),
                (file, "direct", 0),
                (file, "buffered", 0),
            ):
                found.append(Target(path, how, number, self.site.layer_blocks, shift, fresh_per_s / self.site.layers))
        return found

    def _layer_mounts(self) -> list[mountinfo.MountEntry]:
        return [entry for entry in mountinfo.entries() if entry.path.startswith(f"{self.root}/l/")]

    def log(self) -> str:
        """What holder and children have written."""
        log = self.directory / "agent.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def close(self) -> None:
        """Stop it, and take away mounts, loop devices and files."""
        if self._process is not None:
            self._process.stop()
        leftovers.clear(self.directory, leftovers.processes_with(str(self.run)))
        shutil.rmtree(self.root, ignore_errors=True)


def _kill(pid: int) -> None:
    end = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([end], [], [], 10)[0], f"process {pid} outlives SIGKILL"
    finally:
        os.close(end)

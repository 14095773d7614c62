"""A registry behind a shaped link, and fresh nodes in front of it, with and without imgdist."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from imgdist.demo import leftovers
from imgdist.demo.agent import Agent
from imgdist.demo.containerd import Containerd, Install
from imgdist.demo.image import Image
from imgdist.demo.interrupts import shielded
from imgdist.demo.link import Link
from imgdist.demo.push import push
from imgdist.demo.recipe import APPLICATION
from imgdist.demo.registry import registry
from imgdist.demo.start import Start, cold_start


class Site:
    """A registry behind a link of `bits_per_s`, and nodes in front of it; a context manager."""

    def __init__(self, install: Install, image: Image, bits_per_s: int) -> None:
        self._install, self._image, self._bits_per_s = install, image, bits_per_s
        self._rounds = 0
        self._undo = ExitStack()

    def __enter__(self) -> Site:
        with ExitStack() as undo:
            # Not /tmp, which may be memory: dropping the page cache would not make that cold.
            self.directory = Path(tempfile.mkdtemp(prefix="imgdist-", dir="/var/tmp"))
            undo.callback(leftovers.remove, self.directory)
            self._link = undo.enter_context(Link())
            address = f"{self._link.far}:5000"
            self._registry = undo.enter_context(
                registry(self.directory / "registry", address, inside=self._link.inside, reached_at=address)
            )
            self._reference, _ = push(self._image, self._registry, "demo/app", "first", mark="first")
            self._link.shape(self._bits_per_s)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with shielded():
            self._undo.close()

    def plain(self) -> Start:
        """An ordinary pull and start."""
        with self._containerd("p") as containerd:
            return self._start("plain", containerd)

    def first(self) -> Start:
        """The same through a fresh agent with a fresh supernode of its own."""
        directory = self._fresh("a")
        settings = ["stop_timeout_s=0"]
        with (
            Agent(directory, [], settings=settings, flags=["--plain-http", self._registry]) as agent,
            self._containerd("c", agent) as containerd,
        ):
            return self._start("first pull", containerd)

    def _start(self, what: str, containerd: Containerd) -> Start:
        warm = [*self._programs(), self.directory / "registry"]
        return cold_start(what, containerd, self._link.received_bytes, self._reference, APPLICATION, warm=warm)

    @contextmanager
    def _containerd(self, name: str, agent: Agent | None = None) -> Iterator[Containerd]:
        lazily = {"snapshotter": agent.snapshotter, "exports_root": agent.root} if agent is not None else {}
        with Containerd(self._install, self._fresh(name), plain_http=[self._registry], **lazily) as containerd:
            yield containerd

    def _programs(self) -> Sequence[Path]:
        return [*self._install.programs, *(Path(found) for name in ("runc",) if (found := shutil.which(name)))]

    def _fresh(self, name: str) -> Path:
        self._rounds += 1
        return self.directory / f"{name}{self._rounds}"

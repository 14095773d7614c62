"""The very first pull of an image: nothing converted anywhere. Plain containerd against imgdist, everything cold.

The registry is behind a shaped link. Plain containerd pulls, unpacks and runs. On the other side one agent with its
embedded supernode reads the registry over the same link, converts while it downloads, and the container starts once the
layers are sealed. Seconds run from the start of the pull to the first output of the demo image's program. Everything is
plain HTTP.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from bench.report import Report, Row
from imgdist.demo import leftovers, machine
from imgdist.demo.agent import Agent
from imgdist.demo.containerd import Containerd, Install, newest
from imgdist.demo.image import Image
from imgdist.demo.interrupts import interrupted_once, shielded
from imgdist.demo.link import Link
from imgdist.demo.push import push
from imgdist.demo.recipe import APPLICATION, demo_image
from imgdist.demo.registry import registry
from imgdist.demo.start import Start, cold_start

LINK_BITS_PER_S = 200_000_000
GOAL, ORIGIN_GOAL = 1.10, 1.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="starts of each kind [default: 3]")


def run(args: argparse.Namespace) -> Report:
    """Medians of `args.rounds` first pulls of each kind. Needs root and the demo's parts."""
    with interrupted_once():
        machine.check()
        machine.install_missing(machine.PACKAGES, _say)
        image, install = demo_image(_say), newest()
        with _Site(install, image) as site:
            plain, lazy = [], []
            for _ in range(args.rounds):
                plain.append(_told(site.plain()))
                lazy.append(_told(site.first()))
    outputs = {start.output for start in (*plain, *lazy)}
    origin = median(start.bytes_total for start in lazy) / image.layers_bytes
    rows = (
        Row("first pull / plain pull", _seconds(lazy) / _seconds(plain), GOAL),
        Row("bytes from the registry / image", origin, ORIGIN_GOAL),
        Row("different outputs", len(outputs), 1),
        Row("plain", _seconds(plain), unit="s"),
        Row("imgdist, nothing converted", _seconds(lazy), unit="s"),
        Row("of it until the pull returned", median(start.pulled_s for start in lazy), unit="s"),
        Row("image, compressed", image.layers_bytes / 1e6, unit="MB"),
    )
    note = (
        f"containerd {install.version}, {LINK_BITS_PER_S // 10**6} Mbit/s to the registry, medians of {args.rounds}, "
        "plain HTTP; bytes of the link's device, as it counts them"
    )
    return Report("first-pull", rows, note)


class _Site:
    """A registry behind a shaped link, and nodes in front of it; a context manager."""

    def __init__(self, install: Install, image: Image) -> None:
        self._install, self._image = install, image
        self._rounds = 0
        self._undo = ExitStack()

    def __enter__(self) -> _Site:
        with ExitStack() as undo:
            # Not /tmp, which may be memory: dropping the page cache would not make that cold.
            self.directory = Path(tempfile.mkdtemp(prefix="imgdist-", dir="/var/tmp"))
            undo.callback(self._remove)
            self._link = undo.enter_context(Link())
            address = f"{self._link.far}:5000"
            self._registry = undo.enter_context(
                registry(self.directory / "registry", address, inside=self._link.inside, reached_at=address)
            )
            self._reference, _ = push(self._image, self._registry, "demo/app", "first", mark="first")
            self._link.shape(LINK_BITS_PER_S)
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

    def _remove(self) -> None:
        for pid in leftovers.processes_below(self.directory):
            leftovers.kill_with_children(pid)
        leftovers.unmount_below(self.directory)
        leftovers.detach_loops_below(self.directory)
        shutil.rmtree(self.directory)


def _told(start: Start) -> Start:
    _say(f"{start.what}: {start.seconds:.2f} s, pulled in {start.pulled_s:.2f} s, {start.bytes_total / 1e6:.1f} MB")
    return start


def _seconds(starts: list[Start]) -> float:
    return median(start.seconds for start in starts)


def _say(text: str) -> None:
    print(f"first-pull: {text}", file=sys.stderr, flush=True)

"""What the agent's processes cost a node: memory with 50 layers, CPU at rest and while filling, a small memory cgroup.

CPU of a fill stands beside its floor (bench/floor.py), taken in the same run: of both the machine decides.

Agent, view and holder against a supernode of its own on loopback, no link limit. The image is of this machine's files;
first it is read whole as it comes (every read a miss, the most memory), then it fills undisturbed on a fresh agent.
Memory is the sum of the processes' Rss, so what they share (the interpreter) counts three times; Pss counts it once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from bench import floor
from bench.node import Site, image_of_this_machine, site
from bench.node_processes import NodeProcesses
from bench.report import Report, Row
from bench.sampling import Peak
from imgdist.demo.agent import COMPLETE_TIMEOUT_S, Agent
from imgdist.demo.image import Image
from imgdist.demo.interrupts import interrupted_once
from imgdist.demo.processes import wait_until
from imgdist.errors import ImgdistError
from imgdist.pack.index import Index

RSS_GOAL_MIB, IDLE_GOAL, FILL_GOAL = 100, 0.5, 2.5
FILL_RATIO_GOAL = 1.8
"""Of the agent's CPU to that of one thread that does nothing else: `FILL_GOAL` over the 1.4 of a calm machine."""
CGROUP_MIB = 64
_MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")
_SAMPLE_S = 0.05
_READERS = 4
_ASKING_S = 0.25  # the answer names fifty layers: asked often, it would be what is measured
_QUIET_S = 2.0  # before fill begins: mounting, whose cost is another row, has ended by then
_MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--layers", type=int, default=50, metavar="N", help="layers of the image [default: 50]")
    parser.add_argument("--layer-mb", type=int, default=10, metavar="N", help="content of each, MB [default: 10]")
    parser.add_argument(
        "--idle-s", type=float, default=20.0, metavar="S", help="how long rest is watched [default: 20]"
    )


def run(args: argparse.Namespace) -> Report:
    """Measure. Needs root, FUSE, EROFS and Debian's docker-registry."""
    with interrupted_once(), tempfile.TemporaryDirectory(prefix="imgdist-bench-", dir="/var/tmp") as temporary:
        _say(f"making an image of {args.layers} layers")
        image = image_of_this_machine(Path(temporary) / "image", args.layers, args.layer_mb * 1_000_000)
        with site() as place:
            reference = place.publish(image, "many")
            read = _read_whole(place, reference)
            filled = _fill(place, reference, args.idle_s)
            small, note = _in_cgroup(place, reference, image)
    note = f"{len(image.layers)} layers of {args.layer_mb} MB, plain HTTP on loopback; {note}"
    return Report("footprint", (*read, *filled, *small), note)


def _read_whole(place: Site, reference: str) -> list[Row]:
    """Every file read by several readers while nothing fills: each read a miss, the ring in use."""
    with place.agent("read", ["fill.mode=trace"]) as agent:
        node = NodeProcesses(agent)
        empty = sum(node.rss_mib().values())
        with Peak(lambda: sum(node.rss_mib().values()), _SAMPLE_S) as peak, _shown(agent, reference) as tree:
            mounted = sum(node.rss_mib().values())
            mounting_s = node.cpu_s()["agent"]
            _digests(tree)
    return [
        Row("RSS, every file read on demand, largest", peak.value, RSS_GOAL_MIB, "MiB"),
        Row("RSS, no layer", empty, unit="MiB"),
        Row("RSS, mounted", mounted, unit="MiB"),
        Row("agent CPU of start and mounting", mounting_s, unit="s"),
    ]


def _fill(place: Site, reference: str, idle_s: float) -> list[Row]:
    """Nobody reads: the layers fill, once they have been mounted, and are switched."""
    with place.agent("fill", [f"fill.quiet_s={_QUIET_S}"]) as agent:
        node = NodeProcesses(agent)
        with Peak(lambda: sum(node.rss_mib().values()), _SAMPLE_S) as peak, _shown(agent, reference):
            spent, present = node.cpu_s()["agent"], _present_bytes(agent)
            _await(agent.complete)
            fill_s, gb = node.cpu_s()["agent"] - spent, (_present_bytes(agent) - present) / 1e9
            _await(lambda: all(layer["state"] == "switched" for layer in agent.layers()))
            switched_s = node.cpu_s()["agent"] - spent
            rest, pss = node.rss_mib(), node.pss_mib()
            idle = _idle_percent(node, idle_s)
            indexes = [Index.load(path.read_bytes()) for path in (agent.root / "packs").glob("*/index")]
    floor_s = floor.cpu_s_a_gb(place.supernode.url, indexes, place.directory)
    return [
        Row("RSS, filled and switched, largest", peak.value, RSS_GOAL_MIB, "MiB"),
        Row("RSS, all switched, at rest", sum(rest.values()), RSS_GOAL_MIB, "MiB"),
        *(Row(f"RSS at rest: {role}", size, unit="MiB") for role, size in rest.items()),
        Row("Pss at rest", pss, unit="MiB"),
        Row("CPU at rest", idle, IDLE_GOAL, "%"),
        Row("agent CPU of fill, a GB raw", fill_s / gb, FILL_GOAL, "s/GB"),
        Row("CPU of one thread that takes the same chunks and does nothing else", floor_s, unit="s/GB"),
        Row("agent CPU of fill over that", fill_s / gb / floor_s, FILL_RATIO_GOAL, "x"),
        Row("agent CPU of fill and switches, a GB raw", switched_s / gb, unit="s/GB"),
        Row("filled", gb, unit="GB"),
    ]


def _await(condition: Callable[[], bool]) -> None:
    def holds() -> bool:
        time.sleep(_ASKING_S)
        return condition()

    wait_until(holds, "every layer filled and switched", COMPLETE_TIMEOUT_S)


def _present_bytes(agent: Agent) -> int:
    return sum(layer["present_bytes"] for layer in agent.layers())


def _in_cgroup(place: Site, reference: str, image: Image) -> tuple[list[Row], str]:
    """The same under a small memory limit, page cache included: whoever reads is outside."""
    if not _MEMORY_CGROUPS.is_dir():
        return [], "no memory cgroup (v1) on this machine: the limit was not tried"
    with _MemoryCgroup(CGROUP_MIB * _MIB) as cgroup:
        with cgroup.entered():
            agent = place.agent("small")
        seen: dict[str, str] = {}
        try:
            with agent, _shown(agent, reference) as tree:
                seen = _digests(tree)
                agent.wait_complete()
        except (ImgdistError, OSError) as error:
            _say(f"in {CGROUP_MIB} MiB: {error}")
        wrong = len(seen.items() ^ _expected(image).items())
        rows = [
            Row(f"files read wrong, agent in {CGROUP_MIB} MiB", wrong, 0),
            Row(f"killed for want of memory in {CGROUP_MIB} MiB", cgroup.kills(), 0),
            Row("memory of the cgroup, largest", cgroup.largest_mib(), None, "MiB"),
        ]
        return rows, f"{len(seen)} files read; the limit was hit {cgroup.hits()} times"


@contextmanager
def _shown(agent: Agent, reference: str) -> Iterator[Path]:
    """The image, mounted by `imgdist mount`'s API."""
    tree = agent.directory / "m"
    agent.mount(reference, tree)
    try:
        yield tree
    finally:
        agent.umount(tree)


def _digests(tree: Path) -> dict[str, str]:
    """sha256 of every file below `tree` by its path, read by several threads."""

    def digest(path: Path) -> tuple[str, str]:
        with path.open("rb") as file:
            return str(path.relative_to(tree)), hashlib.file_digest(file, "sha256").hexdigest()

    paths = [Path(top) / name for top, _, names in os.walk(tree) for name in names]
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(pool.map(digest, paths))


def _expected(image: Image) -> dict[str, str]:
    """sha256 of every file by its path, as the layers have them."""
    found = {}
    for layer in image.layers:
        with tarfile.open(image.path(layer)) as tar:
            for entry in tar:
                if (content := tar.extractfile(entry)) is not None:
                    found[entry.name] = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
    return found


class _MemoryCgroup:
    """A memory cgroup (v1) of its own; a context manager."""

    def __init__(self, limit_bytes: int) -> None:
        self._path = _MEMORY_CGROUPS / f"imgdist-bench-{os.getpid()}"
        self._path.mkdir()
        (self._path / "memory.limit_in_bytes").write_text(str(limit_bytes))

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Processes started inside belong to the cgroup, and what they start."""
        before = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line)
        (self._path / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            home = _MEMORY_CGROUPS / before.rpartition(":")[2].lstrip("/")
            (home / "cgroup.procs").write_text(str(os.getpid()))

    def kills(self) -> int:
        """Processes that the kernel killed because the limit was too small."""
        lines = (self._path / "memory.oom_control").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def hits(self) -> int:
        """How often memory had to be reclaimed to stay below the limit."""
        return int((self._path / "memory.failcnt").read_text())

    def largest_mib(self) -> float:
        """The most that was used at once."""
        return int((self._path / "memory.max_usage_in_bytes").read_text()) / _MIB

    def __enter__(self) -> _MemoryCgroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        wait_until(lambda: not (self._path / "cgroup.procs").read_text(), "the memory cgroup empty")
        self._path.rmdir()


def _idle_percent(node: NodeProcesses, watched_s: float) -> float:
    """CPU of all processes in percent of one core while nobody asks for anything."""
    before, started = sum(node.cpu_s().values()), time.monotonic()
    time.sleep(watched_s)
    return 100 * (sum(node.cpu_s().values()) - before) / (time.monotonic() - started)


def _say(text: str) -> None:
    print(f"footprint: {text}", file=sys.stderr, flush=True)

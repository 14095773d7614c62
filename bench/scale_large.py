"""Layers of uncommon size on their whole way: converted by a supernode, mounted by an agent, compared."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.node import Site, site
from bench.node_processes import NodeProcesses
from bench.report import Row
from bench.sampling import Peak
from bench.scale_images import BLOCK_BYTES, Fill, Numbers, large_files, many_files, of_one_layer

WORKER_GOAL_MIB, AGENT_GOAL_MIB = 256, 200
FILES, FILE_BYTES, EMPTY = 200_000, 2_000, 300_000
_SAMPLE_S = 0.02
_GB = 10**9


@dataclass(frozen=True, slots=True)
class _Kind:
    """A layer, and how many of its entries below a mount are wrong."""

    name: str
    fill: Fill
    wrong: Callable[[Path], int]


def large_rows(directory: Path, gigabytes: int, say: Callable[[str], None]) -> list[Row]:
    """Memory of the conversion and of the node, seconds of each step."""
    sizes = {"first": 6 * gigabytes * _GB // 10, **{f"rest{n}": gigabytes * _GB // 10 for n in range(4)}}
    kinds = (
        _Kind(f"{gigabytes} GB", large_files(sizes), lambda top: _wrong_large(top, sizes)),
        _Kind("200,000 files", many_files(FILES, FILE_BYTES), lambda top: _wrong_many(top, FILES, FILE_BYTES)),
        _Kind("300,000 empty files", many_files(EMPTY, 0), lambda top: _wrong_many(top, EMPTY, 0)),
    )
    with site() as place:
        return [row for number, kind in enumerate(kinds) for row in _rows_of(kind, number, place, directory, say)]


def _rows_of(kind: _Kind, number: int, place: Site, directory: Path, say: Callable[[str], None]) -> Iterator[Row]:
    say(f"making a layer of {kind.name}")
    image = of_one_layer(directory / f"large{number}", kind.fill)
    started = time.monotonic()
    with Peak(partial(_peak_below, place.supernode.pid), _SAMPLE_S) as peak:
        reference = place.publish(image, f"large{number}")
    converted_s = time.monotonic() - started
    say(f"{kind.name}: pushed and converted in {converted_s:.1f} s, worker {peak.value:.0f} MiB")
    with place.agent(f"large{number}", ["fill.mode=none"]) as agent:
        node = NodeProcesses(agent)
        tree = agent.directory / "m"
        started = time.monotonic()
        agent.mount(reference, tree)
        mounted_s = time.monotonic() - started
        wrong = kind.wrong(tree)
        rss = sum(node.peak_rss_mib().values())
        agent.umount(tree)
    yield Row(f"{kind.name}: entries wrong", wrong, 0)
    yield Row(f"{kind.name}: largest process of the supernode", peak.value, WORKER_GOAL_MIB, "MiB")
    yield Row(f"{kind.name}: agent, view and holder, largest", rss, AGENT_GOAL_MIB, "MiB")
    yield Row(f"{kind.name}: pushed and converted", converted_s, unit="s")
    yield Row(f"{kind.name}: mounted", mounted_s, unit="s")


def _wrong_large(top: Path, sizes: dict[str, int]) -> int:
    """Sizes, and of each file the first, a middle and the last whole block."""
    wrong = len(set(os.listdir(top)) ^ sizes.keys())
    for name, size in sizes.items():
        wrong += (top / name).stat().st_size != size
        with (top / name).open("rb") as file:
            for block in (0, size // BLOCK_BYTES // 2, size // BLOCK_BYTES - 1):
                file.seek(block * BLOCK_BYTES)
                wrong += file.read(BLOCK_BYTES) != Numbers(name).block(block)
    return wrong


def _wrong_many(top: Path, count: int, size_bytes: int) -> int:
    """Names and sizes of all, the content of each 997th."""
    expected = {f"{number // 1000:03}/{number % 1000:03}" for number in range(count)}
    wrong = 0
    for directory in os.scandir(top):
        for entry in os.scandir(directory.path):
            name = f"{directory.name}/{entry.name}"
            wrong += name not in expected or entry.stat().st_size != size_bytes
            expected.discard(name)
    for number in range(0, count if size_bytes else 0, 997):
        content = (top / f"{number // 1000:03}/{number % 1000:03}").read_bytes()
        wrong += not content.startswith(b"%08d" % number)
    return wrong + len(expected)


def _peak_below(pid: int) -> float:
    """The most memory (VmHWM of proc_pid_status(5), MiB) that any process has held that `pid` started, or it itself."""
    return max(map(_peak_mib, _family(pid)))


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has just ended
        return
    for child in children:
        yield from _family(child)


def _peak_mib(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError):  # it has ended
        return 0.0

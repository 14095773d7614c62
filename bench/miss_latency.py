"""What a read of an absent chunk costs, from the file system that containers see to the chunk server and back.

Everything is real: a read of 4 KiB on the overlay mount, EROFS, loop device, view, agent, chunk server, plain HTTP.
Each miss touches a chunk of 256 KiB that is not there yet, at a random place; reads come one at a time. The content is
this machine's shared objects and programs. Packs are in the supernode's page cache, the reader's cache is cold.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

from bench.miss_image import FILES, TREE, make
from bench.miss_node import Node, stopped_chunk_server
from bench.report import Report, Row
from imgdist.demo import caches, leftovers, machine
from imgdist.demo.agent import Supernode
from imgdist.demo.image import Image
from imgdist.demo.interrupts import interrupted_once
from imgdist.demo.link import Link
from imgdist.demo.ports import free_port
from imgdist.demo.processes import command
from imgdist.demo.push import push
from imgdist.demo.registry import registry

LINK_BITS_PER_S = 200_000_000
_LINK_BURST_BYTES = 16 * 1024
"""Far below a chunk, else a single one would look faster than the link."""
_ON_WIRE = 1514 / 1448
"""Bytes of full Ethernet frames over the bytes of the body that they carry."""
_LOCAL_GOAL_MS, _BEYOND_GOAL_MS, _P99_GOAL_MS, _HIT_GOAL_MS, _READS_GOAL = 1.0, 1.5, 20.0, 10.0, 40
_PARKED, _HITS = 100, 20
_BURSTS, _BURST, _PAUSE_S = 6, 6, 0.4
"""Of misses in a row, and a pause in which fill takes the link again (it waits for 0.3 s without a miss)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each kind [default: 5]")
    parser.add_argument("--size-mb", type=int, default=300, metavar="N", help="content of the image [default: 300]")
    parser.add_argument("--only", choices=("loopback", "own", "other"), help="measure one part (nothing else is held)")


def run(args: argparse.Namespace) -> Report:
    """Measure. Needs root and the demo's parts."""
    with interrupted_once(), ExitStack() as undo:
        machine.check()
        machine.install_missing(machine.PACKAGES, _say)
        # Not /tmp, which may be memory: dropping the page cache would not make that cold.
        directory = Path(tempfile.mkdtemp(prefix="imgdist-", dir="/var/tmp"))
        undo.callback(leftovers.remove, directory)  # an interrupt may have cut a part's own clean-up short
        link = undo.enter_context(Link())
        _say("making the image")
        image = make(directory / "image", args.size_mb * 1_000_000)
        address = undo.enter_context(registry(directory / "registry", f"{link.far}:5000", inside=link.inside))
        reference, _ = push(image, address, "bench/miss", "latest")
        bench = _Bench(directory, image, reference, args.rounds)
        near = ("--chunk-listen", f"127.0.0.1:{free_port()}")
        with Supernode(bench.packs, f"127.0.0.1:{free_port()}", plain_http=[address], flags=near) as supernode:
            _say("converting it")
            rows = bench.measure(supernode, [bench.on_loopback] if args.only in (None, "loopback") else [])
        with Supernode(bench.packs, f"{link.far}:7600", plain_http=[address], inside=link.inside) as supernode:
            link.shape(LINK_BITS_PER_S, burst_bytes=_LINK_BURST_BYTES)
            rows += bench.measure(supernode, [bench.beside_own_fill] if args.only in (None, "own") else [])
            rows += bench.measure(supernode, [bench.beside_another_fill] if args.only in (None, "other") else [])
    note = f"{args.rounds} rounds, chunks of 256 KiB, link {LINK_BITS_PER_S // 10**6} Mbit/s, plain HTTP"
    return Report("miss-latency", tuple(rows), note)


class _Bench:
    def __init__(self, directory: Path, image: Image, reference: str, rounds: int) -> None:
        self._directory = directory
        self._image = image
        self._reference = reference
        self._rounds = rounds
        self.packs = directory / "supernode"

    def measure(self, supernode: Supernode, parts: Sequence[Callable[[Supernode], list[Row]]]) -> list[Row]:
        supernode.preheat(self._reference)
        caches.warm([self.packs])
        return [row for part in parts for row in part(supernode)]

    def on_loopback(self, supernode: Supernode) -> list[Row]:
        with self._node("a", supernode, fill=False) as node:
            reads = _listing(node)  # first: whoever else drops this machine's page cache drops metadata, too
            misses = [[node.miss()[0] for _ in range(50)] for _ in range(self._rounds)]
            _tell("loopback", misses)
            hits = [self._hits_beside_misses(node, supernode) for _ in range(self._rounds)]
        return [
            Row("miss, supernode on loopback, p50", _p50(misses), _LOCAL_GOAL_MS, "ms"),
            Row("miss, supernode on loopback, p99", _p99(misses), None, "ms"),
            Row(f"hit beside {_PARKED} misses that wait, worst of {_HITS}", median(map(max, hits)), _HIT_GOAL_MS, "ms"),
            Row(f"hit beside {_PARKED} misses that wait, p50", _p50(hits), None, "ms"),
            Row(f"reads by ls -lR of {FILES:,} files", reads, _READS_GOAL),
        ]

    def beside_own_fill(self, supernode: Supernode) -> list[Row]:
        """Bursts of misses, and pauses long enough for fill to take the link: the first of each burst finds it busy."""
        misses: list[list[tuple[float, int]]] = []
        for number in range(self._rounds):
            with self._node(f"b{number}", supernode, fill=True) as node:
                misses.append([])
                for _ in range(_BURSTS):
                    time.sleep(_PAUSE_S)
                    misses[-1] += [node.miss() for _ in range(_BURST)]
        return _over_link("own fill", misses)

    def beside_another_fill(self, supernode: Supernode) -> list[Row]:
        """Misses in a row, while another node fills from the same supernode and never pauses."""
        misses = []
        with self._node("c", supernode, fill=False) as node:
            for number in range(self._rounds):
                with self._node(f"d{number}", supernode, fill=True) as other:
                    other.wait_filling()
                    misses.append([node.miss() for _ in range(40)])
                    if not other.is_filling:
                        _say("the other node was full before the misses ended: raise --size-mb")
        return _over_link("another node's fill", misses)

    def _hits_beside_misses(self, node: Node, supernode: Supernode) -> list[float]:
        with stopped_chunk_server(supernode):
            threads = node.start_misses(_PARKED)
            times = [node.hit() for _ in range(_HITS)]
            if node.waiting != _PARKED:
                raise RuntimeError(f"expected {_PARKED} reads that wait, seen {node.waiting}")
        for thread in threads:
            thread.join()
        return times

    def _node(self, name: str, supernode: Supernode, *, fill: bool) -> Node:
        return Node(self._directory / name, supernode, self._image, self._reference, fill=fill)


def _over_link(beside: str, misses: Sequence[Sequence[tuple[float, int]]]) -> list[Row]:
    took = [[ms for ms, _ in one] for one in misses]
    beyond = [[ms - body * _ON_WIRE * 8e3 / LINK_BITS_PER_S for ms, body in one] for one in misses]
    _tell(f"beside {beside}", took)
    _tell(f"beside {beside}, beyond the wire time", beyond)
    return [
        Row(f"miss beside {beside}, p50 beyond its wire time", _p50(beyond), _BEYOND_GOAL_MS, "ms"),
        Row(f"miss beside {beside}, p99", _p99(took), _P99_GOAL_MS, "ms"),
        Row(f"miss beside {beside}, p50", _p50(took), None, "ms"),
    ]


def _listing(node: Node) -> int:
    """Reads that reach the view in a cold `ls -lR`; metadata came in with the mount."""
    before = node.view_reads()
    listed = command("ls", "-lR", node.mount / TREE)
    files = sum(line.startswith("-") for line in listed.splitlines())
    if files != FILES:
        raise RuntimeError(f"ls -lR: expected {FILES} files, seen {files}")
    return node.view_reads() - before


def _p50(rounds: Sequence[Sequence[float]]) -> float:
    return median(map(median, rounds))


def _p99(rounds: Sequence[Sequence[float]]) -> float:
    """Of all rounds together: one has too few."""
    return quantiles((value for one in rounds for value in one), n=100)[-1]


def _tell(what: str, rounds: Sequence[Sequence[float]]) -> None:
    told = ", ".join(f"{median(one):.2f}" for one in rounds)
    _say(f"{what}: p50 of each round {told} ms; p99 {_p99(rounds):.2f}; load {os.getloadavg()[0]:.1f}")


def _say(text: str) -> None:
    print(f"miss-latency: {text}", file=sys.stderr, flush=True)

"""The very first pull of an image: nothing converted anywhere. Plain containerd against imgdist, everything cold.

The registry is behind a shaped link. Plain containerd pulls, unpacks and runs. On the other side one agent with its
embedded supernode reads the registry over the same link, converts while it downloads, and the container starts once the
layers are sealed. Seconds run from the start of the pull to the first output of the demo image's program. Everything is
plain HTTP. With --nodes, as many nodes with one supernode do so at once (bench/first_pull_swarm.py).
"""

from __future__ import annotations

import argparse
import sys
from statistics import median

from bench import first_pull_swarm
from bench.first_pull_site import Site
from bench.report import Report, Row
from imgdist.demo import machine
from imgdist.demo.containerd import newest
from imgdist.demo.interrupts import interrupted_once
from imgdist.demo.recipe import demo_image
from imgdist.demo.start import Start

LINK_BITS_PER_S = 200_000_000
GOAL, ORIGIN_GOAL = 1.10, 1.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="starts of each kind [default: 3]")
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes that pull at once [default: one, nobody else]")
    parser.add_argument("--rate-mbit", type=int, metavar="R", help="of each link, with --nodes [default: 400 / N]")


def run(args: argparse.Namespace) -> Report:
    """Medians of `args.rounds` first pulls of each kind. Needs root and the demo's parts."""
    if args.nodes is not None:
        return first_pull_swarm.measure(args.nodes, args.rate_mbit or 400 // args.nodes, args.rounds, _say)
    with interrupted_once():
        machine.check()
        machine.install_missing(machine.PACKAGES, _say)
        image, install = demo_image(_say), newest()
        with Site(install, image, LINK_BITS_PER_S) as site:
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


def _told(start: Start) -> Start:
    _say(f"{start.what}: {start.seconds:.2f} s, pulled in {start.pulled_s:.2f} s, {start.bytes_total / 1e6:.1f} MB")
    return start


def _seconds(starts: list[Start]) -> float:
    return median(start.seconds for start in starts)


def _say(text: str) -> None:
    print(f"first-pull: {text}", file=sys.stderr, flush=True)

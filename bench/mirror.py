"""Ordinary pulls through the mirrors: a cluster that pulls one image at once, and one client of a mirror that has it.

Crowd: each node is a network namespace with a real agent, whose mirror skopeo pulls from; registry and supernode, which
has read nothing yet, share another; all links are shaped to one rate each way. T is when the last skopeo has all of the
image and has checked its digests, F what it is in the registry, T* the bound of those links (bench/swarm_bound.py).
Warm: curl reads one blob from the mirror of a node that has it, and from nginx the same file, both over loopback.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench.mirror_crowd import crowd
from bench.mirror_image import random_image
from bench.mirror_warm import warm
from bench.report import Report
from bench.swarm_rig import Rig
from imgdist.demo.interrupts import interrupted_once
from imgdist.demo.star import goodput_bytes_per_s

_ALL_MBIT = 200
"""Of all nodes together: with their clients two cores carry some 300."""
_PULL_S = 40.0
_LAYERS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--nodes", type=int, default=16, metavar="N", help="nodes that pull at once [default: 16]")
    parser.add_argument("--rate-mbit", type=int, metavar="R", help="of each link [default: 200 Mbit/s over all nodes]")
    parser.add_argument("--size-mb", type=int, metavar="N", help="image, MB [default: 40 s of a link]")
    parser.add_argument("--warm-mb", type=int, default=256, metavar="N", help="blob of the warm mirror [default: 256]")
    parser.add_argument("--only", choices=["crowd", "warm"], help="this alone [default: both]")


def run(args: argparse.Namespace) -> Report:
    """Measure. Needs root, FUSE, EROFS, iproute2 and Debian's docker-registry, skopeo, curl and nginx-light."""
    rate_mbit = args.rate_mbit or max(1, _ALL_MBIT // args.nodes)
    size_mb = args.size_mb or round(goodput_bytes_per_s(rate_mbit * 1e6) * _PULL_S / 1e6)
    nodes = 1 if args.only == "warm" else args.nodes
    with interrupted_once(), tempfile.TemporaryDirectory(prefix="imgdist-bench-", dir="/var/tmp") as temporary:
        image = random_image(Path(temporary) / "image", [size_mb * 1_000_000 // _LAYERS] * _LAYERS)
        large = random_image(Path(temporary) / "large", [args.warm_mb * 1_000_000])
        with Rig(nodes) as rig:
            rows = [] if args.only == "warm" else crowd(rig, image, rate_mbit * 1_000_000, _say)
            rows += [] if args.only == "crowd" else warm(rig, large)
    return Report("mirror", tuple(rows), f"{nodes} nodes, {rate_mbit} Mbit/s each way, {size_mb} MB, plain HTTP")


def _say(text: str) -> None:
    print(f"mirror: {text}", file=sys.stderr, flush=True)

"""A swarm: every node of a cluster told at once to mount the same image, against the least time that the links allow.

Each node is a network namespace with a real agent, registry and supernode share another; all links are shaped to one
rate each way. T is when the last node is complete, F what one image is on the wire, T* the bound (bench/swarm_bound.py)
with a link's goodput, 1448 of 1514 bytes of its rate, as its capacity. Scenarios: plain (nothing else happens),
seed-killed and tracker-killed (the supernode is killed half-way and comes back, soon or late), half-speed (every fifth
node's link has half the rate), hostile (every fifth node lies), baseline (skopeo copies from the registry, no imgdist).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.node import image_of_this_machine
from bench.report import Report, Row
from bench.swarm_cluster import Cluster
from bench.swarm_hostile import hostile
from bench.swarm_rig import Rig
from bench.swarm_scenarios import FILLS
from bench.swarm_starts import lazy
from imgdist.demo.image import Image
from imgdist.demo.interrupts import interrupted_once
from imgdist.demo.star import CONGESTION_CONTROL, goodput_bytes_per_s

RATES_MBIT = {4: 100, 8: 50, 16: 25}
"""At most so much: two cores carry some 400 Mbit/s of swarm, everything on one machine."""
_FILL_S = 20.0
_RATIO = 0.33
"""What this machine's files shrink to on the wire; only the image's size follows from it."""
_LAYERS = 3
SCENARIOS: dict[str, Callable[[Cluster], list[Row]]] = {**FILLS, "hostile": hostile, "lazy": lazy}
"""By name, in the order in which `all` runs them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--nodes", type=int, default=4, metavar="N", help="nodes that want the image [default: 4]")
    parser.add_argument("--rate-mbit", type=int, metavar="R", help="of each link [default: 400 Mbit/s over all nodes]")
    parser.add_argument("--size-mb", type=int, metavar="N", help="content of the image, MB [default: 20 s of a link]")
    parser.add_argument(
        "--scenario",
        action="append",
        choices=[*SCENARIOS, "all"],
        help="what happens; may be given several times [default: plain]",
    )


def run(args: argparse.Namespace) -> Report:
    """Measure. Needs root, FUSE, EROFS, iproute2 and Debian's docker-registry."""
    chosen = args.scenario or ["plain"]
    names = list(SCENARIOS) if "all" in chosen else list(dict.fromkeys(chosen))
    rate_mbit = args.rate_mbit or RATES_MBIT.get(args.nodes, max(1, 400 // args.nodes))
    size_mb = args.size_mb or round(goodput_bytes_per_s(rate_mbit * 1e6) * _FILL_S / _RATIO / 1e6)
    with interrupted_once(), tempfile.TemporaryDirectory(prefix="imgdist-bench-", dir="/var/tmp") as temporary:

        def image() -> Image:
            _say(f"making an image of {size_mb} MB")
            return image_of_this_machine(Path(temporary) / "image", _LAYERS, size_mb * 1_000_000 // _LAYERS)

        with Rig(args.nodes + Cluster.others_of(args.nodes)) as rig:
            cluster = Cluster(rig, args.nodes, rate_mbit * 1_000_000, image, _say)
            rows = [row for name in names for row in _scenario(name, cluster)]
            delay = "no delay" if rig.can_delay else "no delay (the kernel has no netem)"
    note = f"{args.nodes} nodes, {rate_mbit} Mbit/s each way, {delay}, {CONGESTION_CONTROL}, plain HTTP"
    return Report("swarm", tuple(rows), note)


def _scenario(name: str, cluster: Cluster) -> list[Row]:
    _say(name)
    return SCENARIOS[name](cluster)


def _say(text: str) -> None:
    print(f"swarm: {text}", file=sys.stderr, flush=True)

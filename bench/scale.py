"""Images with many layers, nodes with many mounts, layers of uncommon size.

start: 128 layers of 1 MiB against the same files squashed into one, through the demo's link, first nothing traced, then
with the trace of an earlier start; the program reads one file of each layer. Pulled again for another namespace
(containerd 2.x), the 128 cost what containerd and the answers to it take where every layer is mounted: what the first
pull cannot go below. mounts: 500 layers of one node, all shown by the view. large: layers of 10 GB, of 200,000 files
and of 300,000 empty ones, converted by a supernode and mounted by an agent; what is shown is compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from bench.report import Report, Row
from bench.scale_images import of_layers
from bench.scale_large import large_rows
from bench.scale_mounts import mount_rows
from imgdist.demo import machine
from imgdist.demo.containerd import newest
from imgdist.demo.interrupts import interrupted_once
from imgdist.demo.stack import Pushed, Stack
from imgdist.errors import ImgdistError

LINK_BITS_PER_S = 200_000_000
LAYERS, START_GOAL = 128, 1.5
_READ_ONE_OF_EACH = ("/bin/sh", "-c", "cat /n/*/07 >/dev/null; echo read")
_UNTRACED = ("trace.enabled=false",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--part", action="append", choices=sorted(_PARTS), help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="starts of each kind [default: 3]")
    parser.add_argument("--gigabytes", type=int, default=10, metavar="N", help="of the largest layer [default: 10]")


def run(args: argparse.Namespace) -> Report:
    """Measure. Needs root, the demo's parts and Debian's busybox-static; 35 GB of disk for `large`."""
    with interrupted_once(), tempfile.TemporaryDirectory(prefix="imgdist-bench-", dir="/var/tmp") as temporary:
        machine.check()
        machine.install_missing(machine.PACKAGES, _say)
        parts = args.part or sorted(_PARTS)
        rows = [row for part in parts for row in _PARTS[part](args, Path(temporary))]
    return Report("scale", tuple(rows), f"{LINK_BITS_PER_S // 10**6} Mbit/s for the starts, else loopback; plain HTTP")


def _start(args: argparse.Namespace, directory: Path) -> list[Row]:
    many, one = of_layers(directory, LAYERS)
    with Stack(newest(), bits_per_s=LINK_BITS_PER_S) as stack:
        pushed = {"many": stack.push(many, "many"), "one": stack.push(one, "one")}
        for image in pushed.values():
            stack.preheat(image)
        untraced = _starts(stack, pushed, args.rounds, _UNTRACED)
        again = _pull_again(stack, pushed["many"].reference, args.rounds) if stack.install.major >= 2 else []
        for name, image in pushed.items():
            if not stack.lazy(name, image, _READ_ONE_OF_EACH, filled=True, traced=True).traced:
                raise ImgdistError(
                    f"scale: expected a start of {name} to leave a trace at the supernode, there is none"
                )
        traced = _starts(stack, pushed, args.rounds)
    return [*_compared("start", untraced), *_compared("start with a trace", traced), *again]


def _starts(
    stack: Stack, pushed: Mapping[str, Pushed], rounds: int, settings: Sequence[str] = ()
) -> Mapping[str, float]:
    """Median seconds of each image, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in pushed}
    for _ in range(rounds):
        for name, image in pushed.items():
            start = stack.lazy(name, image, _READ_ONE_OF_EACH, settings=settings)
            seconds[name].append(start.seconds)
            _say(f"{name}: {start.seconds:.2f} s, pulled in {start.pulled_s:.2f} s")
    return {name: median(each) for name, each in seconds.items()}


def _compared(what: str, seconds: Mapping[str, float]) -> list[Row]:
    return [
        Row(f"{what}, {LAYERS} layers / squashed", seconds["many"] / seconds["one"], START_GOAL),
        Row(f"{what}, {LAYERS} layers", seconds["many"], unit="s"),
        Row(f"{what}, squashed", seconds["one"], unit="s"),
    ]


def _pull_again(stack: Stack, reference: str, rounds: int) -> list[Row]:
    first, again = [], []
    for _ in range(rounds):
        with stack.node(_UNTRACED) as (_, containerd):
            first.append(_timed(lambda: containerd.pull(reference)))
            containerd.namespace = "again"
            again.append(_timed(lambda: containerd.pull(reference)))
        _say(f"many: pulled in {first[-1]:.2f} s, for another namespace in {again[-1]:.2f} s")
    return [
        Row(f"pull, {LAYERS} layers", median(first), unit="s"),
        Row(f"pull, {LAYERS} layers, all mounted before", median(again), unit="s"),
    ]


def _timed(act: Callable[[], None]) -> float:
    started = time.monotonic()
    act()
    return time.monotonic() - started


_PARTS: dict[str, Callable[[argparse.Namespace, Path], list[Row]]] = {
    "start": _start,
    "mounts": lambda args, directory: mount_rows(directory, _say),
    "large": lambda args, directory: large_rows(directory, args.gigabytes, _say),
}


def _say(text: str) -> None:
    print(f"scale: {text}", file=sys.stderr, flush=True)

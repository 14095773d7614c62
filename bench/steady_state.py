"""A complete layer against overlayfs on ext4: the same files, read and started in the same run.

Once complete and switched, a layer is the kernel's alone: EROFS on a loop device on a file of ext4, below overlayfs.
Beside it plain containerd has unpacked the same images into directories of ext4, below overlayfs. Both sides are
mounted by containerd and read in turns; a ratio is the median of the ratios of its rounds, as the speed of the disk
itself varies by half from second to second. Cold: page cache, dentries and inodes dropped before. The tree and the
start are the demo image's, sequential and random reads those of one large file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.node import Site, site
from bench.report import Report, Row
from imgdist.demo import caches, machine
from imgdist.demo.containerd import Containerd, Install, newest
from imgdist.demo.image import Image, ImageWriter, member
from imgdist.demo.interrupts import interrupted_once
from imgdist.demo.processes import command, wait_until
from imgdist.demo.recipe import APPLICATION, demo_image
from imgdist.demo.start import cold_start

SEQUENTIAL_GOAL, ARCHIVE_GOAL, RANDOM_GOAL, START_GOAL = 0.95, 0.95, 0.85, 1.1
_MIB = 1 << 20
_LARGE = "large"
_RANDOM_SHARE = 4  # of the large file's blocks one in so many is read, each once: never a block that is warm already


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="measurements of each kind [default: 9]")
    parser.add_argument("--large-mb", type=int, default=512, metavar="N", help="size of the large file [default: 512]")


def run(args: argparse.Namespace) -> Report:
    """Measure. Needs root, the demo's parts and fio."""
    with interrupted_once():
        machine.check()
        machine.install_missing(machine.PACKAGES | {"fio": "fio"}, _say)
        install = newest()
        with site() as place:
            large = _large_image(place.directory / "large-image", args.large_mb * _MIB)
            references = [place.publish(image, name) for image, name in ((demo_image(_say), "demo"), (large, _LARGE))]
            with _both_sides(place, install, references) as (ours, plain):
                rows = _reads(ours, plain, args.rounds)
                rows += _starts(ours, plain, references[0], args.rounds)
    return Report("steady-state", tuple(rows), f"containerd {install.version}, medians of {args.rounds}")


@dataclass(frozen=True, slots=True)
class _Side:
    """A containerd and where it has mounted the demo image's tree and the large file's image."""

    name: str
    containerd: Containerd
    tree: Path
    large: Path


@contextmanager
def _both_sides(place: Site, install: Install, references: list[str]) -> Iterator[tuple[_Side, _Side]]:
    with ExitStack() as stack:
        agent = stack.enter_context(place.agent("a", ["switch.idle_s=0"]))
        sides = []
        for name, socket, exports in (("imgdist", agent.snapshotter, agent.root), ("overlayfs", None, None)):
            directory = place.directory / name[0]
            containerd = Containerd(
                install, directory, snapshotter=socket, exports_root=exports, plain_http=[place.registry]
            )
            stack.enter_context(containerd)
            for reference in references:
                containerd.pull(reference)
            trees = [stack.enter_context(_mounted(containerd, reference)) for reference in references]
            sides.append(_Side(name, containerd, trees[0], trees[1] / _LARGE))
        wait_until(
            lambda: (
                all(layer["state"] in ("complete", "switched") for layer in agent.layers())
                and any(layer["state"] == "switched" for layer in agent.layers())
            ),
            "every layer complete and switched",
            120,
        )
        yield sides[0], sides[1]


@contextmanager
def _mounted(containerd: Containerd, reference: str) -> Iterator[Path]:
    """The image's root file system as containerd mounts it for reading."""
    target = containerd.directory / f"m{len(list(containerd.directory.glob('m*')))}"
    target.mkdir()
    containerd.ctr("images", "mount", "--snapshotter", containerd.snapshotter, reference, str(target))
    try:
        yield target
    finally:
        command("umount", target)


def _reads(ours: _Side, plain: _Side, rounds: int) -> list[Row]:
    rows = []
    kinds: tuple[tuple[str, Callable[[_Side], float], float, str], ...] = (
        ("sequential", lambda side: _sequential(side.large), SEQUENTIAL_GOAL, "MB/s"),
        ("tar c", lambda side: _archive(side.tree), ARCHIVE_GOAL, "1/s"),
        ("random 4 KiB", lambda side: _random(side.large), RANDOM_GOAL, "IOPS"),
    )
    for what, measure, goal, unit in kinds:
        for state, prepare in (("cold", caches.drop), ("warm", lambda: None)):
            values: dict[str, list[float]] = {ours.name: [], plain.name: []}
            if state == "warm":
                caches.warm([ours.large, plain.large, ours.tree, plain.tree])
            for number in range(rounds):
                for side in (ours, plain) if number % 2 else (plain, ours):
                    prepare()
                    values[side.name].append(measure(side))
            _say(f"{what}, {state}: {values}")
            ratio = median(mine / theirs for mine, theirs in zip(*values.values(), strict=True))
            rows.append(Row(f"{what}, {state} / overlayfs", ratio, goal, at_least=True))
            rows += [Row(f"{what}, {state}, {name}", median(seen), unit=unit) for name, seen in values.items()]
    return rows


def _starts(ours: _Side, plain: _Side, reference: str, rounds: int) -> list[Row]:
    """Start of a container to its first output, nothing to pull, page cache cold but for the runtime's programs."""
    seconds: dict[str, list[float]] = {ours.name: [], plain.name: []}
    outputs = set()
    for number in range(rounds):
        for side in (ours, plain) if number % 2 else (plain, ours):
            programs = side.containerd.install.programs
            start = cold_start(side.name, side.containerd, lambda: 0, reference, APPLICATION, warm=programs, pull=False)
            seconds[side.name].append(start.seconds)
            outputs.add(start.output)
    _say(f"starts: {seconds}")
    ours_s, plain_s = median(seconds[ours.name]), median(seconds[plain.name])
    return [
        Row("start of a container, cold / overlayfs", ours_s / plain_s, START_GOAL),
        Row("start, imgdist", ours_s, unit="s"),
        Row("start, overlayfs", plain_s, unit="s"),
        Row("different outputs", len(outputs), 1),
    ]


def _sequential(file: Path) -> float:
    """MB/s of reading the file in 1 MiB pieces."""
    buffer = bytearray(_MIB)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        started, size = time.monotonic(), 0
        while count := os.readv(descriptor, [buffer]):
            size += count
        return size / 1e6 / (time.monotonic() - started)
    finally:
        os.close(descriptor)


def _archive(tree: Path) -> float:
    """How often a second `tar c` of the tree would be done."""
    started = time.monotonic()
    # A pipe: GNU tar does not read the files if its archive is /dev/null.
    command("sh", "-c", 'tar -C "$0" -cf - . | cat > /dev/null', str(tree))
    return 1 / (time.monotonic() - started)


def _random(file: Path) -> float:
    """IOPS of buffered reads of 4 KiB, one at a time, of blocks chosen at random, each once."""
    answer = command(
        "fio", "--name=random", f"--filename={file}", "--readonly", "--rw=randread", "--bs=4k", "--ioengine=psync",
        f"--io_size={file.stat().st_size // _RANDOM_SHARE}", "--randseed=7", "--invalidate=0", "--output-format=json",
    )  # fmt: skip
    iops: float = json.loads(answer)["jobs"][0]["read"]["iops"]
    return iops


def _large_image(directory: Path, size: int) -> Image:
    """One layer with one file that does not compress."""
    writer = ImageWriter(directory, level=0)
    with open("/dev/urandom", "rb") as content:
        writer.add_layer("large", lambda tar: tar.addfile(member(_LARGE, size=size, mode=0o644), content))
    return writer.finish(command=["/bin/true"])


def _say(text: str) -> None:
    print(f"steady-state: {text}", file=sys.stderr, flush=True)

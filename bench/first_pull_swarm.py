"""The very first pull of an image by many nodes at once, beside one plain pull over a link of the same rate.

Registry, supernode and each node have a link of their own, all of one rate each way. The nodes' agents are up; nothing
is converted. Seconds run from the order to mount to the first output of the slowest node's program; those of the plain
pull, by containerd on one node, from the start of the pull.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from statistics import median

from bench.first_pull_site import Site
from bench.report import Report, Row
from bench.swarm_lazy import Starts, start_all
from bench.swarm_rig import Rig
from imgdist.demo import caches, machine
from imgdist.demo.containerd import newest
from imgdist.demo.image import Image
from imgdist.demo.interrupts import interrupted_once
from imgdist.demo.push import push
from imgdist.demo.recipe import APPLICATION, demo_image

GOAL, ORIGIN_GOAL = 1.25, 1.01


def measure(nodes: int, rate_mbit: int, rounds: int, say: Callable[[str], None]) -> Report:
    """Medians of `rounds` of each kind. Needs root and the demo's parts."""
    with interrupted_once():
        machine.check()
        machine.install_missing(machine.PACKAGES, say)
        image, install = demo_image(say), newest()
        plain, together, origin = [], [], []
        with Site(install, image, rate_mbit * 1_000_000) as site:
            for _ in range(rounds):
                plain.append(site.plain())
                say(f"plain: {plain[-1].seconds:.1f} s")
        with Rig(nodes, apart=True) as rig:
            for number in range(rounds):
                starts, sent = _first(rig, image, f"r{number}", rate_mbit * 1_000_000)
                together.append(starts)
                origin.append(sent / image.layers_bytes)
                each = " ".join(f"{start.seconds:.1f}" for start in sorted(starts.each, key=lambda one: one.seconds))
                say(f"first outputs after {each} s; from the registry {origin[-1]:.4f} of the image")
    slowest, alone = median(starts.slowest_s for starts in together), median(start.seconds for start in plain)
    answers = {_answer(start.output) for starts in together for start in starts.each}
    answers |= {_answer(start.output.encode()) for start in plain}
    rows = (
        Row("slowest of first pulls / one plain pull", slowest / alone, GOAL),
        Row("bytes from the registry / image", median(origin), ORIGIN_GOAL),
        Row("different answers", len(answers), 1),
        Row("plain", alone, unit="s"),
        Row("slowest", slowest, unit="s"),
        Row("fastest", median(min(start.seconds for start in starts.each) for starts in together), unit="s"),
        Row("mounted, last", median(max(one.mounted_s for one in starts.each) for starts in together), unit="s"),
        Row("CPU of nodes and programs over all cores", _cpu_s(together), unit="s"),
        Row("machine busy meanwhile", 100 * median(starts.busy for starts in together), unit="%"),
        Row("image, compressed", image.layers_bytes / 1e6, unit="MB"),
    )
    note = (
        f"{nodes} nodes, each link {rate_mbit} Mbit/s each way, medians of {rounds}, plain HTTP; no runc in the swarm"
    )
    return Report("first-pull", rows, note)


def _cpu_s(together: list[Starts]) -> float:
    """What the starts would take if nothing but the machine's cores held them up, without the supernode's share."""
    return median(starts.cpu_s for starts in together) / (os.cpu_count() or 1)


def _first(rig: Rig, image: Image, tag: str, bits_per_s: int) -> tuple[Starts, int]:
    """Starts on fresh nodes with a fresh supernode, and the bytes that the registry sent until the last one."""
    rig.unshape()
    reference, _ = push(image, rig.registry, "first", tag, mark=tag)
    rig.renew_supernode()
    with rig.agents(rig.spokes) as nodes:
        caches.drop()
        caches.warm([rig.directory / "registry"])
        rig.shape(bits_per_s)
        before = rig.registry_wrote_bytes()
        starts = start_all(nodes, reference, APPLICATION)
        return starts, rig.registry_wrote_bytes() - before


def _answer(output: bytes) -> bytes:
    """What the program prints last: outside of a container it is also told of devices that it misses."""
    return output.strip().rpartition(b"\n")[2]

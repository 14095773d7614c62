"""Every node of a cluster pulls one image through its own mirror at once; nobody has any of it yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import mean, median

from bench.machine_time import MachineTime
from bench.report import Row
from bench.swarm_bound import Link, least_seconds
from bench.swarm_rig import Node, Rig
from imgdist.demo.image import Image
from imgdist.demo.processes import command
from imgdist.demo.push import push
from imgdist.demo.star import goodput_bytes_per_s
from imgdist.errors import ImgdistError
from imgdist.pack.kinds import raw_chunks

MIRROR = "127.0.0.1:7650"
GOAL, ORIGIN_GOAL = 1.4, 1.01


def crowd(rig: Rig, image: Image, bits_per_s: int, say: Callable[[str], None]) -> list[Row]:
    """Pull `image` on every node of `rig`. Raises ImgdistError with what a client says that fails."""
    push(image, rig.registry, "crowd", "bench")
    blobs = (*image.layers, image.config)
    size = sum(blob.size_bytes for blob in blobs)
    rig.shape(bits_per_s)
    try:
        with rig.agents(rig.spokes, mirror_listen=MIRROR) as nodes:
            read, sent = rig.registry_wrote_bytes(), rig.datacenter.traffic().sent
            cpu = _cpu_s(nodes)
            machine, started = MachineTime(rig.namespaces), time.monotonic()
            with ThreadPoolExecutor(len(nodes)) as pool:
                ended = list(pool.map(lambda node: pull(rig, node), nodes))
            took = [at - started for at in ended]
            busy, others = machine.busy_share(), machine.others_share()
            read, sent = rig.registry_wrote_bytes() - read, rig.datacenter.traffic().sent - sent
            cpu = _cpu_s(nodes) - cpu
    finally:
        rig.unshape()
    say(f"first node {min(took):.1f} s, median {median(took):.1f} s, last {max(took):.1f} s; cores {busy:.0%} busy")
    full = goodput_bytes_per_s(bits_per_s)
    link = Link(full, full)
    least = least_seconds(size, sum(raw_chunks(blob.size_bytes) for blob in blobs), link, [link] * len(nodes))
    return [
        Row("crowd: T / T*", max(took) / least, GOAL),
        Row("crowd: from the registry / F", read / (size + image.manifest.size_bytes), ORIGIN_GOAL),
        Row("crowd: from the supernode / F", sent / size),
        Row("crowd: T", max(took), unit="s"),
        Row("crowd: T*", least, unit="s"),
        Row("crowd: cores busy", 100 * busy, unit="%"),
        Row("crowd: cores busy with what is not the cluster's", 100 * others, unit="%"),
        Row("crowd: an agent's CPU, a GB of the image", cpu / (size / 1e9), unit="s/GB"),
    ]


def _cpu_s(nodes: Sequence[Node]) -> float:
    """Of one node's agent, on average."""
    return mean(sum(node.processes.cpu_s().values()) for node in nodes)


def pull(rig: Rig, node: Node) -> float:
    """Copy the image by way of the node's mirror, layers side by side as engines do (skopeo's `dir:` takes one after
    the other), digests checked by skopeo; when it was done (time.monotonic)."""
    source = f"docker://{MIRROR}/{rig.registry.replace(':', '_')}/crowd:bench"
    flags = ("--quiet", "--insecure-policy", "--src-tls-verify=false")
    try:
        command(*node.spoke.inside, "skopeo", "copy", *flags, source, f"oci:{node.agent.directory / 'pulled'}:bench")
    except ImgdistError as error:
        raise ImgdistError(f"{error}\n{node.agent.log} ends:\n{node.agent.log.read_text()[-2000:]}") from None
    return time.monotonic()

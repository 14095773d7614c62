"""The least time in which a datacenter's links bring an image to every node: what a swarm is measured against. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log2


@dataclass(frozen=True, slots=True)
class Link:
    """What a node's link carries at best, TCP payload in bytes per second each way."""

    up: float
    down: float


def least_seconds(size_bytes: int, chunks: int, seed: Link, nodes: Sequence[Link]) -> float:
    """T*: `size_bytes` in `chunks` pieces from one seed to all `nodes`, who may help each other.

    The slowest of three (Mundinger et al. 2008): the seed sends each byte once, the slowest node receives each byte
    once, all uplinks together send each byte to each node. Then the pipeline: a chunk reaches the last of N nodes by
    floor(log2 N) hops after the first, each a chunk's time long.
    """
    uplinks = seed.up + sum(node.up for node in nodes)
    capacity = max(
        size_bytes / seed.up,
        size_bytes / min(node.down for node in nodes),
        len(nodes) * size_bytes / uplinks,
    )
    return capacity * (1 + floor(log2(len(nodes))) / chunks)

"""Who takes part in a simulated swarm, and the account of what they did."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.swarm.holdings import Holding
from agent.swarm.policy import Policy
from agent.swarm.simulation.seeder import Seeder

LAYER = 0
"""What all policies call the one layer."""


@dataclass(slots=True)
class Tally:
    """What came of a run. Bytes are of chunk bodies, times in seconds from the start and rising; `fast_done_at`: of the
    nodes that are not slow."""

    done_at: list[float] = field(default_factory=list)
    fast_done_at: list[float] = field(default_factory=list)
    supernode_bytes: int = 0
    supernode_requests: int = 0
    supernode_busy: int = 0
    peer_bytes: int = 0
    peer_requests: int = 0
    peer_busy: int = 0
    flushes: int = 0
    duplicate_bytes: int = 0
    died: int = 0
    links: int = 0


class Source:
    """An uplink, with what stands behind it. A supernode has a `seeder`; `have` is what a peer's neighbours know of."""

    __slots__ = ("died_at", "free_at", "have", "queue", "rate", "seeder")

    def __init__(self, rate: float, seeder: Seeder | None = None) -> None:
        self.rate = rate
        self.free_at = 0.0
        self.queue: deque[float] = deque()  # when each answer that was taken on will have left
        self.have = Holding()
        self.seeder = seeder
        self.died_at = float("inf")


class Node:
    """A downlink, and what comes over it. `lacks`: neither here nor asked for. Times infinite: nothing is planned."""

    __slots__ = (
        "flush_at",
        "flushed_at",
        "free_at",
        "have",
        "is_slow",
        "lacks",
        "look_at",
        "missing",
        "policy",
        "rate",
        "requests",
        "source",
        "unflushed",
    )

    def __init__(self, chunks: int, rate: float, is_slow: bool, source: Source, policy: Policy) -> None:
        self.rate = rate
        self.is_slow = is_slow
        self.source = source
        self.policy = policy
        self.free_at = 0.0
        self.have = 0
        self.lacks = (1 << chunks) - 1
        self.missing = chunks
        self.requests: dict[Request, None] = {}  # in the order in which they went out
        self.unflushed = 0
        self.flushed_at = float("-inf")
        self.flush_at = float("inf")
        self.look_at = float("inf")


class Request:
    """`bits` are its chunks, once it is taken on; `sent_at`: when its answer's last byte has left."""

    __slots__ = ("asked_at", "bits", "chunks", "node", "sent_at", "size", "source")

    def __init__(self, node: Node, source: Source, chunks: Sequence[int], size: int, asked_at: float) -> None:
        self.node = node
        self.source = source
        self.chunks = chunks
        self.bits = 0
        self.size = size
        self.asked_at = asked_at
        self.sent_at = 0.0

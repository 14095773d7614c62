"""What is simulated, and the least time any swarm could take for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agent.swarm.asks import Limits
from agent.swarm.news import FLUSH_CHUNKS, FLUSH_LEAST_S, FLUSH_S
from imgdist.wire.slots import BUSY_AFTER_S


@dataclass(frozen=True, slots=True)
class Scenario:
    """N nodes that start together without any of M equal chunks, and one supernode that has all. Rates in bit/s."""

    nodes: int = 1000
    chunks: int = 1000
    chunk_bytes: int = 100_000
    up_bits: float = 1e9
    down_bits: float = 1e9
    supernode_bits: float = 1e9
    latency_s: float = 0.00025
    """One way, of every message."""
    loss: float = 0.0
    """Share of packets lost: it lowers every rate, and as many requests stall for one retransmission timeout."""
    slow_share: float = 0.0
    slow_factor: float = 0.5
    """Nodes with so much of both rates."""
    dying_share: float = 0.0
    """Nodes that vanish (no answer any more), at a random moment within the first T*."""
    supernode_dies_at: float | None = None
    """In T*; another one, which has all chunks and knows of no receivers, takes its place `replaced_after_s` later."""
    replaced_after_s: float = 1.0
    silence_s: float = 1.0
    """Until a vanished source is noticed."""
    start_jitter_s: float = 0.0
    head_bytes: int = 0
    """What each node takes of the supernode itself before it fills: the index, and metadata nobody else has yet."""
    cores: int = 0
    """All nodes share a machine of so many, as those of `bench swarm` do; 0: each has one that is fast enough."""
    request_cpu_s: float = 0.0028
    chunk_cpu_s: float = 0.0017
    """What a request and each of its chunks cost such a machine, both ends and the kernel: together what 16 real nodes
    at 25 Mbit/s spent, 24.5 CPU-s for each GB received or sent [measured on two cores with other work beside it]."""
    zones: int = 0
    """Equal zones of nodes; 0: one for each 40 nodes."""
    random_neighbours: int = 8
    zone_neighbours: int = 4
    flush_s: float = FLUSH_S
    flush_least_s: float = FLUSH_LEAST_S
    flush_chunks: int = FLUSH_CHUNKS
    """How old have-lists get."""
    busy_after_s: float = BUSY_AFTER_S
    """A source with four requests and a longer queue refuses."""
    super_seeding: bool = True
    """The supernode chooses what it has sent least; otherwise any chunk asked for, at random."""
    limits: Limits = field(default_factory=Limits)
    seed: int = 1

    @property
    def layer_bytes(self) -> int:
        """F."""
        return self.chunks * self.chunk_bytes

    @property
    def zone_count(self) -> int:
        """How many zones there are."""
        return self.zones or -(-self.nodes // 40)

    @property
    def slow_nodes(self) -> int:
        """How many have lower rates: the first ones."""
        return round(self.nodes * self.slow_share)

    def least_time_s(self, of_fast: bool = False) -> float:
        """T* = max(F/u_s, F/d_min, N F/(u_s + sum of u)); `of_fast`: with d of the nodes that are not slow."""
        size = self.layer_bytes * 8
        slow = self.slow_nodes
        ups = self.supernode_bits + self.up_bits * (self.nodes - slow + slow * self.slow_factor)
        down = self.down_bits * (self.slow_factor if slow and not of_fast else 1.0)
        return max(size / self.supernode_bits, size / down, self.nodes * size / ups)

    @property
    def pipeline(self) -> float:
        """1 + floor(log2 N)/M: what whole chunks add where all uplinks are equal."""
        return 1 + math.floor(math.log2(self.nodes)) / self.chunks

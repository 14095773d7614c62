"""What a simulated run shows, in figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.swarm.simulation.actors import Tally
from agent.swarm.simulation.scenario import Scenario
from agent.swarm.simulation.tracker import control

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
"""Of the nodes, for percentiles of when they are complete."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A scenario, and what came of it."""

    scenario: Scenario
    tally: Tally

    @property
    def seconds(self) -> float:
        """T: until the last node that lives has everything."""
        return self.tally.done_at[-1]

    @property
    def ratio(self) -> float:
        """T/T*."""
        return self.seconds / self.scenario.least_time_s()

    def percentile(self, share: float) -> float:
        """Seconds until so many of the nodes have everything."""
        return _percentile(self.tally.done_at, share)

    @property
    def fast_ratio(self) -> float:
        """The last of the nodes that are not slow, by what bounds those; as `ratio` if there is none."""
        if not self.tally.fast_done_at:
            return self.ratio
        return self.tally.fast_done_at[-1] / self.scenario.least_time_s(of_fast=True)

    @property
    def supernode_share(self) -> float:
        """Bytes that supernodes sent, in F."""
        return self.tally.supernode_bytes / self.scenario.layer_bytes

    @property
    def origin_share(self) -> float:
        """Bytes from the registry, in F: a supernode reads a layer once, and so does the one that takes its place."""
        return 1.0 if self.scenario.supernode_dies_at is None else 2.0

    @property
    def cpu_s_per_gb(self) -> float:
        """What the machine that all nodes share (`Scenario.cores`) did for each GB that was received or sent."""
        tally, scenario = self.tally, self.scenario
        crossed = tally.peer_bytes + tally.supernode_bytes
        spent_s = (tally.peer_requests + tally.supernode_requests) * scenario.request_cpu_s
        spent_s += crossed / scenario.chunk_bytes * scenario.chunk_cpu_s
        return spent_s / (2 * crossed / 1e9)

    def document(self) -> dict[str, Any]:
        """For machines. Times in seconds, `..._ratio` in T*, `..._share` in F."""
        scenario, tally = self.scenario, self.tally
        least = scenario.least_time_s()
        plane = control(tally.done_at, scenario.chunks, tally.flushes, tally.links / scenario.nodes)
        return {
            "nodes": scenario.nodes,
            "chunks": scenario.chunks,
            "chunk_bytes": scenario.chunk_bytes,
            "up_bits_per_s": scenario.up_bits,
            "down_bits_per_s": scenario.down_bits,
            "supernode_bits_per_s": scenario.supernode_bits,
            "latency_seconds": scenario.latency_s,
            "seed": scenario.seed,
            "least_seconds": least,
            "pipeline": scenario.pipeline,
            "seconds": self.seconds,
            "ratio": self.ratio,
            **{f"{name}_seconds": self.percentile(share) for name, share in SHARES.items()},
            **{f"{name}_ratio": self.percentile(share) / least for name, share in SHARES.items()},
            "fast_nodes_ratio": self.fast_ratio,
            "completed": len(tally.done_at),
            "died": tally.died,
            "origin_share": self.origin_share,
            "supernode_share": self.supernode_share,
            "supernode_requests": tally.supernode_requests,
            "supernode_refused": tally.supernode_busy,
            "peer_requests": tally.peer_requests,
            "peer_refused": tally.peer_busy,
            "duplicate_share_per_node": tally.duplicate_bytes / scenario.layer_bytes / scenario.nodes,
            "tracker_messages_per_s": plane.tracker_messages / self.seconds,
            "tracker_bytes_per_node": plane.tracker_bytes / scenario.nodes,
            "tracker_bytes_per_node_per_s": plane.tracker_bytes / scenario.nodes / self.seconds,
            "have_messages_per_node_per_s": plane.have_messages / scenario.nodes / self.seconds,
            "have_bytes_per_node": plane.have_bytes / scenario.nodes,
        }

    def table(self) -> str:
        """For people."""
        scenario, tally, told = self.scenario, self.tally, self.document()
        times = ", ".join(f"{100 * share:g} % {told[f'{name}_ratio']:.3f}" for name, share in SHARES.items())
        refused = told["supernode_refused"] / max(1, told["supernode_requests"])
        rows = [
            ("swarm", f"{scenario.nodes} nodes, {scenario.chunks} chunks of {scenario.chunk_bytes / 1000:g} kB"),
            ("links", f"{_mega(scenario.up_bits)} up, {_mega(scenario.down_bits)} down,"
             f" supernode {_mega(scenario.supernode_bits)}, {scenario.latency_s * 1000:g} ms"),
            ("least time T*", f"{told['least_seconds']:.2f} s (whole chunks: x {scenario.pipeline:.3f})"),
            ("all complete", f"{self.seconds:.2f} s = {self.ratio:.3f} T*; {times}"),
            ("from the registry", f"{self.origin_share:.2f} F"),
            ("from the supernode", f"{self.supernode_share:.2f} F; {tally.supernode_requests} requests,"
             f" {refused:.0%} of them refused"),
            ("from peers", f"{tally.peer_requests} requests, {tally.peer_busy / max(1, tally.peer_requests):.0%}"
             f" of them refused; {told['duplicate_share_per_node']:.3%} twice"),
            ("tracker", f"{told['tracker_messages_per_s']:.0f} messages/s,"
             f" {told['tracker_bytes_per_node_per_s']:.0f} bytes/s a node"),
            ("have-lists", f"{told['have_messages_per_node_per_s']:.0f} messages/s a node,"
             f" {told['have_bytes_per_node'] / 1000:.0f} kB a node"),
        ]  # fmt: skip
        if scenario.slow_nodes:
            rows.insert(4, ("nodes not slow", f"{self.fast_ratio:.3f} of the bound without slow downlinks"))
        if tally.died:
            rows.insert(4, ("vanished", f"{tally.died} nodes"))
        return "\n".join(f"{name:<20}{value}" for name, value in rows)


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def _mega(bits: float) -> str:
    return f"{bits / 1e6:g} Mbit/s"

"""The scenario lazy: the demo's image started everywhere at once, beside one node alone with the same links."""

from __future__ import annotations

import os
from collections.abc import Sequence

from bench.report import Row
from bench.swarm_cluster import Cluster
from bench.swarm_lazy import Starts, start_all, touched_bytes
from bench.swarm_rig import Published
from imgdist.demo.processes import wait_until
from imgdist.demo.recipe import APPLICATION, demo_image

SLOWEST_GOAL, FOREIGN_GOAL, FETCHED_GOAL = 1.5, 1.15, 1.3
MISS_P99_GOAL_MS = 20.0
_OTHER = ("/bin/sh", "-c", "cat /usr/bin/* | wc -c")
"""A program that reads much of the image, little of which the application does."""
_TRACE_S = 30.0


def lazy(cluster: Cluster) -> list[Row]:
    """Starts alone and together; without a trace, with one, with that of another program."""
    starts = _Starts(cluster)
    traced, foreign = starts.recorded("traced", APPLICATION), starts.recorded("foreign", _OTHER)
    touched = touched_bytes(cluster.rig.supernode, traced)
    alone, alone_traced = starts.alone(starts.fresh()), starts.alone(traced)
    together, together_traced = starts.together(starts.fresh()), starts.together(traced)
    misled = starts.together(foreign)
    runs = (alone, alone_traced, together, together_traced, misled)
    cores = os.cpu_count() or 1
    fetched = max(start.received_bytes for start in together_traced.each)
    return [
        Row("lazy: slowest / alone, without trace", together.slowest_s / alone.slowest_s, SLOWEST_GOAL),
        Row("lazy: slowest / alone, with trace", together_traced.slowest_s / alone_traced.slowest_s, SLOWEST_GOAL),
        Row(
            "lazy: slowest with another program's trace / without", misled.slowest_s / together.slowest_s, FOREIGN_GOAL
        ),
        Row("lazy: fetched before output / touched, with trace, most", fetched / touched, FETCHED_GOAL),
        Row("lazy: miss p99, without trace", 1e3 * together.wait_s(0.99), MISS_P99_GOAL_MS, "ms"),
        Row("lazy: different outputs", len({start.output for run in runs for start in run.each}), 1),
        Row("lazy: miss p50, without trace", 1e3 * together.wait_s(0.5), unit="ms"),
        Row("lazy: miss p99 alone", 1e3 * alone.wait_s(0.99), unit="ms"),
        Row("lazy: alone, without trace", alone.slowest_s, unit="s"),
        Row("lazy: alone, with trace", alone_traced.slowest_s, unit="s"),
        Row("lazy: slowest, without trace", together.slowest_s, unit="s"),
        Row("lazy: slowest, with trace", together_traced.slowest_s, unit="s"),
        Row("lazy: touched", touched / 1e6, unit="MB"),
        Row("lazy: CPU of all, without trace, over all cores", together.cpu_s / cores, unit="s"),
        Row("lazy: CPU of the program, alone", alone.each[0].program_cpu_s, unit="s"),
        Row("lazy: CPU of agent, view and holder, alone", alone.each[0].node_cpu_s, unit="s"),
    ]


class _Starts:
    """Starts of the demo's image on a cluster. A tag of its own is a manifest of its own: nobody's trace."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._rig = cluster.rig
        self._image = demo_image(cluster.say)
        self._tags = 0

    def fresh(self) -> Published:
        """The image under a name of which no start was recorded."""
        self._tags += 1
        return self._publish(f"untraced-{self._tags}")

    def recorded(self, tag: str, argv: Sequence[str]) -> Published:
        """The image with the trace of `argv`, over a link as in the starts to come: how far the kernel reads ahead
        depends on it."""
        published = self._publish(tag)
        self._cluster.shape()
        with self._rig.agents(self._cluster.spokes[:1]) as nodes:
            start_all(nodes, published.reference, argv)
            # An agent that stops tells what it has not told yet.
            wait_until(lambda: self._trace(published) is not None, f"trace of {tag}", _TRACE_S)
        return published

    def _trace(self, published: Published) -> bytes | None:
        return self._rig.supernode.trace(published.manifest_digest)

    def alone(self, published: Published) -> Starts:
        return self._run("alone", published, 1)

    def together(self, published: Published) -> Starts:
        return self._run("together", published, len(self._cluster.spokes))

    def _run(self, what: str, published: Published, nodes: int) -> Starts:
        self._rig.restart_supernode()
        self._cluster.shape()
        with self._rig.agents(self._cluster.spokes[:nodes]) as running:
            starts = start_all(running, published.reference, APPLICATION)
        told = " ".join(f"{start.seconds:.1f}" for start in starts.each)
        self._cluster.say(f"{what}, {published.reference.rpartition(':')[2]}: first output after {told} s")
        return starts

    def _publish(self, tag: str) -> Published:
        self._rig.unshape()
        return self._rig.publish(self._image, "lazy", tag)

"""The scenario hostile: every fifth member of the swarm lies."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from prometheus_client.parser import text_string_to_metric_families

from bench.hostile_peer import Victim
from bench.report import Row
from bench.swarm_cluster import Cluster
from bench.swarm_rig import PEER_PORT, Node
from imgdist.demo.processes import Process

SLOWER_GOAL = 1.5
LIES_GOAL = 3
"""Chunks for which an agent may get one peer's lies before that peer is out."""


def hostile(cluster: Cluster) -> list[Row]:
    """The same fill without liars and with them."""
    without = cluster.fill()
    reference = cluster.published.reference
    cluster.rig.restart_supernode()
    cluster.shape()
    with _liars(cluster) as liars, cluster.rig.agents(cluster.spokes) as nodes:
        done = cluster.fill_by(nodes, reference)
        rejected = max(_rejected(node) for node in nodes) / len(liars)
        told = [victim for liar in liars for victim in _end(liar)]
    asked = Counter[str]()
    for victim in told:
        asked[victim.lie] += victim.chunks
        cluster.say(f"{victim.lie!r} answered {victim.requests} requests of one agent for {victim.chunks} chunks")
    return [
        Row("hostile: T / T without liars", done.seconds / without.seconds, SLOWER_GOAL),
        Row("hostile: wrong bytes", done.wrong_bytes + without.wrong_bytes, 0),
        Row("hostile: lies that an agent took from a liar, most", rejected, LIES_GOAL),
        Row("hostile: agents that were lied to", len(told)),
        *(Row(f"hostile: chunks asked of who answers {lie!r}", count) for lie, count in asked.items()),
        Row("hostile: T", done.seconds, unit="s"),
        Row("hostile: T without liars", without.seconds, unit="s"),
    ]


@contextmanager
def _liars(cluster: Cluster) -> Iterator[Sequence[Process]]:
    """A hostile peer in each of the other namespaces, members before any agent is."""
    rig = cluster.rig
    with ExitStack() as running:
        liars = []
        for number, spoke in enumerate(cluster.others):
            what = (f"{spoke.address}:{PEER_PORT}", rig.supernode.url, cluster.published.reference)
            argv = [*spoke.inside, sys.executable, "-m", "bench.hostile_peer", *what]
            log = rig.directory / f"liar{number}.log"
            log.unlink(missing_ok=True)
            argv += [str(rig.supernode.root), str(number)]
            liars.append(running.enter_context(Process("hostile peer", argv, log)))
        for liar in liars:
            liar.wait_for_line("ready")
        yield liars


def _end(liar: Process) -> list[Victim]:
    """Its own account of whom it lied to."""
    liar.stop()
    victims = json.loads(liar.written().splitlines()[-1])
    return [Victim(**victim) for victim in victims.values()]


def _rejected(node: Node) -> int:
    """Chunks of peers that the node's agent refused."""
    return sum(
        int(sample.value)
        for family in text_string_to_metric_families(node.agent.metrics())
        for sample in family.samples
        if sample.name == "imgdist_chunk_rejected_total" and sample.labels["source"] == "peer"
    )

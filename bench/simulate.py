"""The swarm, simulated with the agents' own policy: T/T* at up to 10,000 nodes, with slow nodes and a killed supernode.

T* = max(F/u_s, F/d, N F/(u_s + N u)): the least time that the links allow. Links are equal where nothing is said, which
is the hardest case: the supernode has just time to send each chunk once.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from agent.swarm.simulation import Outcome, Scenario, simulate
from bench.report import Report, Row

_RATIO, _LAST = 1.25, 1.5
"""Of T*: until all nodes are complete; until 99.9 % are."""
_LINK = 1e9
_RIG = Scenario(nodes=16, chunks=1000, up_bits=25e6, down_bits=25e6, supernode_bits=25e6)
_HEAD_BYTES = 100_000
"""Index and metadata of an image of 60 MB, less what peers pass on (a guess)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of its own."""
    parser.add_argument("--nodes", type=int, default=1000, metavar="N", help="default 1000; the goals are for 10000")
    parser.add_argument("--chunks", type=int, default=2000, metavar="M", help="default 2000")


def run(args: argparse.Namespace) -> Report:
    """A swarm of `--nodes`, and the ways in which it could fail; small ones like those of `bench swarm`."""
    swarm = Scenario(nodes=args.nodes, chunks=args.chunks, up_bits=_LINK, down_bits=_LINK, supernode_bits=_LINK)
    few = Scenario(nodes=min(args.nodes, 300), chunks=1000, up_bits=2e8, down_bits=2e8, supernode_bits=2e8)
    started = time.monotonic()
    outcome = _simulate(swarm)
    took = time.monotonic() - started
    requests = outcome.tally.peer_requests + outcome.tally.supernode_requests
    least = swarm.least_time_s()
    plane = outcome.document()
    name = f"{swarm.nodes} nodes, {swarm.chunks} chunks"
    slow = _simulate(replace(few, slow_share=0.2))
    killed = _simulate(replace(few, supernode_dies_at=0.5))
    dying = _simulate(replace(few, dying_share=0.05))
    shared = _simulate(replace(_RIG, chunk_bytes=60_000, cores=2, head_bytes=_HEAD_BYTES))
    rig, fast = _simulate(_RIG), _simulate(replace(_RIG, supernode_bits=_RIG.up_bits * 10))
    rows = (
        Row(f"{name}: all complete", outcome.ratio, _RATIO, "T*"),
        Row(f"{name}: 99.9 % complete", outcome.percentile(0.999) / least, _LAST, "T*"),
        Row(f"{name}: sent by the supernode", outcome.supernode_share, 2.0, "F"),
        Row(f"{few.nodes} nodes, 20 % at half speed: all", slow.ratio, _LAST, "T*"),
        Row(f"{few.nodes} nodes, 20 % at half speed: the others", slow.fast_ratio, _LAST, "T*"),
        Row(f"{few.nodes} nodes, supernode killed and replaced", killed.ratio, _LAST, "T*"),
        Row(f"{few.nodes} nodes, 5 % vanish", dying.ratio, _LAST, "T*"),
        Row("16 nodes at 25 Mbit/s: all complete", rig.ratio, _RATIO, "T*"),
        Row("16 nodes at 25 Mbit/s on two cores: all complete", shared.ratio, None, "T*"),
        Row("16 nodes at 25 Mbit/s on two cores: CPU, a GB received or sent", shared.cpu_s_per_gb, None, "s/GB"),
        Row("16 nodes: sent by the supernode", rig.supernode_share, 2.0, "F"),
        Row("16 nodes, its link 10 times theirs: sent by it", fast.supernode_share, 2.0, "F"),
        Row("tracker", plane["tracker_messages_per_s"], None, "messages/s"),
        Row("tracker, each node", plane["tracker_bytes_per_node_per_s"], None, "B/s"),
        Row("have-lists, each node", plane["have_bytes_per_node"] / 1000, None, "kB"),
        Row("the simulation itself, each request", took / requests * 1e6, None, "us"),
    )
    return Report("simulate", rows, f"seed {swarm.seed}; T* {least:.2f} s, x {swarm.pipeline:.3f} with whole chunks")


def _simulate(scenario: Scenario) -> Outcome:
    print(f"simulating {scenario.nodes} nodes, {scenario.chunks} chunks", file=sys.stderr, flush=True)
    return simulate(scenario)

"""The tracker of one supernode process under 10,000 agents: what their joining and their reports cost.

The agents are simulated by one other process, their traffic is real: a WebSocket each over loopback, from an address of
its own, joining at random within a minute, probed back there, then reporting every 5 s as agents do while they fill
(less up to a fifth, at random), and every 60 s as those do that are complete. CPU is the supernode's control process
(user and system), in percent of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import Report, Row
from imgdist.demo.agent import Supernode
from imgdist.demo.interrupts import interrupted_once
from imgdist.demo.ports import free_port
from imgdist.errors import UnsupportedError
from imgdist.wire.tracker import PEERS_MAX

CPU_GOAL_PERCENT = 40.0
_SPARE_FILES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--agents", type=int, default=10_000, metavar="N", help="simulated agents [default: 10000]")
    parser.add_argument("--join-s", type=float, default=60, metavar="S", help="they join within [default: 60]")
    parser.add_argument("--fill-s", type=float, default=30, metavar="S", help="measured while filling [default: 30]")
    parser.add_argument("--rest-s", type=float, default=60, metavar="S", help="measured when complete [default: 60]")


def run(args: argparse.Namespace) -> Report:
    """Measure. Raises UnsupportedError if this machine does not allow that many connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < args.agents + _SPARE_FILES:
        raise UnsupportedError(f"ulimit -Hn {most}: expected {args.agents + _SPARE_FILES} for {args.agents} agents")
    with interrupted_once(), _supernode() as supernode:
        bare_mib = _rss_mib(supernode.pid)
        with _agents(supernode.url, args.agents) as agents:
            joined, filling, resting = (
                _phase(agents, supernode.pid, what, seconds)
                for what, seconds in (("join", args.join_s), ("fill", args.fill_s), ("rest", args.rest_s))
            )
            members = _figure(supernode.url, "imgdist_swarm_members")
            reachable = _figure(supernode.url, "imgdist_swarm_members_reachable")
            full_mib = _rss_mib(supernode.pid)
    errors = [error for phase in (joined, filling, resting) for error in phase.tally["errors"]]
    for error in errors[:10]:
        _say(error)
    waits = sorted(joined.tally["join_to_peers_s"]) or [float("inf")]
    rows = [
        Row("members", members, args.agents, at_least=True),
        Row("members probed back", reachable, args.agents, at_least=True),
        Row("errors", len(errors), 0),
        Row("joining, CPU", joined.cpu_percent, 100, "% of a core"),
        Row("joining, messages in", joined.tally["sent_messages"] / joined.seconds, unit="1/s"),
        Row("JOIN to PEERS, median", waits[len(waits) // 2] * 1000, unit="ms"),
        Row("JOIN to PEERS, p99", waits[int(len(waits) * 0.99)] * 1000, unit="ms"),
        Row(f"peers told at JOIN, of at most {PEERS_MAX}", joined.tally["told_at_join"] / len(waits)),
        *_steady("filling", filling),
        *_steady("complete", resting),
        Row("resident memory", full_mib, unit="MiB"),
        Row("resident memory of an agent", (full_mib - bare_mib) * 1024 / args.agents, unit="KiB"),
    ]
    return Report("tracker", tuple(rows), f"{args.agents} agents joined within {args.join_s:g} s; 8 swarms each")


@dataclass(frozen=True, slots=True)
class _Phase:
    """What the agents tell of some seconds, and the supernode's CPU meanwhile."""

    tally: dict[str, Any]
    seconds: float
    cpu_percent: float


def _phase(agents: subprocess.Popen[str], pid: int, what: str, seconds: float) -> _Phase:
    assert agents.stdin is not None
    assert agents.stdout is not None
    _say(f"{what}: {seconds:g} s")
    cpu_s, started = _cpu_s(pid), time.monotonic()
    print(what, seconds, file=agents.stdin, flush=True)
    tally = json.loads(agents.stdout.readline())
    took_s = time.monotonic() - started
    return _Phase(tally, took_s, (_cpu_s(pid) - cpu_s) / took_s * 100)


def _steady(what: str, phase: _Phase) -> list[Row]:
    return [
        Row(f"{what}, CPU", phase.cpu_percent, CPU_GOAL_PERCENT, "% of a core"),
        Row(f"{what}, messages in", phase.tally["sent_messages"] / phase.seconds, unit="1/s"),
        Row(f"{what}, bytes in", phase.tally["sent_bytes"] / phase.seconds, unit="B/s"),
        Row(f"{what}, bytes out", phase.tally["received_bytes"] / phase.seconds, unit="B/s"),
    ]


@contextmanager
def _supernode() -> Iterator[Supernode]:
    directory = Path(tempfile.mkdtemp(prefix="imgdist-", dir="/var/tmp"))
    try:
        with Supernode(directory / "supernode", f"127.0.0.1:{free_port()}") as supernode:
            yield supernode
    finally:
        shutil.rmtree(directory)


@contextmanager
def _agents(url: str, count: int) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "bench.tracker_agents", url.removeprefix("http://"), str(count)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _figure(url: str, name: str) -> float:
    """One of the supernode's own figures."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def _cpu_s(pid: int) -> float:
    """User and system time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)

"""Lazy starts of a swarm: the demo's image mounted and its program run on every node at the same moment.

The program runs in the mounted tree, chrooted, in a mount and pid namespace of its own. Seconds run from the order to
mount to its first output.
"""

from __future__ import annotations

import os
import selectors
import struct
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from bench.histogram import Buckets, merged, quantile
from bench.machine_time import MachineTime
from bench.programs import Programs
from bench.swarm_rig import Node, Published
from imgdist.demo.agent import Supernode
from imgdist.errors import ImgdistError
from imgdist.wire.control import Trace
from supernode.store.layout import ROW, TABLE, Layout

_OUTPUT_S = 300.0
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Start:
    """One node's start: seconds to the first output and until the image was mounted, bytes its link had received by the
    output, what it printed; CPU time of the program to its end, and of the node's processes meanwhile."""

    seconds: float
    mounted_s: float
    received_bytes: int
    output: bytes
    program_cpu_s: float
    node_cpu_s: float


@dataclass(frozen=True, slots=True)
class Starts:
    """Starts at the same moment, and how long the reads of all of them that missed waited, how busy the
    machine's cores were."""

    each: tuple[Start, ...]
    waits: Buckets
    busy: float

    @property
    def slowest_s(self) -> float:
        return max(start.seconds for start in self.each)

    @property
    def cpu_s(self) -> float:
        """CPU time of all of them, programs and nodes; without what the kernel does outside of processes."""
        return sum(start.program_cpu_s + start.node_cpu_s for start in self.each)

    def wait_s(self, share: float) -> float:
        """So long at most did `share` of the reads that missed wait."""
        return quantile(self.waits, share)


def start_all(nodes: Sequence[Node], reference: str, argv: Sequence[str]) -> Starts:
    """Mount the image and run `argv` in it on all `nodes` at once. Raises ImgdistError for a program that fails."""
    machine = MachineTime()
    with ThreadPoolExecutor(len(nodes)) as pool, Programs() as programs:
        each = tuple(pool.map(lambda node: _start(programs, node, reference, argv), nodes))
    busy = machine.busy_share()
    return Starts(each, merged(_waits(node.agent.metrics()) for node in nodes), busy)


def touched_bytes(supernode: Supernode, published: Published) -> int:
    """What the chunks of the image's recorded trace are on the wire."""
    trace = msgspec.msgpack.decode(supernode.trace(published.manifest_digest) or b"", type=Trace)
    layout = Layout(supernode.root)
    tables = [list(ROW.iter_unpack((layout.link(layer) / TABLE).read_bytes())) for layer in trace.layers]
    return sum(tables[layer][chunk][1] for layer, chunk in struct.iter_unpack("<HI", trace.entries))


def _start(programs: Programs, node: Node, reference: str, argv: Sequence[str]) -> Start:
    before, cpu_before, started = node.spoke.traffic(), node.processes.cpu_s(), time.monotonic()
    node.agent.mount(reference, node.tree)
    mounted = time.monotonic() - started
    unshare = ("unshare", "--mount", "--pid", "--fork", "--kill-child", f"--root={node.tree}", "--mount-proc=/proc")
    command = [*node.spoke.inside, *unshare, "--", *argv]
    with programs.started(command, _ENVIRONMENT) as process:
        assert process.stdout is not None
        first = _first_output(process)
        took = time.monotonic() - started
        received = (node.spoke.traffic() - before).received
        output = first + process.stdout.read()
        usage = programs.reap(process)
    if process.returncode:
        raise ImgdistError(f"{' '.join(argv)} in {node.tree}: exit {process.returncode}: {output[-500:]!r}")
    node_cpu_s = sum(node.processes.cpu_s().values()) - sum(cpu_before.values())
    return Start(took, mounted, received, output, usage.ru_utime + usage.ru_stime, node_cpu_s)


def _first_output(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(_OUTPUT_S):
            process.kill()
            raise ImgdistError(f"no output within {_OUTPUT_S:.0f} s; the program is ended")
        return os.read(process.stdout.fileno(), 1 << 16)


def _waits(exposition: str) -> Buckets:
    return tuple(
        (float(sample.labels["le"]), int(sample.value))
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.name == "imgdist_read_wait_seconds_bucket"
    )

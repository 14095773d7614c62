"""Layers made to do harm, through a real supernode: each ends in bounded time and memory, with a reason, and leaves
nothing; the next image is converted as if nothing had been."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_registry import FakeRegistry, digest_of, serving, tar_gz
from hostile_layers import CASES, Hostile
from isal import igzip
from supernode_rig import supernode, url_of

from agent.supernode_client import SupernodeClient
from imgdist.demo.processes import Process
from imgdist.errors import CorruptError, DeclinedError, ImgdistError
from imgdist.pack import FORMAT_VERSION
from supernode.store.layout import TAR_SPLIT

MEMORY_MIB = 256
CPU_S = 30.0
_NO_DIGEST = "sha256:" + "0" * 64
_LOOK_S = 0.01
HEAVY = sorted({case.heavy for case in CASES.values()} - {""})


@dataclass
class Ended:
    """How a layer ended: state, reason, seconds since it was asked for; MiB and CPU-seconds of its worker."""

    state: str
    reason: str
    seconds: float
    worker_mib: float
    worker_cpu_s: float

    def row(self, name: str) -> str:
        """A line of the table."""
        reason = self.reason.rpartition("layer sha256:")[2].partition(": ")[2]
        took = f"{self.seconds:6.2f} s {self.worker_cpu_s:6.2f} CPU-s {self.worker_mib:5.0f} MiB"
        return f"{name:22} {self.state:9} {took}  {reason[:90]}"


class Workers:
    """Looks at the processes below a supernode, and keeps what the largest of them took."""

    def __init__(self, process: Process) -> None:
        self._supernode = process.pid
        self.most_mib = self.most_cpu_s = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look while the block runs."""
        self.most_mib, self.most_cpu_s, over = 0.0, 0.0, threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,))
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(_LOOK_S):
            for child in _children(self._supernode):
                for worker in _children(child):
                    self.most_mib = max(self.most_mib, peak_mib(worker))
                    self.most_cpu_s = max(self.most_cpu_s, cpu_s(worker))


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def peak_mib(pid: int) -> float:
    """The most that a process ever had in memory; 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def cpu_s(pid: int) -> float:
    """What a process has taken, all its threads; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def end_of(client: SupernodeClient, registry: FakeRegistry, name: str, case: Hostile, workers: Workers) -> Ended:
    """Have the supernode convert the one layer of an image."""
    layer = case.build()
    diff_id = _NO_DIGEST
    if case.state == "ready":
        diff_id = digest_of(igzip.open(io.BytesIO(layer)).read() if layer[:2] == b"\x1f\x8b" else layer)
    registry.add_image([layer], name, diff_ids=[diff_id])
    state, reason, began = "ready", "", time.monotonic()
    with workers.watched():
        try:
            await client.resolve(f"{registry.host}/a/b:{name}")
            await client.follow_index(digest_of(layer))
        except DeclinedError as error:
            state, reason = "declined", str(error)
        except CorruptError as error:
            state, reason = "corrupt", str(error)
        except ImgdistError as error:
            state, reason = type(error).__name__, str(error)
    seconds = time.monotonic() - began
    registry.blobs.clear()
    return Ended(state, reason, seconds, workers.most_mib, workers.most_cpu_s)


def wrongs(name: str, case: Hostile, ended: Ended, root: Path) -> Iterator[str]:
    """What is not as it should be."""
    if ended.state != case.state or case.words not in ended.reason:
        yield f"{name}: expected {case.state} ({case.words}), saw {ended.state}: {ended.reason}"
    if ended.worker_cpu_s > CPU_S:  # not by the clock: other work beside it is none of the layer's
        yield f"{name}: took {ended.worker_cpu_s:.1f} CPU-seconds"
    if ended.worker_mib > MEMORY_MIB:
        yield f"{name}: the worker took {ended.worker_mib:.0f} MiB"
    # The blob itself may stay, as the raw pack that registry clients are answered from.
    part = f"-v{FORMAT_VERSION}"
    packs = [path for path in (root / "packs").iterdir() if path.name.endswith(part) or (path / TAR_SPLIT).exists()]
    if packs and case.state != "ready":
        yield f"{name}: left {[pack.name for pack in packs]}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("group", ["", *(pytest.param(heavy, marks=pytest.mark.full) for heavy in HEAVY)])
async def test_a_hostile_layer_ends_bounded_and_harms_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], group: str
) -> None:
    chosen = {name: case for name, case in CASES.items() if case.heavy == group}
    found: list[str] = []
    rows: list[str] = []
    async with serving(FakeRegistry()) as registry:
        with supernode(tmp_path, registry.host) as process:
            workers = Workers(process)
            async with SupernodeClient(url_of(tmp_path), timeout_s=120) as client:
                for name, case in sorted(chosen.items(), key=lambda item: item[1].state == "ready"):
                    ended = await end_of(client, registry, name, case, workers)
                    found += wrongs(name, case, ended, tmp_path / "sn")
                    rows.append(ended.row(name))
                    assert process.running, f"{name}: the supernode is gone"
                registry.add_image([tar_gz({"good": b"1" * 5000})], "next")
                (layer,) = (await client.resolve(f"{registry.host}/a/b:next")).layers
                assert (await client.follow_index(layer.digest))[0].chunk_count == 2
            supernode_mib = peak_mib(process.pid)
    if group:
        with capsys.disabled():
            print("\n" + "\n".join(rows) + f"\nsupernode: at most {supernode_mib:.0f} MiB")
    assert supernode_mib < MEMORY_MIB
    assert not found, "\n".join(found)

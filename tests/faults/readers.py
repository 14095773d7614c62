"""Readers that check every block: `python -m faults.readers`, a process of its own beside what it watches.

Each thread reads one target over and over: the loop device or a file with O_DIRECT, or a file through the page cache,
whose pages it drops again. What may be read grows with time, so that there are always bytes that nobody has read: a
share of all reads misses, for as long as a run lasts.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from faults import content

from imgdist.pack import BLOCK

_WINDOW = 64
"""Blocks that become readable together: about one chunk."""
_SIZES = (1, 1, 4, 16, 64)
_PAUSE_S = (0.0, 0.02)
_AFTER_ERROR_S = 0.1
_SLOW_S = 0.25
_TOP = Path(__file__).parents[2]


@dataclass(frozen=True)
class Target:
    """A file of known content (made from `seed`, `blocks` long) that stands in `path` from block `shift` on.

    `how`: "direct" or "buffered". `fresh_per_s` windows of 256 KiB become readable each second, after `open` at once.
    """

    path: str
    how: str
    seed: int
    blocks: int
    shift: int = 0
    fresh_per_s: float = 4.0
    open: int = 8


@dataclass
class Report:
    """What readers saw. Times are CLOCK_MONOTONIC seconds. A read is named (start, seconds, path, first block)."""

    reads: int = 0
    read_bytes: int = 0
    longest_s: float = 0.0
    slow: list[tuple[float, float, str, int]] = field(default_factory=list)
    """Those above 0.25 s."""
    errors: list[tuple[float, float, str, int, str]] = field(default_factory=list)
    """With the errno's name."""
    wrong: list[tuple[float, float, str, int]] = field(default_factory=list)
    last_good: dict[str, float] = field(default_factory=dict)
    """End of the last right read of each path."""

    def __str__(self) -> str:
        worst = sorted(self.slow, key=lambda read: -read[1])[:3]
        slow = ", ".join(f"{took:.2f} s at {start:.2f} ({path} {block})" for start, took, path, block in worst)
        return (
            f"{self.reads} reads, {len(self.errors)} errors, {len(self.wrong)} wrong, longest {self.longest_s:.3f} s"
            + (f": {slow}" if slow else "")
        )


class Readers:
    """Threads in another process; a context manager. `stop` ends them and returns what they saw."""

    def __init__(self, targets: Sequence[Target], threads: int, *, seed: int = 0) -> None:
        plan = {"targets": [asdict(target) for target in targets], "threads": threads, "seed": seed}
        path = os.pathsep.join([str(_TOP), str(_TOP / "tests")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.readers", json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._report: Report | None = None

    def __enter__(self) -> Readers:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"reading\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def stop(self, timeout_s: float = 90.0) -> Report:
        """End each thread after the read that it is at; a read that never ends is an error of its own."""
        if self._report is None:
            said, _ = self._process.communicate(b"", timeout_s)
            self._report = Report(**json.loads(said))
        return self._report


class _Reader:
    def __init__(self, target: Target, seed: int, begun: float) -> None:
        self._target, self._begun = target, begun
        self._random = random.Random(seed)
        windows = -(-target.blocks // _WINDOW)
        # The same order for all readers of one file: what one of them finds fresh is fresh once.
        self._order = random.Random(target.seed).sample(range(windows), windows)
        self._flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if target.how == "direct" else 0)
        self._buffer = memoryview(mmap.mmap(-1, max(_SIZES) * BLOCK))
        self.report = Report()

    def run(self, stop: threading.Event) -> None:
        descriptor = -1
        while not stop.wait(self._random.uniform(*_PAUSE_S)):
            first, count = self._choose()
            start = time.monotonic()
            try:
                if descriptor < 0:
                    descriptor = os.open(self._target.path, self._flags)
                data = self._read(descriptor, first, count)
            except OSError as error:
                took = time.monotonic() - start
                name = errno.errorcode.get(error.errno or 0, "?")
                self.report.errors.append((start, took, self._target.path, first, name))
                stop.wait(_AFTER_ERROR_S)
                continue
            self._note(start, first, data, count)
            if self._target.how == "buffered" and self._random.random() < 0.7:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            if self._random.random() < 0.05:
                os.close(descriptor)
                descriptor = -1
        if descriptor >= 0:
            os.close(descriptor)

    def _read(self, descriptor: int, first: int, count: int) -> memoryview:
        """All of it, as programs do: a read that ends early, before a part that fails, is gone on with."""
        data, at, got = self._buffer[: count * BLOCK], (first + self._target.shift) * BLOCK, 0
        while got < len(data) and (more := os.preadv(descriptor, [data[got:]], at + got)):
            got += more
        return data[:got]

    def _choose(self) -> tuple[int, int]:
        """A range within what may be read now; the freshest windows are as likely as all others together."""
        fresh = self._target.open + int((time.monotonic() - self._begun) * self._target.fresh_per_s)
        limit = min(fresh, len(self._order))
        least = max(0, limit - 4) if self._random.random() < 0.5 else 0
        window = self._order[self._random.randrange(least, limit)] * _WINDOW
        end = min(window + _WINDOW, self._target.blocks)
        first = self._random.randrange(window, end)
        return first, min(self._random.choice(_SIZES), end - first)

    def _note(self, start: float, first: int, data: memoryview, count: int) -> None:
        took, report, target = time.monotonic() - start, self.report, self._target
        report.reads += 1
        report.read_bytes += len(data)
        report.longest_s = max(report.longest_s, took)
        if took > _SLOW_S:
            report.slow.append((start, took, target.path, first))
        if data == content.blocks(target.seed, first, count):
            report.last_good[target.path] = start + took
        else:
            report.wrong.append((start, took, target.path, first))


def merged(reports: Sequence[Report]) -> Report:
    """Several reports as one."""
    whole = Report()
    for report in reports:
        whole.reads += report.reads
        whole.read_bytes += report.read_bytes
        whole.longest_s = max(whole.longest_s, report.longest_s)
        whole.slow += report.slow
        whole.errors += report.errors
        whole.wrong += report.wrong
        for path, at in report.last_good.items():
            whole.last_good[path] = max(at, whole.last_good.get(path, 0.0))
    return whole


def main() -> None:
    """Read until standard input ends, then write the report."""
    plan = json.loads(sys.argv[1])
    targets = [Target(**target) for target in plan["targets"]]
    stop, begun = threading.Event(), time.monotonic()
    readers = [_Reader(targets[n % len(targets)], plan["seed"] * 1000 + n, begun) for n in range(plan["threads"])]
    threads = [threading.Thread(target=reader.run, args=(stop,), daemon=True) for reader in readers]
    for thread in threads:
        thread.start()
    print("reading", flush=True)
    sys.stdin.buffer.read()
    stop.set()
    deadline = time.monotonic() + 75
    for thread, reader in zip(threads, readers, strict=True):
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            reader.report.errors.append((time.monotonic(), 75.0, "a read that never ended", 0, "HANG"))
    print(json.dumps(asdict(merged([reader.report for reader in readers]))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()

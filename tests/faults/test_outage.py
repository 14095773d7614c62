"""Nobody to fetch from at half of a fill: what is here is read on, what is not ends at its deadline, and comes back."""

from __future__ import annotations

import errno
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import outage
from faults.outage import FILES

from imgdist.demo import caches
from imgdist.demo.processes import wait_until


@dataclass(frozen=True)
class Bounds:
    """Seconds. The quick slice also runs on machines that others keep busy."""

    deadline: float
    cut: float
    late: float
    healed: float
    present: float
    settings: tuple[str, ...]


_FAULT = "import mmap, sys; file = open(sys.argv[1], 'rb'); mmap.mmap(file.fileno(), 0, prot=1)[0]"
_SLOW_FILL = "swarm.down_bytes_per_s=1500000"
_BOUNDS = {
    "quick": Bounds(3.0, 11.0, 2.5, 3.0, 3.0, (_SLOW_FILL, "read.deadline_s=3")),
    "full": Bounds(60.0, 300.0, 2.0, 1.0, 1.0, (_SLOW_FILL,)),
}


_NEW_READ_S = 1.5
"""After a failure a read of the same bytes counts as a new one again (fuse/retries.py)."""
_readers: set[int] = set()  # their threads, as the kernel numbers them


class Reader:
    """Reads the beginning of a file, past the page cache or through it, on a thread of its own."""

    def __init__(self, path: Path, *, direct: bool) -> None:
        self.result: bytes | int = b""
        self.began, self.ended = time.monotonic(), 0.0
        self._path, self._direct = path, direct
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        _readers.add(threading.get_native_id())
        fd = os.open(self._path, os.O_RDONLY | (os.O_DIRECT if self._direct else 0))
        buffer = mmap.mmap(-1, mmap.PAGESIZE)
        try:
            os.preadv(fd, [buffer], 0)
            self.result = buffer[:]
        except OSError as error:
            self.result = error.errno or 0
        finally:
            self.ended = time.monotonic()
            os.close(fd)

    def wait(self, timeout_s: float) -> float:
        """How long it took."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"{self._path.name} is still being read after {timeout_s} s"
        return self.ended - self.began


@pytest.fixture
def hung_tasks() -> Iterator[None]:
    """The kernel reports no reader of ours that waits for too long meanwhile."""
    _readers.clear()
    with open("/dev/kmsg", "rb", buffering=0) as log:
        os.set_blocking(log.fileno(), False)
        os.lseek(log.fileno(), 0, os.SEEK_END)
        yield
        lines: list[bytes] = []
        while True:
            try:
                lines.append(os.read(log.fileno(), 8192))
            except BlockingIOError:
                break
            except BrokenPipeError:  # overwritten before we came; the next read goes on behind it
                continue
        ours = [f":{thread} blocked for more than".encode() for thread in _readers]
        assert not [line for line in lines if any(words in line for words in ours)]


@pytest.mark.timeout(600)
def test_what_is_absent_ends_at_the_deadline_and_heals_at_once(
    tmp_path: Path, matrix: str, kind: str, hung_tasks: None
) -> None:
    bounds = _BOUNDS[matrix]
    deadline_s = bounds.deadline
    with outage.site(tmp_path, *bounds.settings) as site:
        processes = site.processes()
        wait_until(lambda: site.share() >= 0.5, "half of the layer")
        with getattr(site, kind)():
            time.sleep(0.5)  # what was on its way
            present = site.present()
            here = [name for name, is_here in present.items() if is_here]
            absent = [name for name, is_here in present.items() if not is_here]
            assert here and len(absent) >= 8, "it was not cut in the middle of a fill"
            cut_until = time.monotonic() + bounds.cut - 0.5
            caches.drop()
            _absent_ends_present_goes_on(site, here, absent, bounds)
            _sleep_until(max(cut_until - deadline_s - 2.0, time.monotonic() + _NEW_READ_S))
            again = [Reader(site.place / absent[0], direct=direct) for direct in (True, False)]
            took = [reader.wait(deadline_s + 10) for reader in again]  # EIO again at its deadline, and not before
            assert [reader.result for reader in again] == [errno.EIO] * 2
            assert all(abs(one - deadline_s) <= bounds.late for one in took), took
            _sleep_until(cut_until - 0.5)
            waiting = [Reader(site.place / name, direct=bool(n % 2)) for n, name in enumerate(absent[2:8])]
            _sleep_until(cut_until)
        returned = time.monotonic()
        for reader in waiting:
            reader.wait(20)
        healed = [reader.ended - returned for reader in waiting]
        print(f"{kind}: healed after {max(healed):.2f} s")
        for name, reader in zip(absent[2:8], waiting, strict=True):
            assert reader.result == FILES[name][: mmap.PAGESIZE], f"{name}: {reader.result!r}"
        assert max(healed) <= bounds.healed, healed
        assert {name: (site.place / name).read_bytes() for name in FILES} == FILES
        assert site.processes() == processes, "something was restarted"
        _failures_are_told(site)


def test_reads_that_are_held_outlast_the_outage(tmp_path: Path) -> None:
    settings = ("read.on_no_source=hold", "read.deadline_s=1", "fill.mode=none")
    with outage.site(tmp_path, *settings) as site:
        with site.dropped():
            readers = [Reader(site.place / f"f{number:02}", direct=bool(number % 2)) for number in range(4)]
            time.sleep(4)
            assert not any(reader.ended for reader in readers)
            assert re.search(r"^imgdist_reads_waiting [1-9]", site.node.metrics(), re.M)
        for number, reader in enumerate(readers):
            reader.wait(20)
            assert reader.result == FILES[f"f{number:02}"][: mmap.PAGESIZE]
        assert "reads are held for ever, but kernel: hung-task watch" in site.node.log.read_text()


def _absent_ends_present_goes_on(site: outage.Site, here: list[str], absent: list[str], bounds: Bounds) -> None:
    fault = subprocess.Popen([sys.executable, "-c", _FAULT, site.place / absent[1]], stderr=subprocess.DEVNULL)
    _readers.add(fault.pid)
    began = time.monotonic()
    readers = [Reader(site.place / absent[0], direct=direct) for direct in (True, False)]
    slowest = 0.0
    while any(not reader.ended for reader in readers):
        for name in here[:4]:
            started = time.monotonic()
            reader = Reader(site.place / name, direct=True)
            reader.wait(10)
            assert reader.result == FILES[name][: mmap.PAGESIZE]
            slowest = max(slowest, time.monotonic() - started)
        time.sleep(0.05)
    assert slowest < bounds.present, "reads of what is here were held up"
    waited = [reader.wait(1) for reader in readers]
    assert fault.wait(bounds.deadline + 10) == -signal.SIGBUS
    waited.append(time.monotonic() - began)
    print(f"EIO after {[round(one, 2) for one in waited]} s (direct, buffered, mapped); present {slowest:.3f} s")
    assert [reader.result for reader in readers] == [errno.EIO] * 2
    assert all(abs(one - bounds.deadline) <= bounds.late for one in waited), waited


def _failures_are_told(site: outage.Site) -> None:
    metrics = site.node.metrics()
    (failed,) = re.findall(r'^imgdist_reads_failed_total\{reason="deadline"\} (\S+)', metrics, re.M)
    assert float(failed) >= 4
    assert re.search(r"^imgdist_reads_waiting 0\.0$", metrics, re.M)
    assert re.search(r"^imgdist_read_wait_seconds_count [1-9]", metrics, re.M)
    log = site.node.log.read_text()
    lines = [line for line in log.splitlines() if "EIO; chunk" in line]
    assert lines and all(re.search(r"layer [0-9a-f]{64}: \d+ bytes at \d+: no bytes after", line) for line in lines)
    assert all(site.link.far in line for line in lines), f"whom it was tried on: {lines}"
    assert len(lines) < float(failed), "one line of a layer in a while"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        more = ["refused"] if metafunc.config.getoption("matrix") == "full" else []
        metafunc.parametrize("kind", ["dropped", "stopped", *more])


def _sleep_until(at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))

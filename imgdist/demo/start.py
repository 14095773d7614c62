"""One cold start, measured: pull, container, first output, and what crossed the link meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from imgdist.demo import caches
from imgdist.demo.containerd import Containerd

# Fine enough for a picture 100 columns wide of a start of two seconds.
SAMPLE_S = 0.02


class Meter:
    """Samples a byte counter in a thread; a context manager.

    `samples` holds (seconds since the start, bytes since the start), oldest first.
    """

    def __init__(self, counter: Callable[[], int]) -> None:
        self._counter = counter
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="meter", daemon=True)
        self._first_bytes = counter()
        self.started_s = time.monotonic()
        self.samples: list[tuple[float, int]] = [(0.0, 0)]

    def bytes_now(self) -> int:
        """Bytes since the start."""
        return self._counter() - self._first_bytes

    def bytes_at(self, at_s: float) -> int:
        """Bytes at `at_s` seconds after the start, between two samples in a straight line."""
        before = (0.0, 0)
        for moment, count in self.samples:
            if moment >= at_s:
                span = moment - before[0]
                share = (at_s - before[0]) / span if span else 1.0
                return round(before[1] + (count - before[1]) * share)
            before = (moment, count)
        return before[1]

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.samples.append((time.monotonic() - self.started_s, self.bytes_now()))

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.samples.append((time.monotonic() - self.started_s, self.bytes_now()))


@dataclass
class Start:
    """What happened, in seconds after the pull began and in bytes received over the link.

    Of imgdist's chunks, until the measure ended: `fetched_bytes` as they travelled, bodies alone; `copied_bytes` raw,
    of those that another image on the node had.
    """

    what: str
    pulled_s: float
    first_output_s: float
    ended_s: float
    output: str
    bytes_before_output: int
    bytes_total: int = 0
    filled_s: float | None = None
    traced: bool = False
    fetched_bytes: int = 0
    copied_bytes: int = 0
    samples: list[tuple[float, int]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Start of the pull to first output; to the end for a program that prints nothing."""
        return self.first_output_s


def cold_start(
    what: str,
    containerd: Containerd,
    counter: Callable[[], int],
    reference: str,
    argv: Iterable[str],
    *,
    warm: Iterable[Path] = (),
    pull: bool = True,
    linger_s: float | None = None,
    wait_filled: Callable[[], None] | None = None,
) -> Start:
    """Drop the page cache, read `warm` back into it, pull `reference` and run `argv` (empty: its own command) in it.

    `linger_s`: see `Containerd.run`.
    `wait_filled` returns when the background fill has ended; then `bytes_total` is everything that crossed.
    """
    caches.drop()
    caches.warm(warm)
    with Meter(counter) as meter:
        if pull:
            containerd.pull(reference)
        pulled = time.monotonic() - meter.started_s
        run = containerd.run(reference, "demo", *argv, linger_s=linger_s)
        ended = run.ended_s - meter.started_s
        first = ended if run.first_output_s is None else run.first_output_s - meter.started_s
        filled = None
        if wait_filled is not None:
            wait_filled()
            filled = time.monotonic() - meter.started_s
    return Start(
        what=what,
        pulled_s=pulled,
        first_output_s=first,
        ended_s=ended,
        output=run.output.decode(errors="replace"),
        bytes_before_output=meter.bytes_at(first),
        bytes_total=meter.samples[-1][1],
        filled_s=filled,
        samples=meter.samples,
    )

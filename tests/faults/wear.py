"""Whether a process wears out: its resident memory and descriptors over time, and the slope of both."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_YOUNG_S = 1.5
"""A process that has just been started still grows."""


@dataclass(frozen=True)
class Sample:
    """Of one process at one time (CLOCK_MONOTONIC seconds)."""

    at: float
    resident_kib: int
    descriptors: int


class Wear:
    """Samples by role. A role's process may be another each time: the successor has to look like the one before it."""

    def __init__(self) -> None:
        self.samples: dict[str, list[Sample]] = {}

    def look(self, pids: Mapping[str, int | None]) -> None:
        """Take a sample of each process that is not just starting, or ending."""
        for role, pid in pids.items():
            if pid is None:
                continue
            try:
                if _age_s(pid) >= _YOUNG_S:
                    self.samples.setdefault(role, []).append(
                        Sample(time.monotonic(), _resident_kib(pid), len(os.listdir(f"/proc/{pid}/fd")))
                    )
            except (OSError, IndexError):
                continue

    def growth(self, role: str) -> tuple[float, float, str]:
        """By the slope, over the whole time: of the memory as a share of its mean, of the number of descriptors; and a
        line that says it."""
        samples = self.samples[role]
        span_s = samples[-1].at - samples[0].at
        memory = _slope([(s.at, s.resident_kib) for s in samples])
        files = _slope([(s.at, s.descriptors) for s in samples])
        mean_kib = sum(s.resident_kib for s in samples) / len(samples)
        text = (
            f"{role}: {len(samples)} samples, resident {mean_kib / 1024:.1f} MiB {memory * 60:+.1f} KiB/min, "
            f"descriptors {samples[-1].descriptors} {files * 60:+.3f}/min"
        )
        return memory * span_s / mean_kib, files * span_s, text


def _slope(points: list[tuple[float, float]]) -> float:
    """Least squares."""
    count = len(points)
    x_mean, y_mean = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / spread if spread else 0.0


def _age_s(pid: int) -> float:
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def _resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

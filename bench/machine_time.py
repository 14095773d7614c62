"""CPU time: of the whole machine, of the processes in some network namespaces, of this one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class MachineTime:
    """CPU time since this was made, of everybody and of the processes in `namespaces` (names of ip-netns(8)).

    What the kernel does for packets outside any process (softirq) is nobody's.
    """

    def __init__(self, namespaces: Iterable[str] = ()) -> None:
        self._namespaces = {Path("/run/netns", name).stat().st_ino for name in namespaces}
        self._before, self._inside = _machine_ticks(), self._inside_s()
        self._own = time.process_time()

    def busy_share(self) -> float:
        """Of all cores; waiting for disks does not count as busy."""
        spent = self._spent()
        return 1 - sum(spent[3:5]) / sum(spent)

    def others_share(self) -> float:
        """Of all cores: what processes took that are neither in the namespaces nor this one, while they live."""
        spent = self._spent()
        ours = self._inside_s() - self._inside + time.process_time() - self._own
        return max(0.0, sum(spent[:3]) / _TICKS - ours) / (sum(spent) / _TICKS)

    def _spent(self) -> list[int]:
        return [now - before for now, before in zip(_machine_ticks(), self._before, strict=True)]

    def _inside_s(self) -> float:
        return sum(
            _cpu_s(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._is_inside(entry)
        )

    def _is_inside(self, process: Path) -> bool:
        try:
            return (process / "ns/net").stat().st_ino in self._namespaces
        except OSError:
            return False  # ended since the listing


def _machine_ticks() -> list[int]:
    """proc_stat(5): user nice system idle iowait irq softirq steal; guest time is in user's."""
    return [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def _cpu_s(process: Path) -> float:
    """proc_pid_stat(5): utime, stime, and those of children that ended."""
    try:
        return sum(map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:15])) / _TICKS
    except OSError:
        return 0.0

"""CPU time of the whole machine."""

from __future__ import annotations

from pathlib import Path


class MachineTime:
    """CPU time since this was made (proc_stat(5))."""

    def __init__(self) -> None:
        self._before = self._read()

    def busy_share(self) -> float:
        """Of all cores; waiting for disks does not count as busy."""
        idle, total = (now - before for now, before in zip(self._read(), self._before, strict=True))
        return 1 - idle / total

    @staticmethod
    def _read() -> tuple[int, int]:
        # user nice system idle iowait irq softirq steal; guest time is in user's.
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)

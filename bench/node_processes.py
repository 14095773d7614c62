"""The processes of a running agent: memory and CPU time by role."""

from __future__ import annotations

import os
from pathlib import Path

from imgdist.demo.agent import Agent

_MIB = 1 << 20


class NodeProcesses:
    """The processes of a running agent, by role."""

    def __init__(self, agent: Agent) -> None:
        self._pids = {"holder": agent.pid}
        for task in Path(f"/proc/{agent.pid}/task").iterdir():
            for pid in map(int, (task / "children").read_text().split()):
                role = "view" if b"\0fuse.main\0" in Path(f"/proc/{pid}/cmdline").read_bytes() else "agent"
                self._pids[role] = pid
        assert len(self._pids) == 3, f"expected holder, view and agent, found {self._pids}"

    def rss_mib(self) -> dict[str, float]:
        """Resident memory by role, shared pages included."""
        pages = {role: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for role, pid in self._pids.items()}
        return {role: count * os.sysconf("SC_PAGE_SIZE") / _MIB for role, count in pages.items()}

    def peak_rss_mib(self) -> dict[str, float]:
        """The most that was resident at any time, by role (VmHWM of proc_pid_status(5))."""
        texts = {role: Path(f"/proc/{pid}/status").read_text() for role, pid in self._pids.items()}
        return {role: int(text.partition("VmHWM:")[2].split()[0]) / 1024 for role, text in texts.items()}

    def pss_mib(self) -> float:
        """Resident memory of all, shared pages in equal parts among those who share them."""
        rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self._pids.values()]
        return sum(int(line.split()[1]) for text in rollups for line in text.splitlines() if line[:4] == "Pss:") / 1024

    def cpu_s(self) -> dict[str, float]:
        """CPU time so far by role (proc_pid_stat(5): utime and stime)."""
        stats = {role: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2] for role, pid in self._pids.items()}
        ticks = {role: sum(map(int, text.split()[11:13])) for role, text in stats.items()}
        return {role: count / os.sysconf("SC_CLK_TCK") for role, count in ticks.items()}

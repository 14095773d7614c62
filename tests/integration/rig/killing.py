"""Nodes that die whole."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from imgdist.demo.agent import Agent


def kill_node(agent: Agent) -> None:
    """SIGKILL for holder, view and agent, the holder first so that nothing is started again."""
    holder = agent.pid
    children = Path(f"/proc/{holder}/task/{holder}/children").read_text().split()
    for pid in (holder, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    agent.stop()

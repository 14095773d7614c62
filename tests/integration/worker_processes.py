"""Which processes a conversion has started."""

from __future__ import annotations

from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Pids of what its main thread has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> bytes:
    """Its command line, words ended by zero bytes."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()

"""The agent's processes from outside: found by its sockets, ended in order, or at once where they do not answer."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

_HOLDER = b"\0agent.holder\0"


def find(run: str) -> int | None:
    """Pid of the holder whose sockets are in `run`: who called listen(2) last (SO_PEERCRED of unix(7)), which is it or
    a child of its. None if nobody listens there."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(os.path.join(run, "api.sock"))
        except OSError:
            return None
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    while pid > 1 and _HOLDER not in _command_line(pid):
        pid = _parent(pid)
    return pid if pid > 1 else None


def stop(pid: int, timeout_s: float) -> bool:
    """SIGTERM, which lets it end its children in order; after `timeout_s` SIGKILL for it and them. True if it was
    orderly."""
    family = [pid, *_children(pid)]
    ends = [descriptor for member in family if (descriptor := _pidfd(member)) is not None]
    try:
        _send(ends[:1], signal.SIGTERM)
        if _ended(ends, timeout_s):
            return True
        _send(ends, signal.SIGKILL)
        _ended(ends, timeout_s)
        return False
    finally:
        for descriptor in ends:
            os.close(descriptor)


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


def _pidfd(pid: int) -> int | None:
    with suppress(OSError):
        return os.pidfd_open(pid)
    return None


def _send(ends: list[int], number: signal.Signals) -> None:
    for descriptor in ends:
        with suppress(OSError):
            signal.pidfd_send_signal(descriptor, number)


def _ended(ends: list[int], timeout_s: float) -> bool:
    """Whether all have ended; waits at most so long."""
    deadline = time.monotonic() + timeout_s
    waiting = set(ends)
    while waiting:
        left_s = deadline - time.monotonic()
        ready, _, _ = select.select(waiting, [], [], max(0.0, left_s))
        waiting -= set(ready)
        if left_s <= 0:
            break
    return not waiting


def _parent(pid: int) -> int:
    """0 if it is gone."""
    with suppress(OSError):
        # Field 4 of proc_pid_stat(5), behind the command's closing bracket.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _command_line(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""

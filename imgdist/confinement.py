"""What a process gives up that works for another one, or on bytes of strangers."""

from __future__ import annotations

import ctypes
import os
import resource
import signal

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_LAST = 19


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def limit(what: int, most: int) -> None:
    """Lower a resource limit of this process, for good."""
    hard = resource.getrlimit(what)[1]
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (least, least))


def run_when_idle() -> None:
    """Have this process run when nothing else wants a processor (sched(7), SCHED_IDLE)."""
    os.nice(_LAST)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

"""How long a read may wait, beside how long the kernel lets anybody wait."""

from __future__ import annotations

import os

_SYSCTL = "/proc/sys"
_TIMEOUT_LEAST_S = 15  # FUSE_TIMEOUT_TIMER_FREQ, fs/fuse/dev.c: the kernel looks no more often


def in_words(deadline_s: float, sysctl: str | os.PathLike[str] = _SYSCTL) -> tuple[bool, str]:
    """Whether reads that wait `deadline_s` (0: for ever) end before the kernel interferes; and one line about it.

    The kernel's limits: `kernel.hung_task_timeout_secs` (a line in its log for whoever waits longer, a panic where
    `hung_task_panic` says so) and `fs.fuse.{max,default}_request_timeout` (Linux 6.14: the session is aborted).
    """
    hung_s = _number(sysctl, "kernel/hung_task_timeout_secs")
    limits = [_number(sysctl, f"fs/fuse/{name}_request_timeout") for name in ("max", "default")]
    request_s = max(min(filter(None, limits), default=0), _TIMEOUT_LEAST_S) if any(limits) else 0
    wait_s = deadline_s or float("inf")
    promise = f"a read without any source gets EIO after {deadline_s:g} s" if deadline_s else "reads are held for ever"
    seen = f"kernel: hung-task watch {_seconds(hung_s)}, limit of FUSE requests {_seconds(request_s)}"
    if request_s and wait_s >= request_s:
        remedy = "it ends the session; raise fs.fuse.*_request_timeout or lower read.deadline_s"
    elif hung_s and wait_s >= hung_s:
        remedy = "it reports the readers; raise kernel.hung_task_timeout_secs or lower read.deadline_s"
    else:
        return True, f"{promise} ({seen})"
    return False, f"{promise}, but {seen}: {remedy}"


def _number(sysctl: str | os.PathLike[str], name: str) -> int:
    """A sysctl's value; 0, which means no limit, where this kernel has none of that name."""
    try:
        with open(os.path.join(sysctl, name), encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _seconds(limit_s: int) -> str:
    return f"{limit_s} s" if limit_s else "none"

"""The kernel's own second tries, so that a read that failed at its deadline does not wait for another one.

[measured, Linux 6.18] When readahead fails, the page that the program asked for is read again by itself, by mmap even
twice: with a deadline of 60 s a buffered read would end after 120 s, at the kernel's hung-task watch, a page fault
after 180 s.
"""

from __future__ import annotations

from collections import deque

AGAIN_NS = 500_000_000
"""How long such a try waits: a source that has just come back is not missed."""
_REMEMBERED_NS = 1_000_000_000
"""A read of the same bytes so soon after the failure is the kernel's [measured: 10 ms]; a program that tries again at
once, all the time, is treated alike until bytes come."""
_KEPT = 4096  # as many reads as can wait (fuse.slots.PARKED_MAX)


class Retries:
    """Reads that failed at their deadline a moment ago. Any thread may ask while one notes. Times are nanoseconds."""

    def __init__(self) -> None:
        self._failed: deque[tuple[int, int, int, int, int]] = deque(maxlen=_KEPT)

    def failed(self, node: int, start: int, end: int, since_ns: int, now_ns: int) -> None:
        """The read of [start, end) that had waited since `since_ns` has failed at its deadline."""
        while self._failed and now_ns - self._failed[0][0] > _REMEMBERED_NS:
            self._failed.popleft()
        self._failed.append((now_ns, node, start, end, since_ns))

    def since(self, node: int, start: int, end: int, now_ns: int) -> int:
        """From when on a new read of [start, end) is held to have waited: from now on, or, if it is a second try, so
        long that `AGAIN_NS` are left of its deadline."""
        if self._failed:
            for at, other, low, high, since_ns in reversed(tuple(self._failed)):
                if now_ns - at > _REMEMBERED_NS:
                    break
                if other == node and low < end and start < high:
                    waited_ns = at - since_ns
                    return min(now_ns, now_ns - waited_ns + AGAIN_NS)
        return now_ns

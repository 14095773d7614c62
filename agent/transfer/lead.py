"""How far what a trace predicts may be fetched ahead of its readers. Pure.

A trace is a guess: the program may be another one this time, the image's starts may have changed. What it names is
fetched ahead of its readers by a fixed amount, and by as much more as they have come to read of it: a right trace is
never held up, a wrong one costs no more than that amount.
"""

from __future__ import annotations

LEAD_BYTES = 32 << 20
"""Raw bytes ahead before anything was read: half a second of 200 Mbit/s, about what passes between a layer's mount and
its container's first read (a guess)."""


class Lead:
    """Of all traces of a node together; chunks are (node, chunk)."""

    def __init__(self) -> None:
        self._named: dict[tuple[int, int], int] = {}  # not here, not read: raw bytes
        self._ahead: dict[tuple[int, int], int] = {}  # here, not read
        self._ahead_bytes = self._read_bytes = 0

    @property
    def is_left(self) -> bool:
        """Whether more of a trace may be fetched. If not, readers read other things than the trace says."""
        return self._ahead_bytes < LEAD_BYTES + self._read_bytes

    def begin(self) -> None:
        """A trace is told while none is going on: what earlier ones earned says nothing of it."""
        self._named.clear()
        self.renew()

    def renew(self) -> None:
        """A trace is told while an earlier one is held up: that says nothing of the new one."""
        self._ahead.clear()
        self._ahead_bytes = self._read_bytes = 0

    def named(self, node: int, chunk: int, size_bytes: int) -> None:
        """A trace names a chunk of so many raw bytes."""
        self._named[node, chunk] = size_bytes

    def landed(self, node: int, chunk: int) -> None:
        """A chunk is here."""
        size = self._named.pop((node, chunk), 0)
        if size:
            self._ahead[node, chunk] = size
            self._ahead_bytes += size

    def touched(self, node: int, chunk: int) -> None:
        """A reader read of the chunk for the first time, here already or not."""
        size = self._ahead.pop((node, chunk), 0)
        self._ahead_bytes -= size
        self._read_bytes += size + self._named.pop((node, chunk), 0)

    def removed(self, node: int) -> None:
        """A layer is gone."""
        for chunks in (self._named, self._ahead):
            for key in [key for key in chunks if key[0] == node]:
                del chunks[key]
        self._ahead_bytes = sum(self._ahead.values())

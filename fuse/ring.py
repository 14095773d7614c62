"""The buffers in which an agent hands verified bytes to its view: shared memory, and who uses which of them."""

from __future__ import annotations

import mmap
import os

from fuse.channel import RING_BUFFER_SIZE, RING_SIZE

BUFFERS_USED = 4
"""Twice as many as misses of a start are outstanding. A buffer that was used stays resident, and a memory cgroup can
take back none of it; who finds no free one answers from the image."""


class Ring:
    """This agent's alone: agents overlap during an upgrade. The caller locks, but for `buffer`."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("imgdist-ring")
        os.ftruncate(self.fd, RING_SIZE)
        self._memory = memoryview(mmap.mmap(self.fd, RING_SIZE))
        self._free = list(range(BUFFERS_USED))  # the last one given back first: its pages are there already
        self._lent: set[int] = set()
        self._kept: set[int] = set()

    def buffer(self, slot: int) -> memoryview:
        """Its memory."""
        return self._memory[slot * RING_BUFFER_SIZE : (slot + 1) * RING_BUFFER_SIZE]

    def acquire(self, *, keep: bool) -> int | None:
        """A free buffer, or None. `keep`: it is not free again before `release`, either."""
        if not self._free:
            return None
        slot = self._free.pop()
        if keep:
            self._kept.add(slot)
        return slot

    def release(self, slot: int) -> None:
        """Whoever filled a buffer that is kept does not read it any more."""
        self._kept.remove(slot)
        self.give_back(slot)

    def lend(self, slot: int) -> None:
        """The view reads it."""
        self._lent.add(slot)

    def returned(self, slot: int) -> None:
        """The view does not read it any more."""
        if slot in self._lent:
            self._lent.remove(slot)
            self.give_back(slot)

    def all_returned(self) -> None:
        """There is no view any more."""
        for slot in list(self._lent):
            self.returned(slot)

    def give_back(self, slot: int) -> None:
        """It is free, unless somebody else uses it."""
        if slot not in self._lent and slot not in self._kept:
            self._free.append(slot)

    def close(self) -> None:
        """Give the descriptor back; the memory stays as long as anybody looks at it."""
        os.close(self.fd)

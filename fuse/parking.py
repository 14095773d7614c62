"""Requests that wait, found by node; each is answered by whoever claims it, so exactly once.

Every entry also stands in a table that may outlive the process (fuse/slots.py): written before the request's slot is
freed, dropped after the answer, so that a successor finds what was still owed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from fuse.protocol import UNIQUE_RESEND, Request
from fuse.slots import PARKED_MAX, ParkedEntry


class Table(Protocol):
    """Where entries are kept over the death of the process. Entry numbers are below PARKED_MAX."""

    def put(self, index: int, request: Request, since_ns: int) -> None:
        """Write entry `index`, which is free."""

    def drop(self, index: int) -> None:
        """Free entry `index`."""


class Parked:
    """A waiting request; `since_ns` (CLOCK_MONOTONIC) is kept over restarts and resends, so that deadlines hold.

    `request` may turn into its resent copy while it waits (another `unique`, the same key). `at_disk`: its bytes are
    being read for it. `pieces`: by their place in the image, bytes of it that the image will not have.
    """

    __slots__ = ("at_disk", "index", "pieces", "request", "since_ns")

    def __init__(self, request: Request, since_ns: int, index: int) -> None:
        self.request, self.since_ns, self.index = request, since_ns, index
        self.at_disk = False
        self.pieces: dict[int, bytes] = {}


class Parking:
    """All waiting requests of a view. Thread-safe; the lock is held for dictionary work and table stores only."""

    def __init__(self, table: Table, on_count: Callable[[int, int], None], adopted: Iterable[ParkedEntry] = ()) -> None:
        """`on_count(node, waiting)` runs under the lock at each change; `adopted` is what the table already holds."""
        self._table = table
        self._on_count = on_count
        self._lock = threading.Lock()
        self._by_key: dict[int, Parked] = {}
        self._by_node: dict[int, dict[int, Parked]] = {}
        free = set(range(PARKED_MAX))
        for entry in adopted:
            free.discard(entry.number)
            self._insert(Parked(entry.request, entry.since_ns, entry.number))
        self._free = deque(sorted(free))

    def __len__(self) -> int:
        return len(self._by_key)

    def park(self, request: Request, now_ns: int) -> Parked | None:
        """Keep `request`, or take a resent copy's `unique` for the one already here. None if the table is full."""
        with self._lock:
            known = self._by_key.get(request.key)
            if known is not None:
                # The slot still holds the request, so a kill between these two loses nothing.
                self._table.drop(known.index)
                self._table.put(known.index, request, known.since_ns)
                known.request = request
                return known
            if not self._free:
                return None
            parked = Parked(request, now_ns, self._free.popleft())
            self._table.put(parked.index, request, now_ns)
            self._insert(parked)
            return parked

    def claim(self, parked: Parked) -> bool:
        """Take it out for answering; False if someone else has. The claimer answers `parked.request` as it stands
        after the claim (a resent copy may have replaced it), then calls `done`."""
        with self._lock:
            request = parked.request
            if self._by_key.get(request.key) is not parked:
                return False
            del self._by_key[request.key]
            del self._by_node[request.node][request.key]
            self._count(request.node)
            return True

    def find(self, unique: int) -> Parked | None:
        """The waiting request with that `unique`, resent or not."""
        return self._by_key.get(unique & ~UNIQUE_RESEND)

    def done(self, parked: Parked) -> None:
        """The claimed request has been answered: its table entry is free again."""
        with self._lock:
            self._table.drop(parked.index)
            self._free.append(parked.index)

    def waiting(self, node: int) -> list[Parked]:
        """What waits for `node` now."""
        if node not in self._by_node:
            return []  # without the lock: most notices concern layers that nobody waits for
        with self._lock:
            return list(self._by_node.get(node, {}).values())

    def all(self) -> list[Parked]:
        """Everything that waits now."""
        with self._lock:
            return list(self._by_key.values())

    def recount(self, node: int) -> None:
        """Report the count of `node` again (its layer has just been added)."""
        with self._lock:
            self._on_count(node, len(self._by_node.get(node, ())))

    def _insert(self, parked: Parked) -> None:
        node, key = parked.request.node, parked.request.key
        self._by_key[key] = parked
        self._by_node.setdefault(node, {})[key] = parked
        self._count(node)

    def _count(self, node: int) -> None:
        waiting = len(self._by_node[node])
        if not waiting:
            del self._by_node[node]
        self._on_count(node, waiting)

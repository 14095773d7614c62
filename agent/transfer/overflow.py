"""Verified chunks that the disk did not take: those that somebody reads stay in memory, the longest unused go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

LIMIT_BYTES = 32 << 20
"""A hundred chunks of the largest size: what a few containers read at once, and again soon (a guess)."""


class Overflow:
    """At most `limit_bytes` of chunks. The caller locks."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._chunks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self.size_bytes = 0
        """What they are together."""

    def keep(self, node: int, chunk: int, raw: memoryview) -> None:
        """A chunk of a layer; others may have to go for it."""
        self.drop(node, [chunk])
        self._chunks[node, chunk] = bytes(raw)
        self.size_bytes += len(raw)
        while self.size_bytes > self._limit_bytes:
            _, gone = self._chunks.popitem(last=False)
            self.size_bytes -= len(gone)

    def find(self, node: int, chunk: int) -> bytes | None:
        """Its bytes, if they are still here."""
        found = self._chunks.get((node, chunk))
        if found is not None:
            self._chunks.move_to_end((node, chunk))
        return found

    def drop(self, node: int, chunks: Iterable[int]) -> None:
        """The image has them now."""
        for chunk in chunks:
            gone = self._chunks.pop((node, chunk), None)
            self.size_bytes -= len(gone) if gone is not None else 0

    def forget(self, node: int) -> None:
        """The layer is gone."""
        self.drop(node, [chunk for other, chunk in self._chunks if other == node])

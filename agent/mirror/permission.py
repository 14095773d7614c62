"""What a supernode allowed lately: a blob that lies on this node is not asked about for each of its ranges. Pure."""

from __future__ import annotations

import os
from collections.abc import Callable

from blake3 import blake3

REMEMBERED_S = 60.0
"""How long a yes holds: what a registry takes back is served for so long at most."""
MAX = 10_000
"""Answers that are remembered, some 300 bytes each; the oldest go."""

Question = tuple[str, str, str | None]
"""(host/repository, digest, the client's Authorization)."""


class Permissions:
    """Yeses, each with the blob's size, by who asked for what where: what clients showed is not kept, only a hash of it
    with a key of this process."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._key = os.urandom(32)
        self._given: dict[bytes, tuple[int, float]] = {}

    def given(self, question: Question) -> int | None:
        """The size of the blob if this was allowed lately."""
        size, until = self._given.get(self._hash(question), (0, 0.0))
        return size if self._clock() < until else None

    def give(self, question: Question, size: int) -> None:
        """The supernode said yes just now."""
        now, key = self._clock(), self._hash(question)
        self._given.pop(key, None)
        self._given[key] = (size, now + REMEMBERED_S)
        while len(self._given) > MAX or next(iter(self._given.values()))[1] <= now:
            del self._given[next(iter(self._given))]

    def _hash(self, question: Question) -> bytes:
        return blake3(repr(question).encode(), key=self._key).digest(16)

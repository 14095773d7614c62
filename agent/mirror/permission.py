"""What a supernode allowed lately: a blob that lies on this node is not asked about for each of its ranges. Pure."""

from __future__ import annotations

from collections.abc import Callable

REMEMBERED_S = 60.0
"""How long a yes holds: what a registry takes back is served for so long at most."""
MAX = 10_000
"""Answers that are remembered, some 300 bytes each; the oldest go."""

Question = tuple[str, str, str | None]
"""(host/repository, digest, the client's Authorization)."""


class Permissions:
    """Yeses, each with the blob's size, by who asked for what where. In memory alone: it holds what clients showed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._given: dict[Question, tuple[int, float]] = {}

    def given(self, question: Question) -> int | None:
        """The size of the blob if this was allowed lately."""
        size, until = self._given.get(question, (0, 0.0))
        return size if self._clock() < until else None

    def give(self, question: Question, size: int) -> None:
        """The supernode said yes just now."""
        now = self._clock()
        self._given.pop(question, None)
        self._given[question] = (size, now + REMEMBERED_S)
        while len(self._given) > MAX or next(iter(self._given.values()))[1] <= now:
            del self._given[next(iter(self._given))]

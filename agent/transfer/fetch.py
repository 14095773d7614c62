"""What the scheduler decides: requests, and what it answers when their chunks land."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

RUN_CHUNKS = 8
"""Chunks of one trace or fill request, at most 2 MiB raw (a guess)."""


class Kind(Enum):
    """Why chunks are fetched, most urgent first: a read waits, a job waits, a trace predicts, a layer fills."""

    DEMAND = "demand"
    NOW = "now"
    TRACE = "trace"
    FILL = "fill"

    __hash__ = object.__hash__  # Enum's own is a Python function, and counters by kind are looked up six times a miss

    @property
    def is_urgent(self) -> bool:
        """Whether somebody waits."""
        return self is Kind.DEMAND or self is Kind.NOW


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask for these chunks of a layer, in this order, in one request; of `sources` the next only for what those before
    did not serve. `any_of` instead of chunks: for `count` of that set, which the source chooses.

    `picked`: the policy chose the source among others. If it fails, the next one is chosen without delay. `before`: the
    first of `sources`, if it may wait for what is asked of it (agent/transfer/line.py).
    """

    node: int
    chunks: tuple[int, ...]
    kind: Kind
    any_of: int = 0
    count: int = 0
    is_hedge: bool = False
    picked: bool = field(default=False, compare=False)
    before: Hashable | None = field(default=None, compare=False)
    sources: tuple[Hashable, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Landed:
    """A chunk is in the image: how long a reader waited for it (None: nobody did), and whether it was the last."""

    waited_s: float | None
    completes: bool

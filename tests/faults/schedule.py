"""What goes wrong when: drawn from one seed, which is printed, so that a run can be had again."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

VARIABLE = "FAULTS_SEED"


class Schedule:
    """Choices and pauses. The same seed gives the same ones; what the machine makes of them is its own."""

    def __init__(self, seed: int | None = None) -> None:
        """Without a seed: that of the environment variable FAULTS_SEED, else a fresh one."""
        if seed is None:
            seed = int(os.environ.get(VARIABLE) or random.SystemRandom().randrange(1 << 32))
        self.seed = seed
        self._random = random.Random(seed)
        print(f"faults: seed {seed} ({VARIABLE}={seed} repeats it)")

    def pause_s(self, least_s: float, most_s: float) -> float:
        """How long to wait before the next fault."""
        return self._random.uniform(least_s, most_s)

    def number(self, below: int) -> int:
        """A number in [0, below)."""
        return self._random.randrange(below)

    def choices(self, options: Sequence[T]) -> Iterator[T]:
        """For ever: all of `options` in some order, then again in another, so that none is left out for long."""
        while True:
            yield from self._random.sample(options, len(options))

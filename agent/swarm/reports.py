"""What a tracker is still to be told, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from imgdist.wire.tracker import DEAD_MAX, PROGRESS_FILLING_S, PROGRESS_IDLE_S, Dead, FromAgent, Progress, Seek, Share


class Reports:
    """On one event loop; `chance` is in [0, 1)."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._dead: dict[str, None] = {}
        self._told: set[Share] = set()
        self._seeks = False
        self._told_at = 0.0
        self.is_changed = False
        """The node is in other swarms than it said."""

    def changed(self) -> None:
        """The node is in other swarms than before."""
        self.is_changed = True
        self._wake.set()

    def seek(self) -> None:
        """More members are wanted."""
        self._seeks = True
        self._wake.set()

    def dead(self, nodes: Iterable[str]) -> None:
        """These do not answer; of too many the latest count."""
        self._dead.update(dict.fromkeys(nodes))
        while len(self._dead) > DEAD_MAX:
            del self._dead[next(iter(self._dead))]
        self._wake.set()

    def joined(self, shares: Iterable[Share]) -> None:
        """The tracker is being told so much; it answers with members."""
        self.is_changed = self._seeks = False
        self._told, self._told_at = set(shares), self._loop.time()

    async def due(self, lacks: bool) -> None:
        """Until something happened, or progress may be told; `lacks`: the node is filling."""
        span = PROGRESS_FILLING_S if lacks else PROGRESS_IDLE_S
        with suppress(TimeoutError):
            async with asyncio.timeout(span * (1 - self._chance() / 5)):
                await self._wake.wait()
        self._wake.clear()

    def take(self, shares: Sequence[Share]) -> list[FromAgent]:
        """The messages that are due, besides a Join. Progress that is none is told now and then all the same."""
        messages: list[FromAgent] = []
        if self._seeks:
            messages.append(Seek(()))
            self._seeks = False
        if self._dead:
            messages.append(Dead(tuple(self._dead)))
            self._dead.clear()
        silent_s = self._loop.time() - self._told_at
        news = tuple(share for share in shares if share not in self._told)
        if silent_s >= 0.8 * (PROGRESS_FILLING_S if news else PROGRESS_IDLE_S):
            messages.append(Progress(news))
            self._told, self._told_at = set(shares), self._loop.time()
        return messages

"""The supernode's choice: of the chunks that a node lacks those it has sent least (supernode/seeding.py)."""

from __future__ import annotations

from collections.abc import Callable

from agent.swarm.bitset import bits_of, pick, without

_RECENT_S = 1.0


class Seeder:
    """`sent[k]` is the set of chunks sent k times."""

    def __init__(self, chunks: int, random: Callable[[], float], least: bool = True) -> None:
        self._sent = [(1 << chunks) - 1]
        self._random = random
        self._least = least
        self._recent = self._earlier = 0
        self._turn_at = 0.0

    def choose(self, among: int, count: int, now: float) -> list[int]:
        """Up to `count` of a set, ties at random; they count as sent. Empty: others got all of them only just now."""
        if not self._least:
            return pick(among, count, self._random)
        if now >= self._turn_at:
            self._earlier = self._recent if now < self._turn_at + _RECENT_S else 0
            self._recent = 0
            self._turn_at = now + _RECENT_S
        among = without(among, self._recent | self._earlier)
        chosen: list[int] = []
        for times, chunks in enumerate(self._sent):
            found = chunks & among
            if found:
                more = pick(found, count - len(chosen), self._random)
                chosen += more
                self._count(times, bits_of(more))
                if len(chosen) == count:
                    break
                among ^= found
            if not among:
                break
        return chosen

    def _count(self, times: int, moved: int) -> None:
        self._recent |= moved
        if times + 1 == len(self._sent):
            self._sent.append(0)
        self._sent[times] ^= moved
        self._sent[times + 1] |= moved

"""What was tried for chunks that readers wait for, so that a read that fails can be explained. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_FORGOTTEN_S = 120.0
"""What failed so long ago has nothing to do with a read of now (a guess; the longest deadline is 110 s)."""
_CHUNKS_MAX = 4096
"""As many as reads can wait (fuse.slots.PARKED_MAX)."""


@dataclass(slots=True)
class _Failures:
    times: int = 0
    last_at: float = 0.0
    reason: str = ""


class Attempts:
    """Failures by chunk and source, until the chunk comes."""

    def __init__(self) -> None:
        self._chunks: dict[tuple[int, int], dict[str, _Failures]] = {}

    def failed(self, node: int, chunks: Iterable[int], source: str, reason: str, now: float) -> None:
        """The source did not give these chunks."""
        for chunk in chunks:
            failures = self._chunks.setdefault((node, chunk), {}).setdefault(source, _Failures())
            if now - failures.last_at > _FORGOTTEN_S:
                failures.times = 0
            failures.times, failures.last_at, failures.reason = failures.times + 1, now, reason
        while len(self._chunks) > _CHUNKS_MAX:
            del self._chunks[next(iter(self._chunks))]

    def came(self, node: int, chunk: int) -> None:
        """It is here."""
        if self._chunks:
            self._chunks.pop((node, chunk), None)

    def removed(self, node: int) -> None:
        """The layer is gone."""
        self._chunks = {key: failures for key, failures in self._chunks.items() if key[0] != node}

    def tell(self, node: int, chunk: int, now: float) -> list[str]:
        """For each source how often it was asked lately and what came of it, the latest first."""
        found = [
            (now - failures.last_at, source, failures)
            for source, failures in self._chunks.get((node, chunk), {}).items()
            if now - failures.last_at <= _FORGOTTEN_S
        ]
        return [
            f"{source} failed {failures.times} times, {ago_s:.1f} s ago: {failures.reason}"
            for ago_s, source, failures in sorted(found, key=lambda one: one[0])
        ]

"""Whom to ask: sources in order of preference, with failing ones put back and lying ones left out for a while."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from imgdist.wire.client import OnChunk, OnHead
from imgdist.wire.messages import Priority

_log = logging.getLogger("imgdist.agent")

FAILURE_PAUSE_S = (0.1, 5.0)
"""How long a source that failed is asked last: first time, at most; doubling (a guess)."""
QUARANTINE_S = (1.0, 300.0)
"""How long a source that lied is not asked at all: first time, at most; doubling. One flipped bit of the only source
then costs a reader a second, a persistent liar next to nothing."""
LIARS_MAX = 3
"""Different sources in a row, before the fault is sought here (a guess)."""


class ChunkSource(Protocol):
    """Somebody who has chunks. `fetch` is called by several threads at once and is bounded by time-outs.

    It calls `on_chunk(number, encoding, body)` in the order asked, as bodies arrive, unverified, and lets its
    exceptions through. Raises NotFoundError, TemporaryError and ProtocolError, never OSError of its own.
    """

    @property
    def kind(self) -> str:
        """The `source` label of the figures: peer or supernode."""

    @property
    def name(self) -> str:
        """Whom log messages name."""

    def fetch(
        self,
        pack: str,
        numbers: Sequence[int],
        priority: Priority,
        on_chunk: OnChunk,
        on_head: OnHead | None = None,
    ) -> None:
        """Fetch chunks of the pack named so on the wire."""

    def close(self) -> None:
        """End fetches in progress."""


@dataclass(slots=True)
class _Record:
    failures: int = 0
    lies: int = 0
    asked_last_until: float = 0.0
    quarantined_until: float = 0.0


class SourceBook:
    """What is known of each source's behaviour; pure apart from the log. Not thread-safe: the caller locks."""

    def __init__(self, sources: Sequence[ChunkSource]) -> None:
        self._sources = list(sources)
        self._records = {id(source): _Record() for source in sources}
        self._recent_liars: set[int] = set()

    def order(self, now: float) -> list[ChunkSource]:
        """Whom to ask, in turn: preference, then those that failed lately; none that is quarantined."""
        free = [source for source in self._sources if self._record(source).quarantined_until <= now]
        return sorted(free, key=lambda source: self._record(source).asked_last_until > now)

    def succeeded(self, source: ChunkSource) -> None:
        """A verified chunk came from it. Lies are forgiven slowly: a source that lies now and then stays suspect."""
        record = self._record(source)
        record.failures = 0
        record.asked_last_until = 0.0
        self._recent_liars.clear()

    def failed(self, source: ChunkSource, now: float, retry_after_s: float | None = None) -> None:
        """It refused, was cut or timed out."""
        record = self._record(source)
        first, most = FAILURE_PAUSE_S
        pause = min(first * 2**record.failures, most) if retry_after_s is None else min(retry_after_s, most)
        record.asked_last_until = now + pause
        record.failures = min(record.failures + 1, 16)

    def lied(self, source: ChunkSource, now: float) -> None:
        """It sent bytes that are not the chunk, or no protocol at all."""
        record = self._record(source)
        first, most = QUARANTINE_S
        if now - record.quarantined_until > most:
            record.lies = 0
        pause = min(first * 2**record.lies, most)
        record.lies = min(record.lies + 1, 16)
        record.quarantined_until = now + pause
        _log.warning("%s %s sent wrong bytes; it is not asked for %.0f s", source.kind, source.name, pause)
        self._recent_liars.add(id(source))
        if len(self._recent_liars) == LIARS_MAX:
            _log.error(
                "%d sources in a row sent wrong bytes: suspect this machine's memory or its copy of the index",
                LIARS_MAX,
            )

    def close(self) -> None:
        """Close every source."""
        for source in self._sources:
            source.close()

    def _record(self, source: ChunkSource) -> _Record:
        return self._records[id(source)]

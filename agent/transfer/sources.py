"""Whom to ask: sources in order of preference, those that failed lately last, and those that lied after them. None is
left out: what nobody else has may come right from the last one, and every chunk is verified."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from imgdist.wire.client import OnChunk, OnHead
from imgdist.wire.messages import Priority

_log = logging.getLogger("imgdist.agent")

FAILURE_PAUSE_S = (0.1, 5.0)
"""How long a source that failed is asked last: first time, at most; doubling (a guess)."""
QUARANTINE_S = (1.0, 300.0)
"""How long a source whose lies went beyond single chunks is asked last: first time, at most; doubling."""
LIES_MAX = 3
"""Different chunks it lied about within the longest quarantine, before the source itself is suspect: one rotten chunk
on its disk says nothing of the others (a guess)."""
_LIES_KEPT = 4096
"""A source's latest lies that are remembered (a guess)."""
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
    quarantines: int = 0
    asked_last_until: float = 0.0
    quarantined_until: float = 0.0
    lies: dict[tuple[str, int], float] = field(default_factory=dict)  # (pack, chunk): when last, in that order

    def lied_about(self, pack: str, chunks: Sequence[int], now: float) -> bool:
        """Whether it lately lied about one of the chunks."""
        return bool(self.lies) and any(
            now - self.lies.get((pack, chunk), float("-inf")) < QUARANTINE_S[1] for chunk in chunks
        )


class SourceBook:
    """What is known of each source's behaviour; pure apart from the log. Not thread-safe: the caller locks."""

    def __init__(self, sources: Sequence[ChunkSource]) -> None:
        self._sources = list(sources)
        self._records = {id(source): _Record() for source in sources}
        self._recent_liars: set[int] = set()

    def order(self, now: float, pack: str, chunks: Sequence[int]) -> list[ChunkSource]:
        """Whom to ask for these chunks, in turn: each source once."""

        def demerits(source: ChunkSource) -> tuple[bool, bool, bool]:
            record = self._record(source)
            return (
                record.quarantined_until > now,
                record.lied_about(pack, chunks, now),
                record.asked_last_until > now,
            )

        return sorted(self._sources, key=demerits)

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

    def lied(self, source: ChunkSource, pack: str, chunk: int, now: float) -> None:
        """It sent bytes that are not the chunk, or no protocol where the chunk should have come."""
        record = self._record(source)
        is_new = record.lies.pop((pack, chunk), None) is None
        record.lies[pack, chunk] = now
        while len(record.lies) > _LIES_KEPT or now - next(iter(record.lies.values())) >= QUARANTINE_S[1]:
            del record.lies[next(iter(record.lies))]
        if is_new and len(record.lies) >= LIES_MAX:
            self._quarantine(source, now)
        if id(source) not in self._recent_liars:
            self._recent_liars.add(id(source))
            if len(self._recent_liars) == LIARS_MAX:
                _log.error(
                    "%d sources in a row sent wrong bytes: suspect this machine's memory or its copy of the index",
                    LIARS_MAX,
                )

    def _quarantine(self, source: ChunkSource, now: float) -> None:
        record = self._record(source)
        first, most = QUARANTINE_S
        if now < record.quarantined_until:
            return
        if now - record.quarantined_until > most:
            record.quarantines = 0
        pause = min(first * 2**record.quarantines, most)
        record.quarantines = min(record.quarantines + 1, 16)
        record.quarantined_until = now + pause
        _log.warning(
            "%s %s sent wrong bytes for %d chunks lately; it is asked last for %.0f s",
            source.kind, source.name, len(record.lies), pause,
        )  # fmt: skip

    def close(self) -> None:
        """Close every source."""
        for source in self._sources:
            source.close()

    def _record(self, source: ChunkSource) -> _Record:
        return self._records[id(source)]

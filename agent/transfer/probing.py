"""Which sources to look at while somebody waits, and when one of them is back. Pure.

A request that hangs at a source behind a broken link learns of its return when TCP sends it again, up to half of the
outage later, or by its time-out; one that was refused, after a pause. So as long as a reader or a job waits, sources in
trouble are asked for a sign of life on a connection of its own, every `AGAIN_S`.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass

AGAIN_S = 0.2
"""From the end of a probe that failed to the next one: with a lost SYN (Address.connect) and a round trip a return is
seen within 0.7 s."""
CONTENT_S = 2.0
"""From the end of one that succeeded: the source lives and is slow, it has better things to do."""
TIMEOUT_S = 0.8
SOURCES_MAX = 6
"""Looked at at once, a thread each while that takes (as many as a reader's chunk is asked of)."""


@dataclass(slots=True)
class _Probe:
    next_at: float = 0.0
    under_way: bool = False
    was_away: bool = False


class Probing:
    """The probes of one node."""

    def __init__(self) -> None:
        self._probes: dict[Hashable, _Probe] = {}

    def due(self, troubled: Collection[Hashable], now: float) -> list[Hashable]:
        """Of the sources in trouble, the best first, those to be looked at now; marked as started."""
        looked_at = list(troubled)[:SOURCES_MAX]
        if self._probes:
            kept = {source: probe for source, probe in self._probes.items() if probe.under_way or source in looked_at}
            self._probes = kept
        started = []
        for source in looked_at:
            probe = self._probes.setdefault(source, _Probe())
            if not probe.under_way and probe.next_at <= now:
                probe.under_way = True
                started.append(source)
        return started

    def ended(self, source: Hashable, answered: bool, now: float) -> bool:
        """A probe is over. True: the source is back, after probes that failed."""
        probe = self._probes.setdefault(source, _Probe())
        is_back = answered and probe.was_away
        probe.under_way, probe.was_away = False, not answered
        probe.next_at = now + (CONTENT_S if answered else AGAIN_S)
        return is_back

    def wake_times(self) -> Iterator[float]:
        """When the next ones are due."""
        return (probe.next_at for probe in self._probes.values() if not probe.under_way)

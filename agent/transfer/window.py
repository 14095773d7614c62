"""How many bytes to have in flight: link x round trip, measured as the transfers go. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

WINDOW_MIN = 2 * 1024 * 1024
"""Where it starts and the least it gets: 200 Mbit/s x 80 ms."""
WINDOW_MAX = 32 * 1024 * 1024
"""1 Gbit/s x 256 ms (a guess)."""
AHEAD_S = 0.1
"""Of the link's time that what a trace foretells may take while it is in flight: so long a miss that it did not
foretell may have to wait for it (a guess: 80 ms and some; less than `WINDOW_MIN` below 170 Mbit/s)."""
AHEAD_MIN = 256 * 1024
"""But so much of it at least: four chunks (a guess)."""
_GAIN = 2.0
"""As BBR's start-up: while the window is what limits, the measured rate is window / round trip, so it doubles."""
_RATES_KEPT = 16  # a guess
ROUND_TRIP_S = 300.0
"""How long the least round trip counts, as the kernel's own (tcp_min_rtt_wlen): a link that is busy for minutes must
not look long, for then chunks fetched ahead would make it busier still [measured: 400 KB with each miss]."""


_SOURCES_KEPT = 64
"""Whose round trips are remembered: more than a node has neighbours."""


class Window:
    """Delivery rate x round trip (least of five minutes) of the source that was asked: the largest of the last samples.
    And how chunks compress.

    The rate is that of the node's link, so a near source beside a far one does not narrow the window.
    """

    def __init__(self) -> None:
        self._rates: deque[tuple[float, Hashable]] = deque(maxlen=_RATES_KEPT)
        self._round_trips: dict[Hashable, deque[tuple[float, float]]] = {}  # (when, seconds), rising in both
        self._bodies: deque[tuple[int, float]] = deque(maxlen=_RATES_KEPT)
        self._delivered = 0
        self._ratio = 0.5
        self.size_bytes = WINDOW_MIN
        """Body bytes to keep in flight."""
        self._product = 0.0
        self.round_trip_s: float | None = None
        """From a request to the first byte of its answer, serving included, at the nearest source; None before one."""
        self.rate_bytes_per_s = float("inf")
        """Of the node's link: what came within the last answers, from their first byte on; infinite before one."""

    @property
    def delivered(self) -> int:
        """Body bytes received so far; note it when a request starts."""
        return self._delivered

    @property
    def ahead_bytes(self) -> int:
        """Body bytes of what a trace foretells to keep in flight."""
        if self.rate_bytes_per_s == float("inf"):
            return self.size_bytes
        return int(min(self.size_bytes, max(_GAIN * self._product, AHEAD_S * self.rate_bytes_per_s, AHEAD_MIN)))

    def estimate(self, raw_bytes: int) -> int:
        """Body bytes that so many raw bytes will be."""
        return int(raw_bytes * self._ratio)

    def received(self, body_bytes: int, raw_bytes: int) -> None:
        """A chunk came."""
        self._delivered += body_bytes
        if raw_bytes:
            self._ratio += (body_bytes / raw_bytes - self._ratio) / 32

    def answered(
        self,
        delivered_before: int,
        started: float,
        round_trip_s: float,
        finished: float,
        source: Hashable = None,
        *,
        waited: bool = False,
    ) -> None:
        """A request was answered in full; `delivered_before` is what `delivered` said at its start, or when its answer
        began if that was waited for (`waited`): then it says nothing of the way."""
        if not waited:
            self._learn_round_trip(source, round_trip_s, finished)
        self._bodies.append((self._delivered - delivered_before, max(0.0, finished - started - round_trip_s)))
        if finished > started:
            self._rates.append(((self._delivered - delivered_before) / (finished - started), source))
        trips = self._round_trips
        # Once an answer, when its reader has it: each miss looks at them.
        self.round_trip_s = min((kept[0][1] for kept in trips.values()), default=None)
        count, seconds = sum(count for count, _ in self._bodies), sum(took for _, took in self._bodies)
        self.rate_bytes_per_s = count / seconds if count and seconds else float("inf")
        self._product = max(
            (rate * trips[source][0][1] for rate, source in self._rates if source in trips), default=0.0
        )
        self.size_bytes = int(min(max(_GAIN * self._product, WINDOW_MIN), WINDOW_MAX))

    def _learn_round_trip(self, source: Hashable, round_trip_s: float, finished: float) -> None:
        kept = self._round_trips.pop(source, None) or deque()
        self._round_trips[source] = kept  # the one heard of last stands last
        while len(self._round_trips) > _SOURCES_KEPT:
            del self._round_trips[next(iter(self._round_trips))]
        while kept and kept[-1][1] >= round_trip_s:
            kept.pop()
        kept.append((finished, round_trip_s))
        while kept[0][0] < finished - ROUND_TRIP_S:
            kept.popleft()

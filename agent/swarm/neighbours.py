"""What a node knows of one source: how far it is, how fast, how busy, whether it may be asked now. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum

from agent.swarm.quarantine import Conviction


class SourceKind(Enum):
    """PEER has what it tells, SUPERNODE everything."""

    PEER = "peer"
    SUPERNODE = "supernode"


FAILURE_PAUSE_S = {SourceKind.SUPERNODE: (0.1, 5.0), SourceKind.PEER: (0.5, 120.0)}
"""How long a source that failed is asked last: first time, at most; doubling. Of peers there are others, and one that
was away joins again and is then as new (a guess)."""
SILENCE_S = 0.5
"""Asked for something and silent for so long, a source is likely dead, and known to be when the request times out: ten
times what a request should take (a guess)."""
FILL_SILENCE_S = 5.0
"""Where nobody waits for what it was asked for: on a slow link that stands back for the misses of others (a guess)."""
_FAILURES_KEPT = 3
"""In a row, before they are remembered of a source that leaves: one that is restarted fails once or twice (a guess)."""
ROUND_TRIP_S = 0.001
"""Of a source that has not answered yet: as if it were near, so that it is tried (a guess)."""
_GAIN = 0.25
"""Of the newest sample in the averages (a guess)."""
_FORGET = 1.05
"""The least round trip grows so much with each answer that is slower: routes change (a guess)."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One line of `imgdist peers`. `state` is one of: ok, slow, busy, failing, quarantined."""

    source: Hashable
    kind: SourceKind
    near: bool
    state: str
    round_trip_s: float | None
    queue_bytes: int
    rate_bytes_per_s: float | None
    received_bytes: int
    outstanding: int
    failures: int
    lies: int


class Neighbour:
    """One source. `outstanding` counts fill and trace requests in flight, `urgent` those a reader or job waits for."""

    __slots__ = (
        "busy_times",
        "busy_until",
        "conviction",
        "failing_until",
        "failures",
        "failures_total",
        "fill_busy_until",
        "fill_shut_until",
        "in_flight_bytes",
        "is_proven",
        "kind",
        "near",
        "outstanding",
        "patient_until",
        "queue_at",
        "queue_bytes",
        "rate",
        "received_bytes",
        "received_then",
        "round_trip_s",
        "serving_since",
        "shut_until",
        "silent_since",
        "source",
        "urgent",
        "urgent_since",
        "waits",
    )

    def __init__(self, source: Hashable, kind: SourceKind, near: bool) -> None:
        self.source = source
        self.kind = kind
        self.near = near
        self.outstanding = 0
        self.urgent = 0
        self.in_flight_bytes = 0
        self.received_bytes = 0
        self.received_then = 0
        self.round_trip_s: float | None = None
        self.rate: float | None = None
        self.queue_bytes = 0
        self.queue_at = 0.0
        self.serving_since = 0.0
        self.silent_since = 0.0
        self.urgent_since = 0.0
        self.patient_until = 0.0
        """So long it may be silent: what is asked of it is on its way to it."""
        self.busy_until = 0.0
        self.busy_times = 0
        self.fill_busy_until = 0.0
        self.fill_shut_until = 0.0
        self.failing_until = 0.0
        self.failures = 0
        self.failures_total = 0
        self.shut_until = 0.0
        """Busy, failing or in quarantine until then: what each decision about bulk requests looks at first."""
        self.is_proven = kind is SourceKind.SUPERNODE
        self.conviction = Conviction(kind is SourceKind.PEER)
        self.waits: dict[Hashable, float] = {}  # layers of which it has nothing for us, until then

    def started(self, size_bytes: int, urgent: bool, now: float, waits_s: float = 0.0) -> None:
        """A request went out, which may have to wait there for so long."""
        if not self.outstanding and not self.urgent:
            self.serving_since = self.silent_since = now
        self.in_flight_bytes += size_bytes
        if not urgent:
            self.outstanding += 1
            return
        if not self.urgent:
            self.urgent_since, self.patient_until = now, 0.0
        self.urgent += 1
        self.patient_until = max(self.patient_until, now + waits_s)

    def answered(self, round_trip_s: float, queue_bytes: int | None, now: float) -> None:
        """The first byte of an answer; the least time lately is the way, the rest of it queues."""
        least = self.round_trip_s
        self.round_trip_s = round_trip_s if least is None else min(round_trip_s, least * _FORGET)
        if queue_bytes is not None:
            self.queue_bytes, self.queue_at = queue_bytes, now
        self.busy_times = 0
        self.silent_since, self.patient_until = now, 0.0

    def came(self, size_bytes: int, now: float) -> None:
        """So many bytes of verified chunks came."""
        self.received_bytes += size_bytes
        self.silent_since, self.patient_until = now, 0.0
        if self.failures:
            self.failures = 0
            self.failing_until = 0.0
            self._shut()
        self.is_proven = True
        self.conviction.served()

    def ended(self, size_bytes: int, urgent: bool, now: float) -> None:
        """A request is over; what came since the one before ended, by the time since, is a sample of the rate."""
        left = self.in_flight_bytes - size_bytes
        self.in_flight_bytes = left if left > 0 else 0
        if not urgent:
            self.outstanding -= self.outstanding > 0
        else:
            self.urgent -= self.urgent > 0
        came, took = self.received_bytes - self.received_then, now - self.serving_since
        self.received_then, self.serving_since = self.received_bytes, now
        if came and took > 0.0:
            sample = came / took
            self.rate = sample if self.rate is None else self.rate + _GAIN * (sample - self.rate)

    def failed(self, now: float, retry_after_s: float | None) -> None:
        """It refused, was cut or timed out. Of requests that were under way together the first one's counts."""
        self.failures_total += 1
        if self.kind is SourceKind.PEER:
            self.is_proven = False
            if now < self.failing_until and retry_after_s is None:
                return
        first, most = FAILURE_PAUSE_S[self.kind]
        pause = min(first * 2**self.failures, most) if retry_after_s is None else min(retry_after_s, most)
        self.failing_until = now + pause
        self.failures = min(self.failures + 1, 16)
        self._shut()

    def busy(self, until: float, *, for_fill: bool) -> None:
        """It has too much to send before then, to anybody or to who fills."""
        if self.outstanding + self.urgent <= 1:
            self.busy_times = min(self.busy_times + 1, 16)
        if for_fill:
            self.fill_busy_until = until
        else:
            self.busy_until = until
        self._shut()

    def revived(self, now: float) -> None:
        """It was away, and is back: it is asked as if it had never failed. Of a peer the trial goes on."""
        self.failures = 0
        self.failing_until = 0.0
        self.silent_since = now
        self._shut()

    def lied(self, layer: Hashable, chunk: int, now: float) -> bool:
        """It sent wrong bytes for this chunk. True: it is in quarantine now, and was not before."""
        self.is_proven = self.kind is SourceKind.SUPERNODE
        is_out = self.conviction.lied(layer, chunk, now)
        self._shut()
        return is_out

    def denied(self, now: float) -> bool:
        """It lacks what it told to have. True: it is in quarantine now, and was not before."""
        is_out = self.conviction.denied(now)
        self._shut()
        return is_out

    @property
    def is_notorious(self) -> bool:
        """Whether there is something to remember of it, should it leave."""
        return not self.conviction.is_clean or self.failures >= _FAILURES_KEPT

    def comes_again(self, before: Neighbour) -> None:
        """It was here before, and notorious: to leave and to come again shortens no pause."""
        self.conviction = before.conviction
        self.failures_total = before.failures_total
        if before.failures >= _FAILURES_KEPT:
            self.failures, self.failing_until = before.failures, before.failing_until
        self._shut()

    def _shut(self) -> None:
        self.shut_until = max(self.busy_until, self.failing_until, self.conviction.until)
        self.fill_shut_until = max(self.shut_until, self.fill_busy_until)

    @property
    def is_on_trial(self) -> bool:
        """A peer that has not yet given one right chunk since it came, failed or lied, and is asked for as much as it
        may be till then: two requests, one if it is stained. Each ends with its first lie: it can tell three before it
        is out. [simulated, 100 nodes and 200 chunks: T/T* 1.75, without any trial 1.74, with one chunk at a time 1.87]
        """
        return not self.is_proven and self.outstanding + self.urgent >= (1 if self.is_stained else 2)

    @property
    def is_stained(self) -> bool:
        """Whether it ever failed or lied. Unproven it then gets one chunk at a time."""
        return bool(self.failures_total) or not self.conviction.is_clean

    @property
    def resting_until(self) -> float:
        """Busy or failing until then: no bulk request before."""
        return self.busy_until if self.busy_until > self.failing_until else self.failing_until

    def queue_s(self, now: float) -> float:
        """What it told stands before a new request, less what it has sent since."""
        if not self.rate:
            return 0.0
        left = self.queue_bytes / self.rate - (now - self.queue_at)
        return left if left > 0.0 else 0.0

    def wait_s(self, now: float) -> float:
        """How long a small request would take to its first byte: the way, and what stands before it."""
        wait = (self.round_trip_s or ROUND_TRIP_S) + self.queue_s(now)
        if self.rate:
            wait += self.in_flight_bytes / self.rate
        return max(wait, now - self.silent_since) if self.outstanding or self.urgent else wait

    @property
    def is_at_ease(self) -> bool:
        """Nothing is asked of it, and nothing failed since it last served."""
        return not (self.failures or self.outstanding or self.urgent)

    @property
    def silent_at(self) -> float:
        """When it will have been silent for too long to be asked for more that nobody waits for."""
        return self.silent_since + SILENCE_S if self.outstanding or self.urgent else float("inf")

    @property
    def silent_for_readers_at(self) -> float:
        """When a reader should not go on to wait for it, unless something comes: silence counts from when somebody
        waits. For what is asked of it alone; what has to wait there, waits for longer."""
        if self.urgent:
            return max(self.silent_since, self.urgent_since) + SILENCE_S
        return self.silent_since + FILL_SILENCE_S if self.outstanding else float("inf")

    @property
    def late_at(self) -> float:
        """When it is no good choice for a reader, as `silent_for_readers_at` or later: what is asked of it may be on
        its way to it."""
        return max(self.silent_for_readers_at, self.patient_until if self.urgent else 0.0)

    def row(self, now: float, slow: bool) -> SourceRow:
        """For people."""
        if self.conviction.until > now:
            state = "quarantined"
        elif self.failing_until > now:
            state = "failing"
        elif self.busy_until > now:
            state = "busy"
        else:
            state = "slow" if slow else "ok"
        return SourceRow(
            self.source, self.kind, self.near, state, self.round_trip_s, self.queue_bytes, self.rate,
            self.received_bytes, self.outstanding + self.urgent, self.failures_total, self.conviction.total,
        )  # fmt: skip

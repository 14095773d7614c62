"""When fill may run: not while something starts. Ordering the queues is not enough, because CPU, GIL and page cache
are queues too [measured: ungated fill behind served-first demand made starts 1-3 times as long]. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

QUIET_S = 0.3
"""Fill starts once no reader of the node missed, or touched what nobody had read before, for so long. With a trace a
start has hardly any misses; its first touches are told within 0.1 s of a read."""
HOLD_S = 10.0
"""Fill is held no longer than this, then gets a low share."""
CALM_S = 2.0
"""For so long after a miss fill goes on with one request of one chunk at a time: what a start reads next would share
the link with six runs of chunks (a guess; [measured, 16 starts on 4 Mbit/s: fill took half of each link])."""
LOW_SHARE = 0.1
"""Of the time, with one request at a time, while starts go on (a guess)."""


@dataclass(slots=True)
class FillGate:
    """Opens and closes; `busy` is the number of fill requests in flight, `starting` that more urgent work is there."""

    quiet_s: float = QUIET_S
    hold_s: float = HOLD_S
    ungated: bool = False
    _last_read: float = float("-inf")
    _last_miss: float = float("-inf")
    _held_since: float | None = None
    _share_from: float = 0.0

    def missed(self, now: float) -> None:
        """A reader waits for a chunk."""
        self.read(now)
        self._last_miss = now

    def read(self, now: float) -> None:
        """A miss or a first touch; after quiet it begins a new start, with a hold of its own."""
        if now - self._last_read >= self.quiet_s:
            self._held_since = None
        self._last_read = now

    def filled(self, now: float, took_s: float) -> None:
        """A fill request took so long; at a low share the next waits its multiple."""
        self._share_from = now + took_s * (1 / LOW_SHARE - 1)

    def is_open(self, now: float, starting: bool, busy: int) -> bool:
        """Whether one more fill request may start; called when there is one."""
        if self.ungated:
            return True
        if not starting and now - self._last_read >= self.quiet_s:
            self._held_since = None
            return not (busy and self.is_low(now))
        if self._held_since is None:
            self._held_since = now
        return now - self._held_since >= self.hold_s and not busy and now >= self._share_from

    def is_low(self, now: float) -> bool:
        """Whether what is open is a little beside a start, or just behind one, rather than the quiet node."""
        return not self.ungated and (self._held_since is not None or now - self._last_miss < CALM_S)

    def opens_at(self, now: float, starting: bool, busy: int) -> float | None:
        """When `is_open` may change its answer by time alone; None: it waits for an event, or is open."""
        times = [] if starting else [self._last_read + self.quiet_s, self._last_miss + CALM_S]
        if self._held_since is not None and not busy:
            times.append(max(self._held_since + self.hold_s, self._share_from))
        return min((at for at in times if at > now), default=None)

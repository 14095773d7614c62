"""What the policy answers, within which limits."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What the policy may do. Times in seconds; all are guesses where nothing is said."""

    run: int = 8
    """Chunks of one request at most."""
    run_s: float = 0.4
    """What a request should take at a peer, whose link several share: at 25 Mbit/s two to four chunks. A request costs
    the processors more than a chunk [measured, 16 nodes at 25 Mbit/s on two cores: 22 CPU-s/GB with 0.05 s, 16 with
    0.4; simulated, 60 such nodes with links alone: T/T* 1.14 and 1.11]."""
    any_s: float = 0.02
    """Likewise at a supernode: the others are to get something new, too [simulated, 500 nodes and 1,000 chunks at 1
    Gbit/s: T/T* 1.274 with 0.1 s, 1.253 with 0.05, 1.230 with 0.02]."""
    outstanding: int = 6
    """Fill requests in flight in all."""
    outstanding_long: int = 8
    """Likewise where links are so slow that a whole run takes longer than `run_s`: streams share both ends of their
    links, and the fewer a node has the more often one end has nothing to send [measured, 16 nodes at 25 Mbit/s: with
    four the downlinks are used to 75-80 %, T/T* 1.38-1.43; with eight 1.32; the simulation, in which answers queue
    behind each other, sees no difference]."""
    per_source: int = 2
    """And at one source: while one is sent the next one waits there."""
    alone: int = 2
    """Fill requests at a supernode while no neighbour serves the layer: while one is sent the next one waits there, and
    more threads get in each other's way [measured over loopback: four take a tenth more CPU]..."""
    alone_far: int = 4
    """...at one so far away that the answer to a request begins later than `any_s`: its link would idle otherwise."""
    bulk: int = 8
    """Spread and fill requests in all."""
    few: int = 32
    """Chunks among which a supernode may choose the same again, if it is asked twice at once."""
    endgame: int = 16
    """So many chunks before the end each is asked of two sources."""
    hedge_quantile: float = 0.95
    hedge_floor_s: float = 0.02
    hedge_share: float = 0.05
    """A second source is asked after this quantile of the answers, not earlier, of that share of the requests."""
    busy_s: tuple[float, float] = (0.02, 5.0)
    """How long a busy source is left alone: first time, at most; fourfold each time, jittered, or what it said if more
    [simulated, 300 nodes: a third fewer requests refused than by doubling, T/T* the same]."""
    slow: float = 0.25
    """A peer below this share of the peers' median rate gets one request at a time."""

    def alone_at(self, round_trip_s: float | None) -> int:
        """Fill requests at a supernode that answers after so long, as `alone` and `alone_far`."""
        return self.alone_far if (round_trip_s or 0.0) > self.any_s else self.alone


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: `chunks` of a source, or `count` chunks of its choice among the set `any_of` (a supernode)."""

    source: Hashable
    chunks: tuple[int, ...] = ()
    any_of: int = 0
    count: int = 0

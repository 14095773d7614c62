"""The pieces of fill that a chunk server sends: whether one is on its way, and what that says of the server's link."""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median_low

from imgdist.wire.outstanding import Distances, round_trip_s
from imgdist.wire.uplink import unacknowledged

SHARE = 0.03
"""Of a slow link's time that fill may take beside what is urgent (a guess) [measured, 16 starts on 5 Mbit/s: a piece
each 0.04 s is two thirds of such a link]."""
PAUSE_MOST_S = 2.0
"""Between two pieces, whatever the link: four fills that wait for their turn are to hear something before they give up
(a guess)."""
SLOW_S = 0.02
"""Of a link on which a piece takes so long, the way itself left out, fill has no larger share for a while: the next
miss would wait for it (a guess)."""
LOOK_S = 0.002
"""Between looks whether a piece has arrived (a guess)."""
STALLED_S = 1.0
"""What takes longer waits for its reader, not for the link (a guess)."""
READERS = 8
KEPT_S = 10.0
"""Of the latest readers, as far as they took anything so lately (guesses)."""


def host_of(sock: socket.socket) -> str:
    """The other end's address, without its port; "" of a unix socket or one that is closed."""
    try:
        return str(sock.getpeername()[0]) if sock.family != socket.AF_UNIX else ""
    except OSError:
        return ""


@dataclass(slots=True)
class _Piece:
    sock: socket.socket
    since: float
    seen_s: float = 0.0  # its age when it was last seen on its way


class Pieces:
    """Of all connections, of which the latest one's is followed. The caller locks."""

    def __init__(
        self,
        left: Callable[[socket.socket], int] = unacknowledged,
        distance: Callable[[socket.socket], float] = round_trip_s,
        host: Callable[[socket.socket], str] = host_of,
    ) -> None:
        """`left(socket)`: bytes that are on their way, `distance(socket)`: seconds that takes on an idle link."""
        self._left, self._distance, self._host = left, distance, host
        self._latest: _Piece | None = None
        self._took: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by host: seconds, and when
        self._distances = Distances()
        self.slow_until = float("-inf")
        """When a slow link may take another one."""

    def send(self, sock: socket.socket, now: float) -> None:
        """A piece is about to be sent."""
        self._latest = _Piece(sock, now)

    def is_of(self, sock: socket.socket) -> bool:
        """Whether the latest one is this connection's."""
        return self._latest is not None and self._latest.sock is sock

    @property
    def took_s(self) -> float | None:
        """What the link takes for one, as half of the readers say at least; None: not known. The fastest may tell of a
        shaper that lets the first bytes after a pause pass at once."""
        return median_low(took for took, _ in self._took.values()) if self._took else None

    @property
    def is_slow(self) -> bool:
        """Whether the link is known to be slow."""
        took_s = self.took_s
        return took_s is not None and took_s >= SLOW_S

    def is_on_its_way(self, now: float) -> bool:
        """Whether the latest one is, and not for longer than the link can be blamed for."""
        piece = self._latest
        if piece is None:
            return False
        age, distance_s, took_s = now - piece.since, self._way_s(piece.sock), self.took_s
        patience_s = STALLED_S if took_s is None else min(STALLED_S, max(SLOW_S, 2 * took_s))
        is_left = bool(self._left(piece.sock))
        if is_left and age < patience_s + distance_s:
            piece.seen_s = age
            return True
        self._latest = None
        if is_left or age <= piece.seen_s + 2 * LOOK_S:  # else it may have arrived long ago
            self._learn(self._host(piece.sock), max(0.0, age - distance_s), now)
        if (took_s := self.took_s) is not None and took_s >= SLOW_S:
            self.slow_until = piece.since + min(took_s / SHARE, PAUSE_MOST_S)
        return False

    def _way_s(self, sock: socket.socket) -> float:
        return self._distances.least(self._host(sock), round(self._distance(sock) * 1e6)) / 1e6

    def _learn(self, host: str, took_s: float, now: float) -> None:
        self._took.pop(host, None)
        self._took[host] = took_s, now
        while len(self._took) > READERS or next(iter(self._took.values()))[1] < now - KEPT_S:
            self._took.popitem(last=False)

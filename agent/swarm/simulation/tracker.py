"""What the tracker and the have-lists cost: messages and bytes, by the real codecs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imgdist.wire import mesh, tracker
from imgdist.wire.tracker import PEERS_MAX, PROGRESS_FILLING_S, Join, Peer, Peers, Progress, Share

_FRAME_BYTES = 8
"""WebSocket header of a masked message of up to 64 KiB (RFC 6455 section 5.2); those to an agent have 4."""
_EARLIER = 0.9
"""Progress is told up to a fifth earlier than every PROGRESS_FILLING_S, at random."""
_NODE = "0" * 32
_SWARM = "0" * 64


@dataclass(frozen=True, slots=True)
class Control:
    """Beside chunk bodies: a tracker's messages, both ways, and the have-lists that a node sends to its neighbours."""

    tracker_messages: int
    tracker_bytes: int
    have_messages: int
    have_bytes: int


def control(done_at: Sequence[float], chunks: int, flushes: int, neighbours: float) -> Control:
    """Of nodes that were done at these times after their start. Each joins once, is told peers then and once more when
    those that came with it are known, tells its progress while it lacks chunks, and that it is complete."""
    peer = Peer(_NODE, "192.168.100.100:7651", "zone-100")
    join = tracker.encode(Join(1, 1, _NODE, "node-10000", "", 7651, "zone-100", (Share(_SWARM, 0, chunks),)))
    peers = tracker.encode(Peers((peer,) * PEERS_MAX))
    progress = tracker.encode(Progress((Share(_SWARM, chunks, chunks),)))
    reports = sum(int(seconds / (PROGRESS_FILLING_S * _EARLIER)) + 1 for seconds in done_at)
    joined = len(done_at)
    mean = chunks * joined / flushes if flushes else 0.0
    have = mesh.encode(mesh.Have(0, bytes(4 * max(1, round(mean)))))
    return Control(
        3 * joined + reports,
        joined * (len(join) + 2 * len(peers) + 3 * _FRAME_BYTES) + reports * (len(progress) + _FRAME_BYTES),
        round(flushes * neighbours),
        round(flushes * neighbours * len(have)),
    )

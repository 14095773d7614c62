"""Another agent as a source of chunks."""

from __future__ import annotations

from collections.abc import Callable

from agent.swarm.neighbours import SILENCE_S
from agent.swarm.patience import Patience
from imgdist.errors import UsageError
from imgdist.wire.client import ChunkClient, OnChunk, OnHead, OnNumbers, OnPause, Told, ignore
from imgdist.wire.clusterkey import ClusterKey
from imgdist.wire.requests import BodyRequest, ChunkRequest
from imgdist.wire.tracker import peer_address

CONNECT_TIMEOUT_S = 1.5
"""A peer is near, and there are others: a lost SYN is sent again after 1 s (tcp(7)), then it is given up (a guess)."""


class PeerChunks:
    """The chunk bodies of the agent at `address` ("host:port"; UsageError if it is none). Two of the same address are
    equal: a source that left and comes again is the same one to the policy. `patience` is shared with other peers.
    `node()` is where others reach this one (host:port), "" if nobody does: a member can be sent elsewhere."""

    kind = "peer"

    def __init__(
        self,
        address: str,
        patience: Patience | None = None,
        node: Callable[[], str] = lambda: "",
        key: ClusterKey | None = None,
    ) -> None:
        self._patience = patience or Patience()
        self._node = node
        self._client = ChunkClient(
            peer_address(address),
            connect_timeout_s=CONNECT_TIMEOUT_S,
            read_timeout_s=self._patience.seconds,
            key=key,
        )
        self.name = str(self._client.address)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PeerChunks) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def fetch(
        self,
        request: BodyRequest,
        on_chunk: OnChunk,
        on_head: OnHead = ignore,
        on_numbers: OnNumbers = ignore,
        on_pause: OnPause | None = None,
    ) -> None:
        """As ChunkClient.fetch. An answer that may wait says nothing of how long answers take. Agents leave the choice
        to who asks: what is left to them ends with NotFoundError."""
        self._client.read_timeout_s = self._patience.seconds
        self._client.node = self._node()
        is_timed = isinstance(request, ChunkRequest) and not request.wait_s
        self._client.fetch(request, on_chunk, self._timed(on_head) if is_timed else on_head, on_numbers, on_pause)

    def probe(self, timeout_s: float) -> None:
        """As ChunkClient.probe."""
        self._client.probe(timeout_s)

    def renew(self) -> None:
        """As ChunkClient.renew, of what has been silent for longer than a live peer is."""
        self._client.renew(SILENCE_S)

    def close(self) -> None:
        """End fetches in progress; later ones fail with TemporaryError."""
        self._client.close()

    def _timed(self, on_head: OnHead) -> OnHead:
        def told(head: Told) -> None:
            self._patience.answered(head.round_trip_s)
            on_head(head)

        return told


def reach(
    address: str,
    *,
    allow_plain: bool,
    patience: Patience | None = None,
    node: Callable[[], str] = lambda: "",
    key: ClusterKey | None = None,
) -> PeerChunks | None:
    """The agent at an address that somebody named; None if that is no address, or one that must not be spoken to
    without TLS."""
    try:
        peer = PeerChunks(address, patience, node, key)
    except UsageError:
        return None
    return peer if allow_plain or peer_address(address).is_local else None

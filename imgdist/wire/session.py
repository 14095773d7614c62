"""A client's connection at a chunk server, from the server's side."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from imgdist.errors import ProtocolError, UsageError
from imgdist.wire.address import Address
from imgdist.wire.answer import Answer
from imgdist.wire.arrivals import Arrivals
from imgdist.wire.clusterkey import MESH, ClusterKey
from imgdist.wire.load import Ticket
from imgdist.wire.messages import Priority
from imgdist.wire.outstanding import Distances, Outstanding, UrgentQueue
from imgdist.wire.requests import (
    AnyRequest,
    BodyRequest,
    ChunkRequest,
    HelloRequest,
    MeshRequest,
    Request,
    RequestDecoder,
)
from imgdist.wire.responses import encode_head
from imgdist.wire.tracker import peer_address

TURN_S = 0.05
"""How long a slot stays with one answer: longer without room than any link is between two acknowledgements, short
enough that eight vanished readers hold nobody up for longer (a guess)."""
STAY_S = 0.003
"""How long a demand slot keeps a connection after its answer: the next miss of a chain then needs no hand-off from the
watcher [measured at load 5: least tenth of the misses 1.16 -> 1.02 ms]."""
VANISHED_S = 10.0
"""Without acknowledgement for so long a reader is gone (TCP_USER_TIMEOUT, tcp(7)); as long as clients wait."""
UNPACED = b"cubic"
"""Congestion control of single misses. BBR would spread the next one over as long as the last one took in a queue
[measured beside fill at 200 Mbit/s: p99 46-80 ms with BBR, 18 with CUBIC; p50 beyond the wire time 0.8-1.7 and 0.7]."""
_PACKS_SEEN = 64
"""Packs of which is known how much of their news went out on a connection."""


class Session:
    """Owned by the watcher while idle or without room, by one slot while a request is served."""

    __slots__ = (
        "_seen",
        "_told",
        "answer",
        "decoder",
        "fd",
        "idle_since",
        "key",
        "outstanding",
        "parked_until",
        "peer",
        "pending",
        "queue",
        "socket",
        "ticket",
        "unpaced",
    )

    def __init__(self, sock: socket.socket, peer: str | None, now: float, key: ClusterKey | None = None) -> None:
        """`key`: without a token of it nothing is answered but a hello."""
        self.socket = sock
        self.key = key
        self.peer = peer
        self.fd = sock.fileno()
        self.decoder = RequestDecoder()
        self.pending: deque[Request] = deque()
        self.answer: Answer | None = None
        self.ticket: Ticket | None = None
        self.idle_since: float | None = now
        self.parked_until: float | None = None
        self.outstanding: Outstanding | None = None
        self.queue: UrgentQueue | None = None
        self.unpaced = False
        self._seen: dict[str, int] = {}
        self._told = ("", "")

    @classmethod
    def accepted(cls, sock: socket.socket, host: str | None, now: float, key: ClusterKey | None = None) -> Session:
        """The session of a socket that was just accepted; `host` is None for unix sockets, which are root's alone:
        nobody needs `key` there."""
        sock.setblocking(True)
        set_timeouts(sock, STAY_S, TURN_S)
        if host is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(VANISHED_S * 1000))
        return cls(sock, host, now, key if host is not None else None)

    @property
    def request(self) -> BodyRequest | None:
        """Which one is or will be answered by a slot next; None if there is none, or it is about something else."""
        if self.answer is not None:
            return self.answer.request
        first = self.pending[0] if self.pending else None
        return first if isinstance(first, (ChunkRequest, AnyRequest)) else None

    def suit(self, priority: Priority, distances: Distances) -> None:
        """Set the socket up for requests of this priority."""
        if self.peer is None:
            return
        if priority is Priority.FILL:
            self.outstanding = self.outstanding or Outstanding(self.socket, self.peer, distances)
            return
        if priority is Priority.DEMAND and not self.unpaced:
            self.unpaced = True
            with contextlib.suppress(OSError):  # it keeps the system's
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, UNPACED)
        self.queue = self.queue or UrgentQueue(self.socket)
        self.queue.tune()

    def take_in(self, data: bytes) -> bool:
        """Take in what came; False if that was the end."""
        try:
            requests = self.decoder.feed(data)
        except ProtocolError as error:
            self.refuse(400, str(error))
            return False
        if self.key is not None and not all(_is_a_nodes(request, self.key) for request in requests):
            self.refuse(403, "expected a token of this cluster's key (access.key_file)")
            return False
        self.pending.extend(map(self._located, requests))
        return bool(data)

    def _located(self, request: Request) -> Request:
        """With the address at which others reach whoever asks, if they can: one at its own loopback is nobody's."""
        if not isinstance(request, (ChunkRequest, AnyRequest)) or not request.node:
            return request
        if request.node != self._told[0]:
            self._told = (request.node, _told_of(request.node, self.peer))
        return request if request.node == self._told[1] else replace(request, node=self._told[1])

    def news(self, name: str, arrivals: Arrivals | None) -> tuple[int, ...]:
        """What came of a pack since its last answer here, as far as it is remembered."""
        if arrivals is None:
            return ()
        numbers, self._seen[name] = arrivals.since(self._seen.pop(name, 0))
        if len(self._seen) > _PACKS_SEEN:
            del self._seen[next(iter(self._seen))]
        return numbers

    def refuse(
        self,
        status: int,
        reason: str,
        retry_after_s: float | None = None,
        addresses: Sequence[str] = (),
        *,
        from_here: bool = False,
    ) -> bool:
        """Send a short answer; False if that failed. Never blocks."""
        body = (reason + "\n").encode("utf-8", "replace")[:1024]
        head = encode_head(
            status,
            len(body),
            keep_alive=status not in (400, 403),
            retry_after_s=retry_after_s,
            addresses=addresses,
            from_here=from_here,
        )
        return self.say(head + body)

    def say(self, data: bytes) -> bool:
        """Send something short; False if that failed. Never blocks."""
        try:
            return self.socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(data)
        except OSError:
            return False


def _is_a_nodes(request: Request, key: ClusterKey) -> bool:
    """Whether whoever asks is a node. Who is here is told to everybody: a tracker looks whether others reach us."""
    if isinstance(request, HelloRequest):
        return True
    what = MESH if isinstance(request, MeshRequest) else request.name
    return key.accepts(what, request.token)


def _told_of(node: str, peer: str | None) -> str:
    """What others may be told of an address that a client calls its own; "" for nothing."""
    try:
        address = peer_address(node)
    except UsageError:
        return ""
    is_elsewhere = peer is not None and not Address(peer).is_local
    return "" if address.is_local and is_elsewhere else str(address)


def set_timeouts(sock: socket.socket, receive_s: float, send_s: float) -> None:
    """SO_RCVTIMEO and SO_SNDTIMEO, socket(7); 0 is for ever."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, int(receive_s * 1e6)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, int(send_s * 1e6)))

"""One connection with a neighbour, on the event loop: the upgrade, frames in and out, and what it must not exceed.

Its transport sends, and reads until the other side has said who it is; from then on the inbox reads, together with what
others say.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from agent.swarm.inbox import Inbox
from imgdist.errors import ProtocolError
from imgdist.wire.clusterkey import MESH, ClusterKey
from imgdist.wire.mesh import (
    Bye,
    FrameDecoder,
    Hello,
    Message,
    agreed_version,
    answered_token,
    decode_upgrade,
    encode,
    upgrade_request,
)

_log = logging.getLogger("imgdist.agent")

MESSAGES_PER_S = 500
"""A neighbour sends at most 100 haves a second for each layer that it fills, and it fills a few."""
MESSAGES_BURST = 8192
"""What it may send at once: an Open for each swarm that it is in, several times."""
_UNREAD_MAX = 16 << 20
"""Bytes that wait for a neighbour which does not read: all its Opens are 4 MiB at most, with what came since."""


class Owner(Protocol):
    """Who is told of a connection (the mesh)."""

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """The other side has said who it is, for the first time or anew. ProtocolError ends the connection."""

    def received(self, connection: Connection, message: Message) -> None:
        """A message came, after the hello. ProtocolError ends the connection."""

    def room(self, connection: Connection) -> None:
        """What waited for the neighbour to read is sent."""

    def lost(self, connection: Connection) -> None:
        """It is closed, by whichever side."""


class Connection(asyncio.Protocol):
    """`opened_to` is "host:port" where we opened it, empty where the other side did; `pending` are bytes that were read
    before. `fault` tells after the end what the other side did wrong. With `key`, whom we opened it to proves to have
    it, too, before anything is told; who opened one to us has done so."""

    def __init__(
        self,
        owner: Owner,
        hello: Hello,
        clock: Callable[[], float],
        inbox: Inbox,
        *,
        opened_to: str = "",
        pending: bytes = b"",
        key: ClusterKey | None = None,
    ) -> None:
        self._owner = owner
        self._mine = hello
        self._clock = clock
        self._inbox = inbox
        self._fd = -1
        self._key = key if opened_to else None
        self._token = ""
        self._pending = pending
        self._head = bytearray() if opened_to else None  # of the answer to our upgrade, while it is not whole
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._allowance = float(MESSAGES_BURST)
        self.opened_to = opened_to
        self.hello: Hello | None = None
        self.remote_host = ""
        self.since = self.heard_at = self.sent_at = clock()
        self.is_full = False
        self.left = False
        """The other side said good-bye, or we did."""
        self.fault: ProtocolError | None = None

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.remote_host = peer[0] if isinstance(peer, tuple) else ""
        if self.opened_to:
            self._token = self._key.token(MESH) if self._key is not None else ""
            transport.write(upgrade_request(self.opened_to, self._token))
        if self._key is None:
            self.send(encode(self._mine))
        if self._pending:
            self.data_received(self._pending)

    def data_received(self, data: bytes | memoryview) -> None:
        if self.is_closing:
            self._inbox.drop(self._fd)
            return
        if not data:
            self.abort()
            return
        now = self._clock()
        self._allowance = min(MESSAGES_BURST, self._allowance + (now - self.heard_at) * MESSAGES_PER_S)
        self.heard_at = now
        try:
            if self._head is not None:
                data = self._after_upgrade(data)
            for message in self._decoder.feed(data):
                self._take(message)
                if self.left or self.is_closing:
                    return
        except ProtocolError as error:
            self.break_off(error)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._owner.room(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._inbox.drop(self._fd)
        self._owner.lost(self)

    # What the mesh calls.

    @property
    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    def send(self, frame: bytes) -> None:
        """Send whole frames. One who does not read what is sent is left."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(frame)
        self.sent_at = self._clock()
        if self.is_full and self._transport.get_write_buffer_size() > _UNREAD_MAX:
            _log.info("mesh: %s does not read what it is told", self.remote_host)
            self.abort()

    def part(self) -> None:
        """Close in order."""
        self.send(encode(Bye()))
        self.left = True
        if self._transport is not None:
            self._transport.close()

    def break_off(self, fault: ProtocolError) -> None:
        """Close at once: the other side did what it must not."""
        self.fault = fault
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _move(self) -> None:
        """The inbox reads from now on."""
        if self._transport is not None and not self._transport.is_closing():
            # Not before the transport has begun to read, which follows `connection_made`.
            asyncio.get_running_loop().call_soon(self._transport.pause_reading)
            self._fd = self._transport.get_extra_info("socket").fileno()
            self._inbox.add(self._fd, self.data_received)

    def _after_upgrade(self, data: bytes | memoryview) -> bytes:
        """What follows the answer's head; nothing while it is not whole."""
        assert self._head is not None
        self._head += data
        end = decode_upgrade(self._head)
        if end is None:
            return b""
        if self._key is not None and not self._key.accepts(f"{MESH} {self._token}", answered_token(self._head[:end])):
            raise ProtocolError("expected a node of this cluster, which has its key (access.key_file)")
        rest, self._head = bytes(self._head[end:]), None
        if self._key is not None:  # nothing is told before
            self.send(encode(self._mine))
        return rest

    def _take(self, message: Message) -> None:
        self._allowance -= 1
        if self._allowance < 0:
            raise ProtocolError(f"more than {MESSAGES_PER_S} messages a second")
        if isinstance(message, Hello):
            agreed_version(self._mine, message)
            if self.hello is not None and self.hello.node != message.node:
                raise ProtocolError("another node within one connection")
            self._owner.greeted(self, message)
            if self.hello is None:
                self._move()
            self.hello = message
        elif self.hello is None:
            raise ProtocolError(f"expected a hello first, got {type(message).__name__}")
        elif isinstance(message, Bye):
            self.left = True
            if self._transport is not None:
                self._transport.close()
        else:
            self._owner.received(self, message)

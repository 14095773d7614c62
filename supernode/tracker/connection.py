"""One agent's WebSocket: bounded messages at a bounded rate in, messages that never wait out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from aiohttp import WSMsgType, web

from imgdist.errors import ProtocolError, UsageError
from imgdist.wire.address import Address, plain_ip
from imgdist.wire.tracker import MESSAGE_MAX, FromTracker, Join, encode, peer_address

log = logging.getLogger("imgdist.tracker")

UNREAD_MAX = 32 << 10
"""Bytes that an agent may leave unread before it is let go; asyncio makes writers wait at 64 KiB, none ever does."""
MESSAGES_BURST, MESSAGES_PER_S = 64.0, 4.0
"""Messages beyond this are read later. An agent that fills sends one in 5 s, and a few at the start of an image."""
BYTES_PER_MESSAGE = 4096
"""So many bytes of a message count as another one: some 50 swarms."""
CLOSE_TIMEOUT_S = 1.0


class Connection:
    """One agent's connection; `node` is "" before it has joined."""

    def __init__(self, request: web.Request, now: float) -> None:
        if request.transport is None:
            raise ConnectionResetError("closed before it was answered")
        self.socket = web.WebSocketResponse(
            compress=False, autoping=False, max_msg_size=MESSAGE_MAX, timeout=CLOSE_TIMEOUT_S
        )
        self._transport = request.transport
        self._credit = MESSAGES_BURST
        self._credited_at = now
        self.node = ""
        self.version = 0
        peer = request.transport.get_extra_info("peername")
        host = plain_ip(peer[0]) if isinstance(peer, tuple) else None
        self.seen_host = str(host or "")
        self.from_loopback = host is None or host.is_loopback

    def address_of(self, join: Join) -> Address | None:
        """Where the agent is to be reached: where it says, else where it comes from. Raises UsageError."""
        if join.address:
            address = peer_address(join.address)
            # Its own loopback, from another machine: a probe would go to ours.
            return address if self.from_loopback or not address.is_local else None
        if not self.seen_host or not join.port:
            return None
        try:
            return peer_address(str(Address(self.seen_host, join.port)))
        except UsageError:  # a link-local address: it means something else on every machine
            return None

    async def receive(self, clock: Callable[[], float]) -> bytes | None:
        """The next message; None at the end. Raises ProtocolError for what is no binary message within the bounds."""
        while True:
            message = await self.socket.receive()
            if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                return None
            if message.type is WSMsgType.ERROR:
                raise ProtocolError(f"tracker: {message.data}")
            await self._pay(1 + len(message.data) / BYTES_PER_MESSAGE, clock())
            if message.type is WSMsgType.BINARY:
                data: bytes = message.data
                return data
            if message.type is WSMsgType.PING:
                await self.socket.pong(message.data)
            elif message.type is not WSMsgType.PONG:
                raise ProtocolError("tracker: expected binary messages, got text")

    async def send(self, message: FromTracker) -> None:
        """Raises ConnectionError if the agent is gone, or does not read."""
        if self._transport.get_write_buffer_size() > UNREAD_MAX:
            self.abort("does not read what it is told")
        await self.socket.send_bytes(encode(message))

    async def push(self, message: FromTracker) -> None:
        """Send; whether the agent is still there is for its own task to find out."""
        with suppress(ConnectionError):
            await self.send(message)

    def end(self) -> None:
        """Close the connection after what was sent."""
        self._transport.close()

    def abort(self, reason: str) -> None:
        """Cut the connection."""
        log.info("agent %s at %s: connection ended: it %s", self.node, self.seen_host, reason)
        self._transport.abort()

    async def _pay(self, price: float, now: float) -> None:
        """Wait until the agent may have said that much."""
        self._credit = min(MESSAGES_BURST, self._credit + (now - self._credited_at) * MESSAGES_PER_S) - price
        self._credited_at = now
        if self._credit < 0:
            await asyncio.sleep(-self._credit / MESSAGES_PER_S)

"""How connections come about: those opened to other agents, those that others open, until each has said who it is."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from agent.swarm.connection import Connection
from imgdist.wire.tracker import Peer, peer_address

_log = logging.getLogger("imgdist.agent")

HELLO_S = 5.0
"""For connecting and for the other side's hello. An agent that is being started again needs one."""
PENDING_MAX = 64
"""Connections of others that have not said who they are."""

Make = Callable[[str, bytes], Connection]
"""(opened to "host:port", bytes read before) makes a connection that has not begun."""


class Doors:
    """An async context: connections being made end with it."""

    def __init__(self, make: Make, failed: Callable[[Peer], None], clock: Callable[[], float]) -> None:
        """`failed` is told of a peer to which no connection came about."""
        self._make = make
        self._failed = failed
        self._clock = clock
        self._tasks = asyncio.TaskGroup()
        self._loop = asyncio.get_running_loop()
        self._open = False
        self._pending: dict[Connection, Peer | None] = {}
        self._accepted: dict[Connection, socket.socket] = {}  # no transport's yet

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        for connection in list(self._pending):
            connection.abort()
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            for accepted in self._accepted.values():  # of tasks that were cancelled before they began
                accepted.close()

    @property
    def dialing(self) -> set[str]:
        """Node ids of those to whom connections are being opened."""
        return {peer.node for peer in self._pending.values() if peer is not None}

    def dial(self, peer: Peer) -> None:
        """Open a connection."""
        connection = self._make(peer.address, b"")
        self._pending[connection] = peer
        self._start(self._connect(connection, peer))

    def accept(self, accepted: socket.socket, pending: bytes) -> None:
        """Take over a connection that another agent opened; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._take, accepted, pending)
        except RuntimeError:  # the loop is closed
            accepted.close()

    def greeted(self, connection: Connection) -> Peer | None:
        """It has said who it is; to whom it was opened."""
        return self._pending.pop(connection, None)

    def lost(self, connection: Connection) -> bool:
        """It is closed; whether that was before it was greeted."""
        if connection not in self._pending:
            return False
        peer = self._pending.pop(connection)
        if peer is not None and self._open:
            _log.debug("mesh: no connection with %s: %s", peer.address, connection.fault or "it was closed")
            self._failed(peer)
        return True

    def expire(self) -> None:
        """Close those that take too long to say who they are."""
        for connection in [one for one in self._pending if self._clock() - one.since > HELLO_S]:
            connection.abort()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        if not self._open:
            work.close()
            return
        self._tasks.create_task(work)

    def _take(self, accepted: socket.socket, pending: bytes) -> None:
        if not self._open or sum(peer is None for peer in self._pending.values()) >= PENDING_MAX:
            accepted.close()
            return
        accepted.setblocking(False)
        connection = self._make("", pending)
        self._pending[connection] = None
        self._accepted[connection] = accepted
        self._start(self._adopt(connection))

    async def _adopt(self, connection: Connection) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, self._accepted.pop(connection))
        except OSError:
            self.lost(connection)

    async def _connect(self, connection: Connection, peer: Peer) -> None:
        address = peer_address(peer.address)
        try:
            async with asyncio.timeout(HELLO_S):
                await self._loop.create_connection(lambda: connection, address.host, address.port)
        except (OSError, TimeoutError) as error:
            _log.debug("mesh: cannot connect to %s: %s", peer.address, error or "no answer")
            self.lost(connection)

"""grpclib's server, with an end that no client notices and one write for each answer."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, cast
from weakref import WeakSet

from grpclib._typing import IServable
from grpclib.protocol import H2Protocol
from grpclib.server import Server
from hyperframe.frame import Frame

# h2 writes each frame that comes out in letters, for a log that is off [measured: a tenth of what it does for a call].
Frame.__repr__ = object.__repr__  # type: ignore[method-assign]


class SnapshotsServer(Server):
    """Knows its connections: `leave` tells each client to go on elsewhere."""

    def __init__(self, handlers: Collection[IServable]) -> None:
        super().__init__(handlers)
        self._connections: WeakSet[H2Protocol] = WeakSet()

    @property
    def calls(self) -> int:
        """How many are being answered."""
        return sum(not task.done() for handler in self._handlers for task in handler._tasks.values())

    def leave(self) -> None:
        """Accept nothing more, and end every connection with GOAWAY (RFC 9113, 6.8): a call that comes too late was
        not looked at, and its client makes it again on its next connection. Without a suspension, so that no call
        comes between. What is not answered by now is cut off."""
        if self._server is not None:
            self._server.close()
        for protocol in list(self._connections):
            connection = getattr(protocol, "connection", None)  # none yet, if it was accepted in this turn of the loop
            if connection is not None and not connection.is_closing():
                connection._connection.close_connection()
                connection.flush()
                connection.close()

    def _protocol_factory(self) -> H2Protocol:
        made = super()._protocol_factory()
        protocol = _Protocol(made.handler, made.config, made.h2_config)
        self._connections.add(protocol)
        return protocol


class _Protocol(H2Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, _Gathering(cast(asyncio.Transport, transport))))


class _Gathering:
    """A transport that sends what one turn of the event loop writes at once. An answer is three frames and two window
    updates, which grpclib writes one by one [measured: 2.3 sends a call, half of its CPU time; now one]."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._pending: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._flush)
        self._pending.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        data, self._pending = b"".join(self._pending), []
        if data and not self._transport.is_closing():
            self._transport.write(data)

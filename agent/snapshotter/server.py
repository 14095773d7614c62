"""grpclib's server, with an end that no client notices."""

from __future__ import annotations

from collections.abc import Collection
from weakref import WeakSet

from grpclib._typing import IServable
from grpclib.protocol import H2Protocol
from grpclib.server import Server


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
        protocol = super()._protocol_factory()
        self._connections.add(protocol)
        return protocol

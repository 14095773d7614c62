"""Fetches chunk bodies: blocking, for threads, over persistent connections."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from imgdist.errors import ImgdistError, NotFoundError, ProtocolError, TemporaryError, UnreachableError
from imgdist.wire.address import Address
from imgdist.wire.connection import Connection
from imgdist.wire.messages import FRAME_SIZE, Priority, ResponseHead, decode_frame, encode_request

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 10.0
"""Longest silence of a server within an answer."""
IDLE_CONNECTIONS = 8
"""Connections kept per priority; as many as an agent has demand threads."""
_REFUSAL_MAX = 4096

OnChunk = Callable[[int, int, memoryview], None]
"""Called as on_chunk(number, encoding, body); `body` is valid during the call only."""


OnHead = Callable[[float], None]
"""Called when an answer begins, with the seconds since its request was sent (a connection stood already)."""


class ChunkClient:
    """Asks one chunk server. Thread-safe; each call has a connection of its own while it runs.

    Priorities never share a connection: a fill's bytes in a socket buffer would make demand wait.
    """

    def __init__(
        self, address: Address, *, connect_timeout_s: float = CONNECT_TIMEOUT_S, read_timeout_s: float = READ_TIMEOUT_S
    ) -> None:
        self.address = address
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._lock = threading.Lock()
        self._idle: dict[Priority, list[Connection]] = {priority: [] for priority in Priority}
        self._busy: set[Connection] = set()
        self._closed = False

    def fetch(
        self,
        name: str,
        numbers: Sequence[int],
        priority: Priority,
        on_chunk: OnChunk,
        on_head: OnHead | None = None,
    ) -> None:
        """Fetch chunks `numbers` of pack `name`, calling `on_chunk` for each in order, as it arrives, unverified.

        `on_head` is told the round-trip time. An exception of `on_chunk` ends the fetch and comes out as it is. Raises
        NotFoundError (no such pack, or a chunk is not there yet), TemporaryError (refused, time-out, cut, busy:
        `retry_after_s`) and ProtocolError. Chunks handed to `on_chunk` before an error count.
        """
        connection, head = self._ask(encode_request(name, numbers, priority), priority)
        reusable = False
        refusal: ImgdistError | None = None
        try:
            if on_head is not None:
                on_head(connection.answered_after_s)
            if head.status == 200:
                self._read_chunks(connection, head, numbers, on_chunk)
            else:
                refusal = self._read_refusal(connection, head, name)
            reusable = head.keep_alive and connection.is_drained
        finally:
            self._put_back(connection, priority, reusable)
        if refusal is not None:
            raise refusal

    def close(self) -> None:
        """Close every connection; fetches in progress end with TemporaryError."""
        with self._lock:
            self._closed = True
            idle = [connection for pool in self._idle.values() for connection in pool]
            for pool in self._idle.values():
                pool.clear()
            for connection in self._busy:
                connection.abort()
        for connection in idle:
            connection.close()

    def _ask(self, request: bytes, priority: Priority) -> tuple[Connection, ResponseHead]:
        """Send a request and read the answer's head; anew if a kept connection proves to be stale."""
        while True:
            connection, kept = self._take(priority)
            head = None
            try:
                head = connection.ask(request)
            finally:
                if head is None:
                    self._put_back(connection, priority, False)
            if head is not None:
                return connection, head
            if not kept:
                raise UnreachableError(f"{self.address}: closed the connection instead of answering")
            self._drop_idle(priority)  # what closed this one (a restart) has closed those too; the next is fresh

    def _read_chunks(
        self, connection: Connection, head: ResponseHead, numbers: Sequence[int], on_chunk: OnChunk
    ) -> None:
        rest = head.length
        for number in numbers:
            frame = decode_frame(connection.read(FRAME_SIZE)) if rest >= FRAME_SIZE else None
            if frame is None or frame.number != number or frame.length > rest - FRAME_SIZE:
                raise ProtocolError(f"{self.address}: expected chunk {number} within {rest} bytes, got {frame}")
            rest -= FRAME_SIZE + frame.length
            on_chunk(number, frame.encoding, connection.read(frame.length))
        if rest:
            raise ProtocolError(f"{self.address}: expected {len(numbers)} chunks, got {rest} bytes beyond them")

    def _read_refusal(self, connection: Connection, head: ResponseHead, name: str) -> ImgdistError:
        if head.length > _REFUSAL_MAX:
            raise ProtocolError(f"{self.address}: status {head.status} with {head.length} bytes")
        text = bytes(connection.read(head.length)).decode("utf-8", "replace").strip()
        if head.status == 404:
            return NotFoundError(f"{self.address}: pack {name}: {text}")
        if head.status in (429, 500, 502, 503, 504):
            return TemporaryError(f"{self.address}: status {head.status}: {text}", head.retry_after_s)
        return ProtocolError(f"{self.address}: expected status 200, got {head.status}: {text}")

    def _take(self, priority: Priority) -> tuple[Connection, bool]:
        """A connection and whether it was kept from an earlier request."""
        with self._lock:
            self._refuse_if_closed()
            if self._idle[priority]:
                connection = self._idle[priority].pop()
                self._busy.add(connection)
                return connection, True
        connection = Connection(self.address, self._connect_timeout_s, self._read_timeout_s)
        try:
            with self._lock:
                self._refuse_if_closed()
                self._busy.add(connection)
        except TemporaryError:
            connection.close()
            raise
        return connection, False

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise TemporaryError(f"{self.address}: the client is closed")

    def _put_back(self, connection: Connection, priority: Priority, reusable: bool) -> None:
        with self._lock:
            self._busy.discard(connection)
            if reusable and not self._closed and len(self._idle[priority]) < IDLE_CONNECTIONS:
                self._idle[priority].append(connection)
                return
        connection.close()

    def _drop_idle(self, priority: Priority) -> None:
        with self._lock:
            stale, self._idle[priority] = self._idle[priority], []
        for connection in stale:
            connection.close()

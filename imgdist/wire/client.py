"""Fetches chunk bodies: blocking, for threads, over persistent connections."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imgdist.errors import (
    ImgdistError,
    NotFoundError,
    NotYetError,
    ProtocolError,
    RedirectedError,
    TemporaryError,
    UnreachableError,
)
from imgdist.wire.address import Address
from imgdist.wire.clusterkey import ClusterKey
from imgdist.wire.connection import Connection
from imgdist.wire.messages import FRAME_SIZE, Priority, decode_frame
from imgdist.wire.requests import HELLO, BodyRequest, ChunkRequest, encode
from imgdist.wire.responses import ResponseHead

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 10.0
"""Longest silence of a server within an answer."""
IDLE_CONNECTIONS = 8
"""Connections kept per priority; as many as an agent has demand threads."""
_REFUSAL_MAX = 4096

OnChunk = Callable[[int, int, memoryview], None]
"""Called as on_chunk(number, encoding, body); `body` is valid during the call only."""
OnNumbers = Callable[[tuple[int, ...]], None]
"""Called with the chunks that a server chose, before they come."""
OnPause = Callable[[], None]
"""Called before the thread waits for an answer or more of its chunks: what was put off is to be done then."""


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer's head says: seconds since its request was sent (a connection stood already), bytes that wait at
    the sender with that urgency or a higher one (None: it does not say), chunks that came to the sender lately."""

    round_trip_s: float
    queue_bytes: int | None = None
    have: tuple[int, ...] = ()


OnHead = Callable[[Told], None]
"""Called when an answer begins, a refusal too."""


def ignore(_: object) -> None:
    """An `OnHead` or `OnNumbers` of who does not want to know."""


class ChunkClient:
    """Asks one chunk server. Thread-safe; each call has a connection of its own while it runs.

    Priorities do not share a connection: a fill's bytes in a socket buffer would make demand wait. What was read to its
    end for a trace, or a job, is as good as a new one.
    `node`, which may be set later: where others reach this member of the swarm (host:port), "" if nobody does; None: it
    is no member, and is made to wait rather than sent elsewhere. `read_timeout_s`, too: it is of requests that begin.
    `key` proves that a node asks.
    """

    def __init__(
        self,
        address: Address,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        node: str | None = None,
        key: ClusterKey | None = None,
    ) -> None:
        self.address = address
        self.node = node
        self._key = key
        self._connect_timeout_s = connect_timeout_s
        self.read_timeout_s = read_timeout_s
        self._lock = threading.Lock()
        self._idle: dict[Priority, list[Connection]] = {priority: [] for priority in Priority}
        self._busy: set[Connection] = set()
        self._closed = False

    def fetch(
        self,
        request: BodyRequest,
        on_chunk: OnChunk,
        on_head: OnHead = ignore,
        on_numbers: OnNumbers = ignore,
        on_pause: OnPause | None = None,
    ) -> None:
        """Fetch chunks, calling `on_chunk` for each in order, as it arrives, unverified; before that, where the server
        chooses them, `on_numbers` with its choice. Node and token of the request are this client's.

        `wait_s`: this node was sent here (RedirectedError), or elsewhere often enough; an agent that is getting the
        chunks itself may take so long, beyond `read_timeout_s`, until they are there.

        An exception of a callback ends the fetch and comes out as it is. Raises NotFoundError (no such pack, or a chunk
        is not there yet), RedirectedError, TemporaryError (refused, time-out, cut, busy: `retry_after_s`) and
        ProtocolError. Chunks handed to `on_chunk` before an error count.
        """
        connection, head = self._ask(request, on_pause)
        reusable = False
        refusal: ImgdistError | None = None
        try:
            on_head(Told(connection.answered_after_s, head.queue_bytes, head.have))
            if head.status == 200:
                numbers = self._expected(request, head, on_numbers)
                self._read_chunks(connection, head, numbers, on_chunk, on_pause)
            else:
                refusal = self._read_refusal(connection, head, request.name)
            reusable = head.keep_alive and connection.is_drained
        finally:
            self._put_back(connection, request.priority, reusable)
        if refusal is not None:
            raise refusal

    def probe(self, timeout_s: float) -> None:
        """Return if somebody answers, on a connection of its own. Raises TemporaryError, ProtocolError."""
        connection = Connection(self.address, timeout_s, timeout_s)
        try:
            if connection.ask(HELLO) is None:
                raise UnreachableError(f"{self.address}: closed the connection instead of answering")
        finally:
            connection.close()

    def renew(self, silent_s: float) -> None:
        """The server was away, and is back: requests that have heard nothing for so long are sent again, on fresh
        connections; answers that broke off end with TemporaryError."""
        before = time.monotonic() - silent_s
        with self._lock:
            stale = [connection for pool in self._idle.values() for connection in pool]
            for pool in self._idle.values():
                pool.clear()
            for connection in self._busy:
                if connection.heard_at < before:
                    connection.abort()
        for connection in stale:
            connection.close()

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

    def _ask(self, request: BodyRequest, on_pause: OnPause | None) -> tuple[Connection, ResponseHead]:
        """Send a request and read the answer's head; anew if a kept connection proves to be stale."""
        token = self._key.token(request.name) if self._key is not None else ""
        data = encode(request, node=self.node, token=token)
        timeout_s = self.read_timeout_s + (request.wait_s if isinstance(request, ChunkRequest) else 0.0)
        while True:
            connection, kept = self._take(request.priority, timeout_s, on_pause)
            head = None
            try:
                head = connection.ask(data, on_pause)
            finally:
                if head is None:
                    self._put_back(connection, request.priority, False)
            if head is not None:
                return connection, head
            if not kept and not connection.is_aborted:
                raise UnreachableError(f"{self.address}: closed the connection instead of answering")
            self._drop_idle(
                request.priority
            )  # what closed this one (a restart) has closed those too; the next is fresh

    def _expected(self, request: BodyRequest, head: ResponseHead, on_numbers: OnNumbers) -> Sequence[int]:
        """The chunks that come. ProtocolError if the server chose others than it might have."""
        if isinstance(request, ChunkRequest):
            return request.numbers
        chosen, lacks = head.chunks, request.lacks
        if not 0 < len(set(chosen)) == len(chosen) <= request.count or not all(lacks >> n & 1 for n in chosen):
            raise ProtocolError(f"{self.address}: expected up to {request.count} chunks that are missing, got {chosen}")
        on_numbers(chosen)
        return chosen

    def _read_chunks(
        self,
        connection: Connection,
        head: ResponseHead,
        numbers: Sequence[int],
        on_chunk: OnChunk,
        on_pause: OnPause | None,
    ) -> None:
        rest = head.length
        for number in numbers:
            frame = decode_frame(connection.read(FRAME_SIZE, on_pause)) if rest >= FRAME_SIZE else None
            if frame is None or frame.number != number or frame.length > rest - FRAME_SIZE:
                raise ProtocolError(f"{self.address}: expected chunk {number} within {rest} bytes, got {frame}")
            rest -= FRAME_SIZE + frame.length
            on_chunk(number, frame.encoding, connection.read(frame.length, on_pause))
        if rest:
            raise ProtocolError(f"{self.address}: expected {len(numbers)} chunks, got {rest} bytes beyond them")

    def _read_refusal(self, connection: Connection, head: ResponseHead, name: str) -> ImgdistError:
        if head.length > _REFUSAL_MAX:
            raise ProtocolError(f"{self.address}: status {head.status} with {head.length} bytes")
        text = bytes(connection.read(head.length)).decode("utf-8", "replace").strip()
        if head.status == 404 and head.retry_after_s is not None:
            return NotYetError(f"{self.address}: pack {name}: {text}", head.retry_after_s)
        if head.status == 404:
            return NotFoundError(f"{self.address}: pack {name}: {text}")
        if head.status == 307 and head.addresses:
            text = f"{self.address}: busy; others have it: {', '.join(head.addresses)}"
            return RedirectedError(text, head.addresses, from_here=head.from_here)
        if head.status == 403:
            return TemporaryError(f"{self.address}: refuses this node: {text}; is access.key_file the same there?")
        if head.status in (429, 500, 502, 503, 504):
            return TemporaryError(f"{self.address}: status {head.status}: {text}", head.retry_after_s)
        return ProtocolError(f"{self.address}: expected status 200, got {head.status}: {text}")

    def _take(self, priority: Priority, timeout_s: float, on_pause: OnPause | None) -> tuple[Connection, bool]:
        """A connection and whether it was kept from an earlier request."""
        with self._lock:
            self._refuse_if_closed()
            # The first miss takes what brought metadata: a connection would open behind all that fill has on its way.
            others = Priority.TRACE if priority is Priority.DEMAND else priority
            idle = self._idle[priority] or self._idle[others]
            if idle:
                connection = idle.pop()
                self._busy.add(connection)
                connection.read_timeout_s = timeout_s
                return connection, True
        if on_pause is not None:
            on_pause()
        connection = Connection(self.address, self._connect_timeout_s, timeout_s)
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
                connection.rest()
                self._idle[priority].append(connection)
                return
        connection.close()

    def _drop_idle(self, priority: Priority) -> None:
        with self._lock:
            stale, self._idle[priority] = self._idle[priority], []
        for connection in stale:
            connection.close()

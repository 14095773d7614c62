"""Serves chunk bodies: threads, `sendfile`, demand before fill.

One thread accepts and watches connections, and never touches a disk. Whole requests go to bounded groups of threads,
one a priority, so that cold disk pages hold up a slot and nothing else. A reader without room does not even do that:
its answer goes back to the watcher, and to a slot again when there is room (imgdist/wire/answer.py). Between two pieces
of a chunk a fill stands back for demand and trace requests (imgdist/wire/precedence.py).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from imgdist.errors import ImgdistError, NotFoundError, ProtocolError
from imgdist.wire.answer import Answer, ChunkReader
from imgdist.wire.messages import Priority
from imgdist.wire.precedence import Outstanding, Precedence
from imgdist.wire.requests import ChunkRequest, RequestDecoder
from imgdist.wire.responses import encode_head

_log = logging.getLogger("imgdist.wire")

SLOTS = {Priority.DEMAND: 8, Priority.TRACE: 8, Priority.FILL: 4}
"""Traces have their own: one node's eight requests on a slow link must not hold up the misses of all others."""
QUEUE_PER_SLOT = 32
"""Requests that may wait for a slot, per slot: beyond it 503 is kinder than a queue (a guess: ~30 ms at 1 ms each)."""
CONNECTIONS_MAX = 4096
IDLE_S = 120.0
SWEEP_S = 5.0
"""Between looks at connections that are idle, or without room, for too long."""
TURN_S = 0.05
"""How long a slot stays with one answer: longer without room than any link is between two acknowledgements, short
enough that eight vanished readers hold nobody up for longer (a guess)."""
VANISHED_S = 10.0
"""Without acknowledgement for so long a reader is gone (TCP_USER_TIMEOUT, tcp(7)); as long as clients wait."""
STAY_S = 0.003
"""How long a demand slot keeps a connection after its answer: the next miss of a chain then needs no hand-off from the
watcher [measured at load 5: least tenth of the misses 1.16 -> 1.02 ms]."""
STAYING = 4
"""Slots that may do so at once; the others are free for whoever comes (a guess: half)."""
UNPACED = b"cubic"
"""Congestion control of single misses. BBR would spread the next one over as long as the last one took in a queue
[measured beside fill at 200 Mbit/s: p99 46-80 ms with BBR, 18 with CUBIC; p50 beyond the wire time 0.8-1.7 and 0.7]."""
_BUSY_RETRY_S = 1


class ChunkShelf(Protocol):
    """What a server serves from. Called by several threads at once."""

    def open(self, name: str) -> ChunkReader | None:
        """The reader of a pack id or in-progress name, or None."""


class _Connection:
    """A client's socket; owned by the watcher while idle or without room, by one slot while a request is served."""

    __slots__ = (
        "answer",
        "decoder",
        "fd",
        "idle_since",
        "outstanding",
        "parked_until",
        "peer",
        "pending",
        "socket",
        "unpaced",
    )

    def __init__(self, sock: socket.socket, peer: str | None, now: float) -> None:
        self.socket = sock
        self.peer = peer
        self.fd = sock.fileno()
        self.decoder = RequestDecoder()
        self.pending: deque[ChunkRequest] = deque()
        self.answer: Answer | None = None
        self.idle_since: float | None = now
        self.parked_until: float | None = None
        self.outstanding: Outstanding | None = None
        self.unpaced = False

    @property
    def priority(self) -> Priority:
        """Of the answer on its way, else of the next one."""
        return (self.answer.request if self.answer is not None else self.pending[0]).priority

    def suit(self, priority: Priority) -> None:
        """Set the socket up for requests of this priority."""
        if self.socket.family == socket.AF_UNIX:
            return
        if priority is Priority.FILL:
            self.outstanding = self.outstanding or Outstanding(self.socket)
        elif priority is Priority.DEMAND and not self.unpaced:
            self.unpaced = True
            with contextlib.suppress(OSError):  # it keeps the system's
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, UNPACED)


class ChunkServer:
    """Serves the packs of `shelf` on listening sockets (TCP or unix).

    `start()` returns at once; `stop()` lets requests in progress end (at most `grace_s`), then closes everything.
    `on_sent(priority, bytes)` is called by slots as bytes of chunks go to the kernel.
    """

    def __init__(
        self,
        shelf: ChunkShelf,
        listeners: list[socket.socket],
        on_sent: Callable[[Priority, int], None] | None = None,
    ) -> None:
        self._shelf = shelf
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._on_sent = on_sent
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._connections: dict[int, _Connection] = {}
        self._queues: dict[Priority, SimpleQueue[_Connection | None]] = {p: SimpleQueue() for p in Priority}
        self._waiting: Counter[tuple[Priority, str]] = Counter()
        self._precedence = Precedence()
        self._lock = threading.Lock()
        self._staying = 0
        self._stopping = False
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to accept."""
        for fd, listener in self._listeners.items():
            listener.setblocking(False)
            self._poll.register(fd, select.EPOLLIN)
        self._poll.register(self._wake, select.EPOLLIN)
        self._threads = [threading.Thread(target=self._watch, name="chunks-watch", daemon=True)]
        for priority, count in SLOTS.items():
            for i in range(count):
                name = f"chunks-{priority.value}-{i}"
                self._threads.append(threading.Thread(target=self._serve, args=(priority,), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self, grace_s: float = 5.0) -> None:
        """Accept nothing more, let requests in progress end for `grace_s`, close every connection."""
        if self._stopping:
            return
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        for priority, count in SLOTS.items():
            for _ in range(count):
                self._queues[priority].put(None)
        deadline = time.monotonic() + grace_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connection in list(self._connections.values()):
            self._close(connection)
        for listener in self._listeners.values():
            listener.close()
        self._poll.close()
        os.close(self._wake)

    # The watcher.

    def _watch(self) -> None:
        sweep_at = time.monotonic() + SWEEP_S
        while not self._stopping:
            for fd, _ in self._poll.poll(SWEEP_S):
                try:
                    if fd in self._listeners:
                        self._accept(self._listeners[fd])
                    elif fd != self._wake and (connection := self._connections.get(fd)) is not None:
                        self._continue(connection)
                except OSError as error:  # of one connection (gone at a bad moment, no memory): the others go on
                    _log.warning("a connection is lost: %s", error)
            now = time.monotonic()
            if now >= sweep_at:
                sweep_at = now + SWEEP_S
                self._close_idle(now - IDLE_S)
                self._close_parked(now)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, peer = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                _log.warning("cannot accept a connection: %s; closing idle ones", error.strerror)
                self._close_idle(time.monotonic() - 1.0)
            return
        if len(self._connections) >= CONNECTIONS_MAX:
            _log.warning("more than %d connections; closing those idle for 1 s", CONNECTIONS_MAX)
            self._close_idle(time.monotonic() - 1.0)
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, int(STAY_S * 1e6)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, int(TURN_S * 1e6)))
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(VANISHED_S * 1000))
        connection = _Connection(sock, None if sock.family == socket.AF_UNIX else peer[0], time.monotonic())
        with self._lock:
            self._connections[connection.fd] = connection
        self._poll.register(connection.fd, select.EPOLLIN | select.EPOLLONESHOT)

    def _continue(self, connection: _Connection) -> None:
        """Something happened to a connection of the watcher's: there is room for its answer, or a request."""
        if connection.answer is not None:
            connection.parked_until = None
            self._dispatch(connection)
        else:
            self._receive(connection)

    def _receive(self, connection: _Connection) -> None:
        """Read what an idle connection sent; a whole request goes to a slot, a broken one closes it."""
        try:
            data = connection.socket.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._watch_for(connection, select.EPOLLIN)
            return
        except OSError:
            data = b""
        if not self._decode(connection, data):
            return
        if connection.pending:
            connection.idle_since = None
            self._dispatch(connection)
        else:
            self._watch_for(connection, select.EPOLLIN)

    def _decode(self, connection: _Connection, data: bytes) -> bool:
        """Take in what came; False if that was the connection's end."""
        try:
            for request in connection.decoder.feed(data):
                if not isinstance(request, ChunkRequest):
                    raise ProtocolError("request: only chunks by their numbers are served here")
                connection.pending.append(request)
        except ProtocolError as error:
            self._refuse(connection, 400, str(error))
            data = b""
        if not data:
            self._close(connection)
        return bool(data)

    def _watch_for(self, connection: _Connection, events: int) -> None:
        # Safe from any thread: with EPOLLONESHOT nobody else is told of this descriptor until this call.
        with contextlib.suppress(OSError):
            self._poll.modify(connection.fd, events | select.EPOLLONESHOT)

    def _dispatch(self, connection: _Connection) -> None:
        """Let a connection wait for a slot, or refuse its request."""
        priority = connection.priority
        if self._enqueue(connection, priority):
            return
        connection.pending.clear()
        if self._refuse(connection, 503, "too many requests wait; ask elsewhere or again", _BUSY_RETRY_S):
            self._idle(connection)
        else:
            self._close(connection)

    def _enqueue(self, connection: _Connection, priority: Priority) -> bool:
        """False if too many wait, of all or of one host (half as many). An answer under way always may."""
        queue, most = self._queues[priority], QUEUE_PER_SLOT * SLOTS[priority]
        key = (priority, connection.peer or "")
        with self._lock:
            full = queue.qsize() >= most or (connection.peer is not None and self._waiting[key] >= most // 2)
            if full and connection.answer is None:
                return False
            self._waiting[key] += 1
            queue.put(connection)
        return True

    def _dequeue(self, priority: Priority) -> _Connection | None:
        connection = self._queues[priority].get()
        if connection is not None:
            key = (priority, connection.peer or "")
            with self._lock:
                self._waiting[key] -= 1
                if not self._waiting[key]:
                    del self._waiting[key]  # else every host ever seen
        return connection

    def _close_idle(self, since: float) -> None:
        with self._lock:
            old = [c for c in self._connections.values() if c.idle_since is not None and c.idle_since < since]
        for connection in old:
            self._close(connection)

    def _close_parked(self, now: float) -> None:
        with self._lock:
            slow = [c for c in self._connections.values() if c.parked_until is not None and c.parked_until < now]
        for connection in slow:
            _log.info("%s: the reader is too slow", connection.peer or "a unix socket")
            self._close(connection)

    def _idle(self, connection: _Connection) -> None:
        connection.idle_since = time.monotonic()
        self._watch_for(connection, select.EPOLLIN)

    def _close(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.pop(connection.fd, None)
        connection.socket.close()

    # The slots.

    def _serve(self, priority: Priority) -> None:
        while (connection := self._dequeue(priority)) is not None:
            while self._serve_next(connection, priority):
                pass

    def _serve_next(self, connection: _Connection, priority: Priority) -> bool:
        """Answer a connection's next request; True if this slot is to answer the one after it, too."""
        request = connection.answer.request if connection.answer is not None else connection.pending.popleft()
        fills = priority is Priority.FILL
        try:
            with contextlib.nullcontext() if fills else self._precedence.urgent():
                alive = self._answer(connection, request) and not self._stopping
        except (OSError, ImgdistError) as error:  # a reader that left, or a pack that broke: this request only
            _log.info("pack %s: answer cut short: %s", request.name, error)
            alive = False
        if not alive:
            self._close(connection)
        elif connection.answer is not None:
            connection.parked_until = connection.answer.deadline + SWEEP_S  # surely after the next line
            self._watch_for(connection, select.EPOLLOUT)
        elif connection.pending:
            self._dispatch(connection)
        elif priority is Priority.DEMAND and self._staying < STAYING and self._queues[priority].empty():
            return self._stay(connection)
        else:
            self._idle(connection)
        return False

    def _stay(self, connection: _Connection) -> bool:
        """Wait a moment for the next miss of a chain; True if it came. Else the watcher has the connection again."""
        with self._lock:
            self._staying += 1
        try:
            data = connection.socket.recv(65536)  # as long as SO_RCVTIMEO
        except BlockingIOError:
            self._idle(connection)
            return False
        except OSError:
            data = b""
        finally:
            with self._lock:
                self._staying -= 1
        if not self._decode(connection, data):
            return False
        if connection.pending and connection.pending[0].priority is Priority.DEMAND:
            return True
        if connection.pending:
            self._dispatch(connection)
        else:
            self._idle(connection)
        return False

    def _answer(self, connection: _Connection, request: ChunkRequest) -> bool:
        """Begin the answer or go on with it, for a turn: it is over unless `connection.answer` is set afterwards.

        False if the connection cannot go on.
        """
        if connection.answer is None:
            reader = self._shelf.open(request.name)
            if reader is None:
                return self._refuse(connection, 404, f"pack {request.name} is not here") and request.keep_alive
            try:
                connection.answer = Answer(request, reader, time.monotonic())
            except NotFoundError as error:
                return self._refuse(connection, 404, str(error)) and request.keep_alive
            connection.suit(request.priority)
        answer = connection.answer
        while not self._send(connection, answer):
            if time.monotonic() > answer.deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the reader is too slow")
            if not self._stopping:  # then no watcher is left
                return True
        connection.answer = None
        return request.keep_alive

    def _send(self, connection: _Connection, answer: Answer) -> bool:
        """Send what the reader has room for, for a turn. True when the kernel has all of it."""
        turn_ends = time.monotonic() + TURN_S
        priority = answer.request.priority
        outstanding = connection.outstanding if priority is Priority.FILL else None
        while not answer.is_sent:
            if outstanding is not None and answer.is_between_chunks:
                outstanding.tune(calm=self._precedence.is_calm)
            piece = outstanding.piece if outstanding is not None else None
            if outstanding is not None and piece is not None and not outstanding.has_room(TURN_S):
                return False
            if priority is Priority.FILL:
                self._precedence.stand_back()
            try:
                sent = answer.send(connection.socket, piece)
            except BlockingIOError:
                return False
            if self._on_sent is not None:
                self._on_sent(priority, sent)
            if time.monotonic() > turn_ends:
                return answer.is_sent
        return True

    def _refuse(self, connection: _Connection, status: int, reason: str, retry_after_s: int | None = None) -> bool:
        """Send a short answer; False if that failed. Called by the watcher too, hence never blocks."""
        body = (reason + "\n").encode("utf-8", "replace")[:1024]
        head = encode_head(status, len(body), keep_alive=status != 400, retry_after_s=retry_after_s)
        try:
            return connection.socket.send(head + body, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(head + body)
        except OSError:
            return False

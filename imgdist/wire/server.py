"""Serves chunk bodies: threads, `sendfile`, demand before fill.

One thread, the watcher, accepts and watches connections, and never touches a disk. Whole requests for chunks go to
slots (imgdist/wire/slots.py), where they are answered (imgdist/wire/serving.py); other requests are answered at once.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping

from imgdist.errors import ImgdistError
from imgdist.wire.clusterkey import MESH, ClusterKey
from imgdist.wire.messages import Priority
from imgdist.wire.ratelimit import RateLimit
from imgdist.wire.requests import HelloRequest, MeshRequest
from imgdist.wire.responses import encode_head, switching
from imgdist.wire.serving import ChunkShelf, Seeder, Serving
from imgdist.wire.session import Session, set_timeouts
from imgdist.wire.slots import SLOTS, Slots

_log = logging.getLogger("imgdist.wire")

CONNECTIONS_MAX = 4096
FILES_SHARE = 2
"""One in so many of the files that this process may open can be a connection: it does other things, too."""
FULL_S = 0.2
"""Without a descriptor for a connection none is accepted for so long: the listener stays ready, and asking again at
once takes a whole core."""
IDLE_S = 120.0
SWEEP_S = 5.0
"""Between looks at connections that are idle, or without room, for too long."""

OnMesh = Callable[[socket.socket, bytes], None]


class ChunkServer:
    """Serves the packs of `shelf` on listening sockets (TCP or unix).

    `start()` returns at once; `stop()` lets requests in progress end (at most `grace_s`), then closes everything.

    on_sent(priority, bytes): called by slots as bytes of chunks go to the kernel.
    on_mesh(socket, leftover): takes over a connection that speaks the mesh from here on, and what came of it already.
    Must return at once; the socket is blocking, 101 was sent. Without it, and without hello, 404.
    hello(): the body of the answer to `GET /v1/hello`.
    slots: threads of each priority, at most.
    up_limit: over all bytes of bodies; what is urgent goes first.
    busy_after_s: a member of the swarm (`ChunkRequest.node`) is sent elsewhere when all slots are taken and what waits
    would take longer; None: everybody may wait.
    seeder: chooses chunks for those who leave that to the server, and knows whom to send them to.
    key: only nodes that have it are served over TCP (403); None: everybody.
    """

    def __init__(
        self,
        shelf: ChunkShelf,
        listeners: list[socket.socket],
        on_sent: Callable[[Priority, int], None] | None = None,
        *,
        on_mesh: OnMesh | None = None,
        hello: Callable[[], bytes] | None = None,
        slots: Mapping[Priority, int] = SLOTS,
        up_limit: RateLimit | None = None,
        busy_after_s: float | None = None,
        seeder: Seeder | None = None,
        key: ClusterKey | None = None,
    ) -> None:
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._on_mesh = on_mesh
        self._hello = hello
        self._key = key
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sessions: dict[int, Session] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self._accept_at: float | None = None
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._connections_max = min(CONNECTIONS_MAX, max(1, files // FILES_SHARE))
        self._serving = Serving(shelf, on_sent, up_limit, seeder)
        self._slots = Slots(self._serving, self, slots, busy_after_s)
        self._watcher = threading.Thread(target=self._watch, name="chunks-watch", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        for fd, listener in self._listeners.items():
            listener.setblocking(False)
            self._poll.register(fd, select.EPOLLIN)
        self._poll.register(self._wake, select.EPOLLIN)
        self._watcher.start()

    def stop(self, grace_s: float = 5.0) -> None:
        """Accept nothing more, let requests in progress end for `grace_s`, close every connection."""
        if self._stopping:
            return
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        deadline = time.monotonic() + grace_s
        threads = self._slots.stop()
        if self._watcher.ident is not None:  # never started: whoever made it could not go on
            threads.append(self._watcher)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            for session in self._sessions.values():
                with contextlib.suppress(OSError):
                    session.socket.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for session in list(self._sessions.values()):
            self.close(session)
        for listener in self._listeners.values():
            listener.close()
        self._poll.close()
        os.close(self._wake)

    # What slots call, and the watcher too: whoever owns the session.

    def proceed(self, session: Session) -> None:
        """Go on with what a session asks next: at once, in a slot, or when it asks."""
        while session.pending or session.answer is not None:
            request = session.request
            if request is None:
                if not self._answer_at_once(session):
                    return
                continue
            refusal = self._slots.admit(session, request)
            if refusal is None:
                return
            session.pending.popleft()
            if not refusal.say(session):
                self.close(session)
                return
        session.idle_since = time.monotonic()
        self._watch_for(session, select.EPOLLIN)

    def park(self, session: Session) -> None:
        """An answer waits for room."""
        if session.answer is not None:
            session.parked_until = session.answer.deadline + SWEEP_S  # surely after the next lines
            if session.ticket is not None:
                self._serving.load.pause(session.ticket)
            self._watch_for(session, select.EPOLLOUT)

    def close(self, session: Session) -> None:
        """Forget a session and close its socket."""
        with self._lock:
            if self._sessions.get(session.fd) is session:
                del self._sessions[session.fd]
        self._serving.release(session)
        session.socket.close()

    # The watcher.

    def _watch(self) -> None:
        sweep_at = time.monotonic() + SWEEP_S
        while not self._stopping:
            for fd, _ in self._poll.poll(SWEEP_S if self._accept_at is None else FULL_S):
                self._heed(fd)
            now = time.monotonic()
            if self._accept_at is not None and now >= self._accept_at:
                self._accept_at = None
                self._listen_for(select.EPOLLIN)
            if now >= sweep_at:
                sweep_at = now + SWEEP_S
                self._close_idle(now - IDLE_S)
                self._close_parked(now)

    def _heed(self, fd: int) -> None:
        """What happened at one socket. What fails there (it went at a bad moment, no memory) costs that one alone."""
        session = self._sessions.get(fd)
        try:
            if fd in self._listeners:
                self._accept(self._listeners[fd])
            elif session is not None:
                self._continue(session)
        except Exception as error:
            _log.warning("a connection is lost: %s", error or type(error).__name__, exc_info=_is_defect(error))
            if session is not None:
                self.close(session)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, peer = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._make_room(f"cannot accept a connection: {error.strerror}")
            return
        if len(self._sessions) >= self._connections_max:
            self._make_room(f"{self._connections_max} connections are the most")
            if len(self._sessions) >= self._connections_max:
                sock.close()
                return
        host = None if sock.family == socket.AF_UNIX else peer[0]
        session = Session.accepted(sock, host, time.monotonic(), self._key)
        with self._lock:
            self._sessions[session.fd] = session
        self._poll.register(session.fd, select.EPOLLIN | select.EPOLLONESHOT)

    def _make_room(self, reason: str) -> None:
        """Close what is idle; accept nothing more for a moment, if that helps nobody."""
        before = len(self._sessions)
        self._close_idle(time.monotonic() - 1.0)
        closed = before - len(self._sessions)
        if closed <= 0:
            self._accept_at = time.monotonic() + FULL_S
            self._listen_for(0)
        _log.warning("%s; closed %d that were idle", reason, max(0, closed))

    def _listen_for(self, events: int) -> None:
        for fd in self._listeners:
            self._poll.modify(fd, events)

    def _continue(self, session: Session) -> None:
        """Something happened to a session of the watcher's: there is room for its answer, or a request."""
        if session.answer is not None:
            session.parked_until = None
            self.proceed(session)
            return
        try:
            data = session.socket.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._watch_for(session, select.EPOLLIN)
            return
        except OSError:
            data = b""
        if not session.take_in(data):
            self.close(session)
        elif session.pending:
            session.idle_since = None
            self.proceed(session)
        else:
            self._watch_for(session, select.EPOLLIN)

    def _answer_at_once(self, session: Session) -> bool:
        """Answer what is not about chunks; False if the session is not ours any more."""
        request = session.pending.popleft()
        match request:
            case HelloRequest() if self._hello is not None:
                body = self._hello()
                sent = session.say(encode_head(200, len(body), keep_alive=request.keep_alive) + body)
                alive = sent and request.keep_alive
            case MeshRequest() if self._on_mesh is not None:
                self._hand_over(session, request, self._on_mesh)
                return False
            case _:
                alive = session.refuse(404, "nothing of that kind is here")
        if not alive:
            self.close(session)
        return alive

    def _hand_over(self, session: Session, request: MeshRequest, on_mesh: OnMesh) -> None:
        with self._lock:
            self._sessions.pop(session.fd, None)
        with contextlib.suppress(OSError):
            self._poll.unregister(session.fd)
        token = session.key.token(f"{MESH} {request.token}") if session.key is not None else ""
        if not session.say(
            switching(token)
        ):  # whoever did not read what it asked for before does not get to hold us up
            session.socket.close()
            return
        try:
            set_timeouts(session.socket, 0, 0)
            on_mesh(session.socket, request.leftover)
        except (OSError, ImgdistError) as error:
            _log.info("%s: no mesh connection: %s", session.peer or "a unix socket", error)
            session.socket.close()

    def _watch_for(self, session: Session, events: int) -> None:
        # Safe from any thread: with EPOLLONESHOT nobody else is told of this descriptor until this call.
        with contextlib.suppress(OSError):
            self._poll.modify(session.fd, events | select.EPOLLONESHOT)

    def _close_idle(self, before: float) -> None:
        with self._lock:
            idle = [s for s in self._sessions.values() if s.idle_since is not None and s.idle_since < before]
        for session in idle:
            self.close(session)

    def _close_parked(self, now: float) -> None:
        with self._lock:
            slow = [s for s in self._sessions.values() if s.parked_until is not None and s.parked_until < now]
        for session in slow:
            _log.info("%s: the reader is too slow", session.peer or "a unix socket")
            self.close(session)


def _is_defect(error: Exception) -> bool:
    return not isinstance(error, OSError | MemoryError)

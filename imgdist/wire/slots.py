"""Who answers: groups of threads, one a priority, so that cold disk pages hold up a slot and nothing else.

Threads begin when they are first needed. A reader without room does not hold a slot: its answer goes back to the
watcher, and to a slot again when there is room (imgdist/wire/answer.py). Between two pieces of a chunk a fill stands
back for demand and trace requests (imgdist/wire/precedence.py).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from imgdist.errors import ImgdistError, NotFoundError, TemporaryError
from imgdist.wire.answer import Answer, ChunkReader
from imgdist.wire.load import Load
from imgdist.wire.messages import Priority
from imgdist.wire.precedence import Precedence
from imgdist.wire.ratelimit import PIECE, RateLimit
from imgdist.wire.requests import AnyRequest, BodyRequest, ChunkRequest
from imgdist.wire.session import TURN_S, Session

_log = logging.getLogger("imgdist.wire")

SLOTS = {Priority.DEMAND: 8, Priority.TRACE: 8, Priority.FILL: 4}
"""Traces have their own: one node's eight requests on a slow link must not hold up the misses of all others."""
QUEUE_PER_SLOT = 32
"""Requests that may wait for a slot, per slot: beyond it 503 is kinder than a queue (a guess: ~30 ms at 1 ms each)."""
BUSY_AFTER_S = 0.05
"""What `busy_after_s` should be in a swarm: by then somebody else would have answered (a guess)."""
STAYING = 4
"""Slots that may keep their connection a moment at once; the others are free for whoever comes (a guess: half)."""
_FULL_RETRY_S = 1.0
_BUSY_RETRY_S = (0.01, 1.0)


class ChunkShelf(Protocol):
    """What a server serves from. Called by several threads at once."""

    def open(self, name: str) -> ChunkReader | None:
        """The reader of a pack id or in-progress name, or None."""


class Seeder(Protocol):
    """Chooses what goes out, and knows who got what. Called by several threads at once; `node` as in ChunkRequest."""

    def choose(self, name: str, reader: ChunkReader, lacks: int, count: int, node: str | None) -> Sequence[int]:
        """Up to `count` chunks of the set `lacks`. Raises NotFoundError if none is there, TemporaryError with a time to
        retry if others are about to have them."""

    def begun(self, name: str, reader: ChunkReader, numbers: Sequence[int], node: str | None) -> None:
        """These chunks, asked for by their numbers, are about to be sent."""

    def sent(self, name: str, numbers: Sequence[int], node: str | None) -> None:
        """These chunks went out whole."""

    def receivers(self, name: str, numbers: Sequence[int], node: str) -> Sequence[str]:
        """Who else got all of these lately. Never waits."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered now, and what to do instead."""

    status: int
    reason: str
    retry_after_s: float | None = None
    addresses: Sequence[str] = ()


class Desk(Protocol):
    """Who has the sessions that no slot has (the watcher). Called by slots."""

    def proceed(self, session: Session) -> None:
        """Its request was answered."""

    def park(self, session: Session) -> None:
        """Its answer waits for room."""

    def close(self, session: Session) -> None:
        """It is over."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What slots serve, and how: see ChunkServer."""

    shelf: ChunkShelf
    counts: Mapping[Priority, int]
    on_sent: Callable[[Priority, int], None] | None = None
    up_limit: RateLimit | None = None
    busy_after_s: float | None = None
    seeder: Seeder | None = None


class Slots:
    """The threads and the queues before them."""

    def __init__(self, serving: Serving, desk: Desk) -> None:
        self._serving = serving
        self._desk = desk
        self._queues: dict[Priority, SimpleQueue[Session | None]] = {priority: SimpleQueue() for priority in Priority}
        self._threads: dict[Priority, list[threading.Thread]] = {priority: [] for priority in Priority}
        self._free: Counter[Priority] = Counter()
        self._backlog: Counter[Priority] = Counter()
        self._waiting: Counter[tuple[Priority, str]] = Counter()
        self._lock = threading.Lock()
        self._load = Load()
        self._precedence = Precedence()
        self._staying = 0
        self._stopping = False

    def stop(self) -> list[threading.Thread]:
        """Begin nothing more; the threads that end soon."""
        with self._lock:
            self._stopping = True
            threads = [thread for group in self._threads.values() for thread in group]
        for priority, group in self._threads.items():
            for _ in group:
                self._queues[priority].put(None)
        return threads

    def admit(self, session: Session, request: BodyRequest) -> Refusal | None:
        """Let a session wait for a slot, or say why not. An answer under way always may."""
        priority = request.priority
        most = QUEUE_PER_SLOT * self._serving.counts[priority]
        key = (priority, session.peer or "")
        if session.answer is None and (refusal := self._busy(request)) is not None:
            return refusal
        with self._lock:
            full = self._backlog[priority] >= most or (session.peer is not None and self._waiting[key] >= most // 2)
            if full and session.answer is None:
                return Refusal(503, "too many requests wait; ask elsewhere or again", _FULL_RETRY_S)
            if not self._find_slot(priority):
                return Refusal(503, "no thread can be had", _FULL_RETRY_S)
            if session.ticket is None:
                chunks = len(request.numbers) if isinstance(request, ChunkRequest) else request.count
                session.ticket = self._load.take_on(priority, chunks)
            self._waiting[key] += 1
        self._queues[priority].put(session)
        return None

    def release(self, session: Session) -> None:
        """A session's answer is over, one way or the other."""
        session.answer = None
        if session.ticket is not None:
            self._load.done(session.ticket)
            session.ticket = None

    def _busy(self, request: BodyRequest) -> Refusal | None:
        """Whoever can go elsewhere does so, if a slot would be long in coming."""
        busy_after_s, priority = self._serving.busy_after_s, request.priority
        if busy_after_s is None or request.node is None:
            return None
        if self._load.requests(priority) < self._serving.counts[priority]:
            return None
        excess_s = self._load.wait_s(priority) - busy_after_s
        if excess_s <= 0:
            return None
        if priority is Priority.FILL:
            least, most = _BUSY_RETRY_S
            return Refusal(503, "busy; ask elsewhere or again", min(max(excess_s, least), most))
        if self._serving.seeder is not None and isinstance(request, ChunkRequest):
            addresses = self._serving.seeder.receivers(request.name, request.numbers, request.node)
            if addresses:
                return Refusal(307, "busy; others have it", None, addresses)
        return None

    def _find_slot(self, priority: Priority) -> bool:
        """Count a free thread as taken, or begin one; else what is put waits for whoever is free next. False if there
        is none at all."""
        group = self._threads[priority]
        if self._free[priority]:
            self._free[priority] -= 1
        elif len(group) < self._serving.counts[priority] and not self._stopping:
            name = f"chunks-{priority.value}-{len(group)}"
            thread = threading.Thread(target=self._serve, args=(priority,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no more
                self._backlog[priority] += bool(group)
                return bool(group)
            group.append(thread)
        else:
            self._backlog[priority] += 1
        return True

    def _serve(self, priority: Priority) -> None:
        while (session := self._queues[priority].get()) is not None:
            with self._lock:
                self._waiting[priority, session.peer or ""] -= 1
                if not self._waiting[priority, session.peer or ""]:
                    del self._waiting[priority, session.peer or ""]
            while self._serve_next(session, priority):
                pass
            with self._lock:
                if self._backlog[priority]:
                    self._backlog[priority] -= 1
                else:
                    self._free[priority] += 1

    def _serve_next(self, session: Session, priority: Priority) -> bool:
        """Answer a session's next request; True if this slot is to answer the one after it, too."""
        request = session.request
        assert request is not None
        if session.answer is None:
            session.pending.popleft()
        fills = priority is Priority.FILL
        try:
            with contextlib.nullcontext() if fills else self._precedence.urgent():
                alive = self._answer(session, request) and not self._stopping
        except (OSError, ImgdistError) as error:  # a reader that left, or a pack that broke: this request only
            _log.info("pack %s: answer cut short: %s", request.name, error)
            alive = False
        if not alive:
            self._desk.close(session)
        elif session.answer is not None:
            self._desk.park(session)
        elif session.pending or priority is not Priority.DEMAND or self._staying >= STAYING or self._backlog[priority]:
            self._desk.proceed(session)
        else:
            return self._stay(session)
        return False

    def _stay(self, session: Session) -> bool:
        """Wait a moment for the next miss of a chain; True if it came. Else the watcher has the session again."""
        with self._lock:
            self._staying += 1
        try:
            data = session.socket.recv(65536)  # as long as SO_RCVTIMEO
        except BlockingIOError:
            self._desk.proceed(session)
            return False
        except OSError:
            data = b""
        finally:
            with self._lock:
                self._staying -= 1
        if not session.take_in(data):
            self._desk.close(session)
            return False
        request = session.request
        if isinstance(request, ChunkRequest) and request.priority is Priority.DEMAND:
            session.ticket = self._load.take_on(request.priority, len(request.numbers))
            return True
        self._desk.proceed(session)
        return False

    def _answer(self, session: Session, request: BodyRequest) -> bool:
        """Begin the answer or go on with it, for a turn: it is over unless `session.answer` is set afterwards.

        False if the connection cannot go on.
        """
        if session.answer is None:
            try:
                session.answer = self._begin(session, request)
            except NotFoundError as error:
                self.release(session)
                return session.refuse(404, str(error)) and request.keep_alive
            except TemporaryError as error:
                self.release(session)
                return session.refuse(503, str(error), error.retry_after_s) and request.keep_alive
            session.suit(request.priority)
        answer = session.answer
        while not self._send(session, answer):
            if time.monotonic() > answer.deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the reader is too slow")
            if not self._stopping:  # then no watcher is left
                return True
        if self._serving.seeder is not None:
            self._serving.seeder.sent(request.name, answer.numbers, request.node)
        self.release(session)
        return request.keep_alive

    def _begin(self, session: Session, request: BodyRequest) -> Answer:
        """Raises NotFoundError, TemporaryError."""
        reader, seeder = self._serving.shelf.open(request.name), self._serving.seeder
        if reader is None:
            raise NotFoundError(f"pack {request.name} is not here")
        if isinstance(request, AnyRequest):
            if seeder is None:
                raise NotFoundError("no chunks are chosen here; ask for some by their numbers")
            numbers = seeder.choose(request.name, reader, request.lacks, request.count, request.node)
        else:
            numbers = request.numbers
        answer = Answer(request, numbers, reader, time.monotonic())
        if seeder is not None and isinstance(request, ChunkRequest):
            seeder.begun(request.name, reader, numbers, request.node)
        assert session.ticket is not None
        queue_bytes = self._load.ahead_bytes(request.priority) - session.ticket.left_bytes
        self._load.settle(session.ticket, answer.size_bytes, len(numbers))
        answer.open(max(0, queue_bytes), session.news(request.name, reader.arrivals))
        return answer

    def _send(self, session: Session, answer: Answer) -> bool:
        """Send what the reader has room for, for a turn. True when the kernel has all of it."""
        turn_ends = time.monotonic() + TURN_S
        priority = answer.request.priority
        outstanding = session.outstanding if priority is Priority.FILL else None
        while not answer.is_sent:
            if outstanding is not None and answer.is_between_chunks:
                outstanding.tune(calm=self._precedence.is_calm)
            piece = outstanding.piece if outstanding is not None else None
            if outstanding is not None and piece is not None and not outstanding.has_room(TURN_S):
                return False
            if priority is Priority.FILL:
                self._precedence.stand_back()
            try:
                sent = self._send_piece(session, answer, piece, turn_ends)
            except BlockingIOError:
                return False
            if session.ticket is not None:
                self._load.sent(session.ticket, sent)
            if self._serving.on_sent is not None:
                self._serving.on_sent(priority, sent)
            if time.monotonic() > turn_ends:
                return answer.is_sent
        return True

    def _send_piece(self, session: Session, answer: Answer, piece: int | None, turn_ends: float) -> int:
        """Send a piece of a chunk, within the limit. Raises BlockingIOError if neither has room."""
        limit = self._serving.up_limit
        if limit is None:
            return answer.send(session.socket, piece)
        size = min(answer.chunk_left, piece or PIECE, PIECE)
        urgent = answer.request.priority is not Priority.FILL
        while (wait_s := limit.take(size, urgent=urgent)) > 0:
            if time.monotonic() + wait_s > turn_ends:
                time.sleep(max(0.0, turn_ends - time.monotonic()))
                raise BlockingIOError(errno.EAGAIN, "the rate limit leaves no room")
            time.sleep(wait_s)
        sent = 0
        try:
            sent = answer.send(session.socket, size)
        finally:
            limit.give_back(size - sent)
        return sent

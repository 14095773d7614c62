"""Who answers: groups of threads, one a priority, so that cold disk pages hold up a slot and nothing else.

Threads begin when they are first needed. A reader without room does not hold a slot: its answer goes back to the
watcher, and to a slot again when there is room (imgdist/wire/answer.py).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from imgdist.errors import ImgdistError
from imgdist.wire.messages import Priority
from imgdist.wire.requests import BodyRequest, ChunkRequest
from imgdist.wire.serving import Serving
from imgdist.wire.session import Session

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


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered now, and what to do instead. `from_here`: those at `addresses` get it from here."""

    status: int
    reason: str
    retry_after_s: float | None = None
    addresses: Sequence[str] = ()
    from_here: bool = False

    def say(self, session: Session) -> bool:
        """Tell who asked; False if that failed."""
        return session.refuse(self.status, self.reason, self.retry_after_s, self.addresses, from_here=self.from_here)


class Desk(Protocol):
    """Who has the sessions that no slot has (the watcher). Called by slots."""

    def proceed(self, session: Session) -> None:
        """Its request was answered."""

    def park(self, session: Session) -> None:
        """Its answer waits for room."""

    def close(self, session: Session) -> None:
        """It is over."""


class Slots:
    """The threads and the queues before them."""

    def __init__(
        self, serving: Serving, desk: Desk, counts: Mapping[Priority, int], busy_after_s: float | None
    ) -> None:
        self._serving = serving
        self._desk = desk
        self._counts = counts
        self._busy_after_s = busy_after_s
        self._queues: dict[Priority, SimpleQueue[Session | None]] = {priority: SimpleQueue() for priority in Priority}
        self._threads: dict[Priority, list[threading.Thread]] = {priority: [] for priority in Priority}
        self._free: Counter[Priority] = Counter()
        self._backlog: Counter[Priority] = Counter()
        self._waiting: Counter[tuple[Priority, str]] = Counter()
        self._lock = threading.Lock()
        self._staying = 0
        self._stopping = False

    def stop(self) -> list[threading.Thread]:
        """Begin nothing more; the threads that end soon."""
        with self._lock:
            self._stopping = self._serving.is_stopping = True
            threads = [thread for group in self._threads.values() for thread in group]
        for priority, group in self._threads.items():
            for _ in group:
                self._queues[priority].put(None)
        return threads

    def admit(self, session: Session, request: BodyRequest) -> Refusal | None:
        """Let a session wait for a slot, or say why not. An answer under way always may."""
        priority = request.priority
        most = QUEUE_PER_SLOT * self._counts[priority]
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
                session.ticket = self._serving.load.take_on(priority, chunks)
            else:
                self._serving.load.resume(session.ticket)
            self._waiting[key] += 1
        self._queues[priority].put(session)
        return None

    def _busy(self, request: BodyRequest) -> Refusal | None:
        """Whoever can go elsewhere does so, if a slot would be long in coming."""
        busy_after_s, priority = self._busy_after_s, request.priority
        if busy_after_s is None or request.node is None:
            return None
        if priority is not Priority.FILL:
            return self._elsewhere(request, request.node)
        fills = self._serving.load.requests(priority)
        if fills and self._serving.precedence.is_narrow:
            return Refusal(503, "busy; ask elsewhere or again", _BUSY_RETRY_S[1])
        if fills < self._counts[priority]:
            return None
        excess_s = self._serving.load.wait_s(priority) - busy_after_s
        if excess_s <= 0:
            return None
        least, most = _BUSY_RETRY_S
        return Refusal(503, "busy; ask elsewhere or again", min(max(excess_s, least), most))

    def _elsewhere(self, request: BodyRequest, node: str) -> Refusal | None:
        """A member's demand while others are served: those who have the chunks, or are getting them, pass them on. A
        crowd that misses the same chunk at once gets it one from the other, each link busy once, instead of each with
        its share of this link."""
        serving = self._serving
        if serving.seeder is None or not isinstance(request, ChunkRequest):
            return None
        urgent = serving.load.requests(Priority.DEMAND) + serving.load.requests(Priority.TRACE)
        is_free = not urgent and not serving.uplink.is_occupied(node)
        if is_free and not node:  # whom nobody reaches: it has no place in a line
            return None
        foretold = request.priority is Priority.TRACE
        waits = bool(request.wait_s)
        addresses = serving.seeder.elsewhere(request.name, request.numbers, node, waits=waits, foretold=foretold)
        if is_free or not addresses:
            return None
        from_here = serving.seeder.gives(request.name, request.numbers)
        return Refusal(307, "busy; others have it", None, addresses, from_here)

    def _find_slot(self, priority: Priority) -> bool:
        """Count a free thread as taken, or begin one; else what is put waits for whoever is free next. False if there
        is none at all."""
        group = self._threads[priority]
        if self._free[priority]:
            self._free[priority] -= 1
        elif len(group) < self._counts[priority] and not self._stopping:
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
            with contextlib.nullcontext() if fills else self._serving.precedence.urgent():
                alive = self._serving.answer(session, request) and not self._stopping
        except (OSError, ImgdistError) as error:  # a reader that left, or a pack that broke: this request only
            _log.info("pack %s: answer cut short: %s", request.name, error)
            alive = False
        except Exception:  # no memory, say: the slot goes on
            _log.exception("pack %s: answer cut short", request.name)
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
            refusal = self._busy(request)
            if refusal is not None:
                return self._turn_away(session, refusal)
            session.ticket = self._serving.load.take_on(request.priority, len(request.numbers))
            return True
        self._desk.proceed(session)
        return False

    def _turn_away(self, session: Session, refusal: Refusal) -> bool:
        session.pending.popleft()
        if refusal.say(session):
            self._desk.proceed(session)
        else:
            self._desk.close(session)
        return False

"""Answering one request: choose and look up its chunks, send them piece by piece, keep account.

Between two pieces of a chunk a fill stands back for demand and trace requests (imgdist/wire/precedence.py).
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from imgdist.errors import NotFoundError, NotYetError, RedirectedError, TemporaryError
from imgdist.wire.answer import Answer, ChunkReader
from imgdist.wire.load import Load, Ticket
from imgdist.wire.messages import Priority
from imgdist.wire.outstanding import Distances
from imgdist.wire.precedence import Precedence
from imgdist.wire.ratelimit import PIECE, RateLimit
from imgdist.wire.requests import AnyRequest, BodyRequest, ChunkRequest
from imgdist.wire.session import TURN_S, Session
from imgdist.wire.uplink import Uplink

WAITING_MAX = 6
"""Slots of a priority that may wait at once for chunks that are on their way to us: most of them, the others serve."""

WAIT_MAX_S = 8.0
"""However long a client is ready to wait: a slot is not to be had meanwhile (a guess)."""


class ChunkShelf(Protocol):
    """What a server serves from. Called by several threads at once."""

    def open(self, name: str) -> ChunkReader | None:
        """The reader of a pack id or in-progress name, or None."""


class Seeder(Protocol):
    """Chooses what goes out, and knows who got what. Called by several threads at once; `node` as in ChunkRequest."""

    def choose(self, name: str, reader: ChunkReader, lacks: int, count: int, node: str | None) -> Sequence[int]:
        """Up to `count` chunks of the set `lacks`. Raises NotFoundError if none is there, NotYetError with a time to
        retry if others are about to have them."""

    def begun(self, name: str, reader: ChunkReader, numbers: Sequence[int], node: str | None) -> None:
        """These chunks, asked for by their numbers, are about to be sent."""

    def sent(self, name: str, numbers: Sequence[int], node: str | None) -> None:
        """These chunks went out whole."""

    def elsewhere(
        self, name: str, numbers: Sequence[int], node: str, *, waits: bool, foretold: bool = False
    ) -> Sequence[str]:
        """Who else got all of these lately or is getting them; whoever asks is taken to get them there, or here if that
        is nobody. It `waits`: it was sent here, or stays here. `foretold`: a trace names it, no reader waits. Never
        waits itself. The numbers are as they came: most may not exist."""

    def gives(self, name: str, numbers: Sequence[int]) -> bool:
        """Whether all of those that `elsewhere` names get these chunks from here, one from the other: then whoever asks
        may wait there, whatever its address."""


class Serving:
    """What is served, and how (see ChunkServer). Called by the slots' threads, each with another session."""

    def __init__(
        self,
        shelf: ChunkShelf,
        on_sent: Callable[[Priority, int], None] | None = None,
        up_limit: RateLimit | None = None,
        seeder: Seeder | None = None,
    ) -> None:
        self.seeder = seeder
        self.load = Load()
        self.uplink = Uplink()
        self.precedence = Precedence(lambda: self.uplink.is_busy)
        self._distances = Distances()
        self.is_stopping = False
        """Then answers are gone on with until their time is up: nobody is left to park them at."""
        self._shelf = shelf
        self._on_sent = on_sent
        self._up_limit = up_limit
        self._waiting = {priority: threading.Semaphore(WAITING_MAX) for priority in Priority}

    def answer(self, session: Session, request: BodyRequest) -> bool:
        """Begin the answer or go on with it, for a turn: it is over unless `session.answer` is set afterwards.

        False if the connection cannot go on. Raises OSError and ImgdistError if only this session is broken.
        """
        if session.answer is None:
            try:
                session.answer = self._begin(session, request)
            except NotFoundError as error:
                self.release(session)
                return session.refuse(404, str(error)) and request.keep_alive
            except RedirectedError as error:
                self.release(session)
                said = session.refuse(307, str(error), None, error.addresses, from_here=error.from_here)
                return said and request.keep_alive
            except NotYetError as error:
                self.release(session)
                return session.refuse(404, str(error), error.retry_after_s) and request.keep_alive
            except TemporaryError as error:
                self.release(session)
                return session.refuse(503, str(error), error.retry_after_s) and request.keep_alive
            session.suit(request.priority, self._distances)
        answer = session.answer
        while not self._send(session, answer):
            if time.monotonic() > answer.deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the reader is too slow")
            if not self.is_stopping:  # then no watcher is left
                return True
        if self.seeder is not None:
            self.seeder.sent(request.name, answer.numbers, request.node)
        if session.peer is not None and request.priority is not Priority.FILL:
            self.uplink.sent(session.socket, request.node)
        self.release(session)
        return request.keep_alive

    def release(self, session: Session) -> None:
        """A session's answer is over, one way or the other."""
        session.answer = None
        if session.ticket is not None:
            self.load.done(session.ticket)
            session.ticket = None

    def _begin(self, session: Session, request: BodyRequest) -> Answer:
        """Raises NotFoundError, TemporaryError."""
        assert session.ticket is not None
        reader, seeder = self._shelf.open(request.name), self.seeder
        if reader is None:
            raise NotFoundError(f"pack {request.name} is not here")
        if isinstance(request, AnyRequest):
            if seeder is None:
                raise NotFoundError("no chunks are chosen here; ask for some by their numbers")
            numbers = seeder.choose(request.name, reader, request.lacks, request.count, request.node)
        else:
            numbers = request.numbers
            if request.wait_s and request.priority is not Priority.FILL and self._wait(reader, request, session.ticket):
                self._send_on(request)
        answer = Answer(request, numbers, reader, time.monotonic())
        if seeder is not None and isinstance(request, ChunkRequest):
            seeder.begun(request.name, reader, numbers, request.node)
        queue_bytes = self.load.ahead_bytes(request.priority) - session.ticket.left_bytes
        self.load.settle(session.ticket, answer.size_bytes, len(numbers))
        answer.open(max(0, queue_bytes), session.news(request.name, reader.arrivals))
        return answer

    def _send_on(self, request: ChunkRequest) -> None:
        """Of several who waited for the same the first in line is served, the others get it from there."""
        if self.seeder is None or request.node is None:
            return
        addresses = self.seeder.elsewhere(
            request.name, request.numbers, request.node, waits=True, foretold=request.priority is Priority.TRACE
        )
        if addresses:
            from_here = self.seeder.gives(request.name, request.numbers)
            raise RedirectedError("others are about to have it", tuple(addresses), from_here=from_here)

    def _wait(self, reader: ChunkReader, request: ChunkRequest, ticket: Ticket) -> bool:
        """Nothing is sent meanwhile: others find this server as free as it is, and its link as fast. True if it had to
        be waited for."""
        waiting = self._waiting[request.priority]
        if not waiting.acquire(blocking=False):
            return False
        self.load.set_aside(ticket)
        try:
            with self.precedence.idle():
                return reader.wait(request.numbers, min(request.wait_s, WAIT_MAX_S))
        finally:
            self.load.resume(ticket)
            waiting.release()

    def _send(self, session: Session, answer: Answer) -> bool:
        """Send what the reader has room for, for a turn. True when the kernel has all of it."""
        turn_ends = time.monotonic() + TURN_S
        priority = answer.request.priority
        outstanding = session.outstanding if priority is Priority.FILL else None
        while not answer.is_sent:
            if outstanding is not None and answer.is_between_chunks:
                outstanding.tune(calm=self.precedence.is_calm)
            piece = outstanding.piece if outstanding is not None else None
            if outstanding is not None and piece is not None and not outstanding.has_room(TURN_S):
                return False
            if priority is Priority.FILL:
                self.precedence.stand_back(session.socket)
            try:
                sent = self._send_piece(session, answer, piece, turn_ends)
            except BlockingIOError:
                return False
            if session.ticket is not None:
                self.load.sent(session.ticket, sent)
            if self._on_sent is not None:
                self._on_sent(priority, sent)
            if time.monotonic() > turn_ends:
                return answer.is_sent
        return True

    def _send_piece(self, session: Session, answer: Answer, piece: int | None, turn_ends: float) -> int:
        """Send a piece of a chunk, within the limit. Raises BlockingIOError if neither has room."""
        limit = self._up_limit
        if limit is None:
            return answer.send(session.socket, piece)
        size = min(answer.chunk_left, piece or PIECE, PIECE)
        urgent = answer.request.priority is not Priority.FILL
        while (wait_s := limit.take(size, urgent=urgent)) > 0:
            pause_s = max(0.0, min(wait_s, turn_ends - time.monotonic()))
            answer.deadline += pause_s  # the reader cannot help it
            time.sleep(pause_s)
            if pause_s < wait_s:
                raise BlockingIOError(errno.EAGAIN, "the rate limit leaves no room")
        sent = 0
        try:
            sent = answer.send(session.socket, size)
        finally:
            limit.give_back(size - sent)
        return sent

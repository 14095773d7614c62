"""Takes in what one source answers to a request: decode, verify, gather or deliver."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from functools import partial

from agent.transfer.delivery import Delivery
from agent.transfer.desk import Desk
from agent.transfer.fetch import Fetch, Kind
from agent.transfer.job import Job, Outcome
from agent.transfer.run import Run
from agent.transfer.sources import ChunkSource
from imgdist.errors import CorruptError, ImgdistError, ProtocolError
from imgdist.pack.codec import decode_into
from imgdist.wire.client import Told
from imgdist.wire.messages import Priority
from imgdist.wire.requests import AnyRequest, BodyRequest, ChunkRequest

_log = logging.getLogger("imgdist.agent")

_PRIORITY = {
    Kind.DEMAND: Priority.DEMAND,
    Kind.NOW: Priority.DEMAND,
    Kind.TRACE: Priority.TRACE,
    Kind.FILL: Priority.FILL,
}
_ANY_PRIORITY = {**_PRIORITY, Kind.NOW: Priority.TRACE}
"""Who lets a supernode choose does not need just these chunks first."""


class Intake:
    """One request at one source. `rest` is what is still to come: what lands is taken off, what the source chose itself
    is put on, what came wrong stays and goes to `outcome.bad`. After that a supernode's answer is read on, there may be
    no other; a peer's is not: what follows is as likely wrong, and others have it.

    Chunks that nobody waits for are written in runs: as far as they follow one another, up to `RUN_BYTES`, and before
    the thread waits for more of the answer.
    """

    def __init__(
        self,
        desk: Desk,
        delivery: Delivery,
        job: Job,
        fetch: Fetch,
        source: ChunkSource,
        rest: list[int],
        outcome: Outcome,
        wait_s: float,
    ) -> None:
        self._desk = desk
        self._delivery = delivery
        self._job = job
        self._fetch = fetch
        self._source = source
        self._rest = rest
        self._outcome = outcome
        self._wait_s = wait_s
        self._asked = tuple(rest)
        self._expected = deque(rest)
        self._run = self._new_run()
        self._is_first = True
        self.told: Told | None = None
        """What the answer's head said, once it began."""

    def take(self) -> None:
        """Ask, and take in the answer. Raises NotFoundError and TemporaryError of the source, OSError of the disk."""
        try:
            self._source.fetch(self._request(), self._chunk, self._head, self._numbers, self._pause)
        except (CorruptError, ProtocolError) as error:
            self._lied(_where_it_broke(self._fetch, self._expected, self._asked), error)
        finally:
            self._flush()

    def _request(self) -> BodyRequest:
        fetch, name = self._fetch, self._job.name
        if fetch.any_of:
            return AnyRequest.among(name, fetch.any_of, fetch.count, _ANY_PRIORITY[fetch.kind])
        return ChunkRequest(name, self._asked, _PRIORITY[fetch.kind], wait_s=self._wait_s)

    def _head(self, told: Told) -> None:
        self.told = told
        if self._wait_s:
            self._desk.began(self._fetch)

    def _numbers(self, numbers: tuple[int, ...]) -> None:
        self._expected.extend(numbers)
        self._rest.extend(numbers)
        self._desk.named(self._fetch, numbers)

    def _chunk(self, number: int, encoding: int, body: memoryview) -> None:
        job = self._job
        if self._is_first and self.told is not None and not self._wait_s:
            self._is_first = False  # what may wait says nothing of how long answers take
            self._desk.answered(job, self._fetch, self._source, self.told)
        if job.store.has(number):
            self._desk.repeated(job, self._source, number, len(body))
            self._done(number)
            return
        slot = self._delivery.buffer(job, self._fetch, number)
        raw = self._place(number) if slot is None else self._delivery.memory(slot, job.store.index.size(number))
        try:
            self._decode(number, encoding, body, raw, slot)
        except (CorruptError, ProtocolError) as error:
            if self._source.kind == "peer":
                raise
            self._expected.popleft()
            self._lied(number, error)
            return
        if slot is not None or self._fetch.kind.is_urgent or self._delivery.is_wanted(job, self._fetch, number):
            keep = partial(self._delivery.keep, job, number, encoding, body)
            self._delivery.one(job, self._fetch, number, raw, self._source, len(body), slot=slot, keep=keep)
        else:
            self._delivery.keep(job, number, encoding, body)
            self._run.add(number, raw, len(body))
        self._done(number)

    def _decode(self, number: int, encoding: int, body: memoryview, raw: memoryview, slot: int | None) -> None:
        """Have the chunk's verified bytes in `raw`; a `slot` of the view's is given back if that fails."""
        try:
            decode_into(encoding, body, raw)
            self._job.store.verify(number, raw)
        except BaseException:
            if slot is not None:
                self._delivery.give_up(slot)
            raise

    def _place(self, number: int) -> memoryview:
        size = self._job.store.index.size(number)
        place = self._run.place(number, size)
        if place is None:
            self._flush()
            place = self._run.place(number, size)
            assert place is not None  # an empty run has room for any chunk
        return place

    def _pause(self) -> None:
        """There is time now."""
        self._desk.pauses()
        self._flush()

    def _flush(self) -> None:
        """Write what was gathered, and do without its memory."""
        if self._run.is_untouched:
            return
        run, self._run = self._run, self._new_run()
        try:
            if run.chunks:
                self._delivery.run(self._job, self._fetch, run, self._source)
        finally:
            run.close()

    def _new_run(self) -> Run:
        """No reader's request waits for what fill does."""
        return Run(patient=not self._fetch.kind.is_urgent)

    def _done(self, number: int) -> None:
        self._expected.popleft()
        self._rest.remove(number)

    def _lied(self, chunk: int, error: ImgdistError) -> None:
        job, source = self._job, self._source
        _log.warning("pack %s, chunk %d from %s: %s", job.name, chunk, source.name, error)
        self._desk.tried(job, (chunk,), source, error)
        self._desk.source_lied(job, source, chunk, _reason(error))
        self._outcome.bad.add(chunk)
        self._outcome.explained = True


def _where_it_broke(fetch: Fetch, expected: Sequence[int], asked: Sequence[int]) -> int:
    """The chunk that an answer broke at; of one that did not say what it brings, any that it might have brought."""
    if expected:
        return expected[0]
    return asked[-1] if asked else fetch.any_of.bit_length() - 1


def _reason(error: ImgdistError) -> str:
    if isinstance(error, CorruptError):
        return "digest"
    return "protocol"

"""Carries out one request: ask the sources in turn, decode, verify, answer who waits, write, mark present."""

from __future__ import annotations

import contextlib
import logging
import mmap
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from agent.earlystore import EarlyStore
from agent.layerstore import LayerStore
from agent.transfer.fetch import Fetch, Kind
from agent.transfer.sources import ChunkSource
from imgdist.errors import CorruptError, ImgdistError, NotFoundError, NotYetError, ProtocolError, TemporaryError
from imgdist.pack import CHUNK_MAX
from imgdist.pack.codec import RAW, decode_into
from imgdist.wire.client import RedirectedError, Told
from imgdist.wire.messages import Priority
from imgdist.wire.requests import AnyRequest, BodyRequest, ChunkRequest

_log = logging.getLogger("imgdist.agent")

WAIT_S = 1.0
"""For chunks that are on their way to whom a busy source named: sixteen links of 12 Mbit/s, one behind the other, take
as long for a chunk (a guess)."""
_BUFFERS_KEPT = 4
TWINS_KEPT = 4
"""Copies of a chunk that are remembered; the first present one is used (a guess)."""


class View(Protocol):
    """What transfers tell the view (fuse.link.ViewLink). Offsets are bytes of the layer's image."""

    def acquire_ring(self) -> int | None:
        """A free buffer of the ring, or None."""

    def ring(self, slot: int) -> memoryview:
        """That buffer, CHUNK_MAX bytes."""

    def ready(self, node: int, start: int, end: int, slot: int) -> None:
        """[start, end) stands verified in the ring buffer, which the view gives back."""

    def held(self, node: int, start: int, end: int, slot: int) -> None:
        """As `ready`, of bytes that the disk did not take."""

    def written(self, node: int, start: int, end: int) -> None:
        """[start, end) stands in the image and is marked present."""

    def fail(self, node: int, start: int, end: int, error: int) -> None:
        """Reads of [start, end) end with this errno."""


@dataclass(slots=True)
class Job:
    """A layer that is being transferred, and the copies of its chunks elsewhere on this disk."""

    store: LayerStore | EarlyStore
    node: int
    name: str  # its pack id in hex, before the seal the layer's name: on the wire, and in messages
    twins: dict[int, list[tuple[LayerStore, int]]] = field(default_factory=dict)

    def add_twin(self, chunk: int, other: LayerStore, other_chunk: int) -> None:
        """Remember a copy."""
        copies = self.twins.setdefault(chunk, [])
        if len(copies) < TWINS_KEPT:
            copies.append((other, other_chunk))

    def drop_twin(self, chunk: int, twin: tuple[LayerStore, int]) -> None:
        """That copy is of no use."""
        copies = self.twins.get(chunk, [])
        if twin in copies:
            copies.remove(twin)


@dataclass(slots=True)
class Outcome:
    """What became of a request beside what landed: seconds to the answer's first byte, if one source served all of
    it, the chunks that came wrong and from nobody else, and whether the policy knows why something is left."""

    round_trip_s: float | None = None
    bad: set[int] = field(default_factory=set)
    explained: bool = False


class Desk(Protocol):
    """Where a landing asks and reports (Transfers)."""

    def turned(self, fetch: Fetch, source: ChunkSource) -> None:
        """What the source before did not serve is asked of this one now."""

    def named(self, fetch: Fetch, chunks: Sequence[int]) -> None:
        """A source chose these chunks for an `any_of` request."""

    def answered(self, job: Job, fetch: Fetch, source: ChunkSource, told: Told) -> None:
        """The first chunk of an answer is here."""

    def tried(self, job: Job, chunks: Sequence[int], source: ChunkSource, error: ImgdistError) -> None:
        """A source did not give these chunks."""

    def receivers(self, fetch: Fetch, source: ChunkSource, error: RedirectedError) -> list[ChunkSource]:
        """A busy source says who else has the chunks, or is getting them."""

    def source_waits(self, job: Job, source: ChunkSource, error: NotYetError) -> None:
        """A source has nothing of the layer for us just now."""

    def source_failed(self, source: ChunkSource, error: TemporaryError) -> None:
        """A source could not serve."""

    def source_lacks(self, job: Job, source: ChunkSource, chunks: Sequence[int]) -> bool:
        """A source says it does not have one of these. True if it will not be asked for them again."""

    def source_lied(self, job: Job, source: ChunkSource, chunk: int, reason: str) -> None:
        """A source sent what it must not instead of this chunk."""

    def is_wanted(self, node: int, chunk: int) -> bool:
        """Whether a reader waits for the chunk."""

    @property
    def is_alone(self) -> bool:
        """Whether no other agent was ever met: there is nobody to keep encoded bodies for."""

    def landed(
        self, job: Job, fetch: Fetch, chunk: int, source: ChunkSource | None, body_bytes: int, answered_at: float
    ) -> bool:
        """A verified chunk is in the image. True if a reader waited for it."""

    def shared(self, size_bytes: int) -> None:
        """A chunk has its blocks on the disk together with the pack that it was copied from."""

    def kept(self, job: Job, chunk: int) -> bytes | None:
        """The bytes of a chunk that the disk did not take before, if they are still in memory."""

    def refused(
        self, job: Job, chunk: int, raw: memoryview, answered_at: float | None, error: OSError, *, told: bool
    ) -> bool:
        """The disk did not take a verified chunk; `told`: the view has it all the same. False if that ends the request:
        the view has it not, or it is no full disk and nobody waits for the chunk."""

    def repeated(self, job: Job, source: ChunkSource, chunk: int, body_bytes: int) -> None:
        """A chunk came that another source had brought already."""


class _Buffers:
    """Page-aligned memory for a chunk, as O_DIRECT wants it. What was given back last goes out first, and few are kept:
    2 to 4 chunks are decoded at once, however many threads there are."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    @contextlib.contextmanager
    def one(self) -> Iterator[memoryview]:
        """CHUNK_MAX bytes, for the block."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = memoryview(mmap.mmap(-1, CHUNK_MAX))
        try:
            yield buffer
        finally:
            if len(self._free) < _BUFFERS_KEPT:
                self._free.append(buffer)


_buffers = _Buffers()
_PRIORITY = {
    Kind.DEMAND: Priority.DEMAND,
    Kind.NOW: Priority.DEMAND,
    Kind.TRACE: Priority.TRACE,
    Kind.FILL: Priority.FILL,
}
_ANY_PRIORITY = {**_PRIORITY, Kind.NOW: Priority.TRACE}
"""Who lets a supernode choose does not need just these chunks first."""


class Landing:
    """One request's way. What does not land is left to the scheduler to ask for again."""

    def __init__(self, desk: Desk, view: View, clock: Callable[[], float]) -> None:
        self._desk = desk
        self._view = view
        self._clock = clock

    def run(self, job: Job, fetch: Fetch) -> Outcome:
        """Land the chunks."""
        outcome = Outcome()
        with job.store.use() as usable:
            if usable:
                try:
                    rest = [chunk for chunk in fetch.chunks if not self._is_here(job, fetch, chunk)]
                    if rest or fetch.any_of:
                        self._ask_in_turn(job, fetch, rest, outcome)
                except OSError as error:
                    _log.error("pack %s: cannot write its image: %s", job.name, error)
                    outcome.explained = False
        return outcome

    def _ask_in_turn(self, job: Job, fetch: Fetch, rest: list[int], outcome: Outcome) -> None:
        """Ask the sources, until nothing is left. The first that sends this node elsewhere does so once: behind those
        whom it names it is asked again, and nobody sends a node on that says so (`wait_s`). However many are busy, or
        lie about others, a request has an end."""
        whole = len(rest) == len(fetch.chunks)
        sources = deque(cast(tuple[ChunkSource, ...], fetch.sources))
        asked: list[ChunkSource] = []
        receivers: list[ChunkSource] = []
        wait_s = 0.0
        while sources:
            source = sources.popleft()
            if asked:
                self._desk.turned(fetch, source)
            asked.append(source)
            told: list[Told] = []
            try:
                self._ask(job, fetch, source, rest, told, outcome, wait_s)
            except NotFoundError as error:  # no fault of the source: it may well have other packs
                self._desk.tried(job, rest, source, error)
                if source not in receivers:  # who was named by another promised nothing
                    outcome.explained |= self._desk.source_lacks(job, source, rest)
            except RedirectedError as error:
                self._desk.tried(job, rest, source, error)
                if wait_s:
                    self._desk.source_failed(source, error)
                else:
                    wait_s = WAIT_S
                    receivers = [other for other in self._desk.receivers(fetch, source, error) if other not in asked]
                    later = [other for other in sources if other not in receivers]
                    sources = deque([*receivers, source, *later])
                outcome.explained = True
            except NotYetError as error:
                self._desk.tried(job, rest, source, error)
                self._desk.source_waits(job, source, error)
                outcome.explained = True
            except TemporaryError as error:
                self._desk.tried(job, rest, source, error)
                self._desk.source_failed(source, error)
                outcome.explained = True
            outcome.bad.intersection_update(rest)
            if not rest and (fetch.chunks or told):
                outcome.round_trip_s = told[0].round_trip_s if whole and told else None
                return
            whole = False

    def _ask(
        self,
        job: Job,
        fetch: Fetch,
        source: ChunkSource,
        rest: list[int],
        told: list[Told],
        outcome: Outcome,
        wait_s: float,
    ) -> None:
        """Fetch `rest`, or what the source chooses, taking from it what lands; what comes wrong goes to `outcome.bad`.
        Then a supernode's answer is read on, there may be no other; a peer's is not: what follows is as likely wrong,
        and others have it."""
        expected = deque(rest)
        asked = tuple(rest)
        is_first = True

        def lied(chunk: int, error: ImgdistError) -> None:
            _log.warning("pack %s, chunk %d from %s: %s", job.name, chunk, source.name, error)
            self._desk.tried(job, (chunk,), source, error)
            self._desk.source_lied(job, source, chunk, _reason(error))
            outcome.bad.add(chunk)
            outcome.explained = True

        def on_numbers(numbers: tuple[int, ...]) -> None:
            expected.extend(numbers)
            rest.extend(numbers)
            self._desk.named(fetch, numbers)

        def on_chunk(number: int, encoding: int, body: memoryview) -> None:
            nonlocal is_first
            if is_first and told and not wait_s:  # what may wait says nothing of how long answers take
                is_first = False
                self._desk.answered(job, fetch, source, told[0])
            if job.store.has(number):
                self._desk.repeated(job, source, number, len(body))
                expected.popleft()
                rest.remove(number)
                return
            with _buffers.one() as buffer:
                raw = buffer[: job.store.index.size(number)]
                try:
                    decode_into(encoding, body, raw)
                    job.store.verify(number, raw)
                except (CorruptError, ProtocolError) as error:
                    if source.kind == "peer":
                        raise
                    expected.popleft()
                    lied(number, error)
                    return
                self._land(job, fetch, number, raw, source, encoding, body)
            expected.popleft()
            rest.remove(number)

        try:
            source.fetch(_request(job, fetch, asked, wait_s), on_chunk, told.append, on_numbers)
        except (CorruptError, ProtocolError) as error:
            lied(_where_it_broke(fetch, expected, asked), error)

    def _is_here(self, job: Job, fetch: Fetch, chunk: int) -> bool:
        return self._land_kept(job, fetch, chunk) or self._copy(job, fetch, chunk)

    def _land_kept(self, job: Job, fetch: Fetch, chunk: int) -> bool:
        """Try again with a chunk that the disk did not take before."""
        kept = self._desk.kept(job, chunk)
        if kept is None:
            return False
        with _buffers.one() as buffer:
            raw = buffer[: len(kept)]
            raw[:] = kept
            self._land(job, fetch, chunk, raw, None, RAW, raw)
        return True

    def _copy(self, job: Job, fetch: Fetch, chunk: int) -> bool:
        """Take the chunk from another pack on this disk, if it is there and its bytes are right."""
        for twin in tuple(job.twins.get(chunk, ())):
            other, other_chunk = twin
            with other.use() as usable:
                size = job.store.index.size(chunk)
                if not (usable and other.index.size(other_chunk) == size and other.has(other_chunk)):
                    continue
                with _buffers.one() as buffer:
                    raw = buffer[:size]
                    try:
                        other.read_into(other_chunk, raw)
                        job.store.verify(chunk, raw)
                    except (CorruptError, OSError) as error:
                        _log.warning("pack %s: no copy of its chunk %d: %s", job.name, chunk, error)
                        job.drop_twin(chunk, twin)
                        continue
                    self._land(job, fetch, chunk, raw, None, RAW, raw, twin)
                return True
        return False

    def _land(
        self,
        job: Job,
        fetch: Fetch,
        chunk: int,
        raw: memoryview,
        source: ChunkSource | None,
        encoding: int,
        body: memoryview,
        twin: tuple[LayerStore, int] | None = None,
    ) -> None:
        start = job.store.index.start(chunk)
        end = start + len(raw)
        answered_at = None
        if fetch.kind is Kind.DEMAND or self._desk.is_wanted(job.node, chunk):
            # A copy, not the ring buffer itself: the view gives that back, and so to others, while we still write.
            slot = self._view.acquire_ring()
            if slot is not None:
                self._view.ring(slot)[: len(raw)] = raw
                self._view.ready(job.node, start, end, slot)
                answered_at = self._clock()
        # Buffered where a reader is about to come back for the neighbouring blocks, past the page cache otherwise.
        try:
            if twin is not None and job.store.share(chunk, *twin):
                self._desk.shared(len(raw))
            else:
                job.store.write(chunk, raw, direct=not fetch.kind.is_urgent)
        except OSError as error:
            slot = self._view.acquire_ring()
            passed = self._desk.refused(job, chunk, raw, answered_at, error, told=slot is not None)
            if slot is not None:
                # Only then: a read that parks too late for this is told to us as a miss, and is asked for again.
                self._view.ring(slot)[: len(raw)] = raw
                self._view.held(job.node, start, end, slot)
            if not passed:
                raise
            return
        frames = job.store.frames
        if source is not None and frames is not None and not self._desk.is_alone:
            frames.append(chunk, encoding, body)  # before anybody hears that the chunk is here
        if self._desk.landed(job, fetch, chunk, source, len(body), answered_at or self._clock()):
            # Only then: each read that the view parks is told to us as a miss, so nobody else is waiting for this.
            self._view.written(job.node, start, end)


def _request(job: Job, fetch: Fetch, numbers: tuple[int, ...], wait_s: float) -> BodyRequest:
    if fetch.any_of:
        return AnyRequest.among(job.name, fetch.any_of, fetch.count, _ANY_PRIORITY[fetch.kind])
    return ChunkRequest(job.name, numbers, _PRIORITY[fetch.kind], wait_s=wait_s)


def _where_it_broke(fetch: Fetch, expected: Sequence[int], asked: Sequence[int]) -> int:
    """The chunk that an answer broke at; of one that did not say what it brings, any that it might have brought."""
    if expected:
        return expected[0]
    return asked[-1] if asked else fetch.any_of.bit_length() - 1


def _reason(error: ImgdistError) -> str:
    if isinstance(error, CorruptError):
        return "digest"
    return "protocol"

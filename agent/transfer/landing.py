"""Carries out one request: look for copies on this disk, ask the sources in turn."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import cast

from agent.transfer.delivery import Delivery
from agent.transfer.desk import Desk
from agent.transfer.fetch import Fetch
from agent.transfer.intake import Intake
from agent.transfer.job import Job, Outcome
from agent.transfer.run import memory
from agent.transfer.sources import ChunkSource
from agent.transfer.view import View
from imgdist.errors import CorruptError, NotFoundError, NotYetError, RedirectedError, TemporaryError

_log = logging.getLogger("imgdist.agent")

REDIRECTS_MAX = 5
"""So often a request is sent elsewhere; whom it asks then, serves it (a guess: a line begins as a bush)."""


class Landing:
    """The way of requests, each in a thread of its own. The scheduler asks again for what does not land."""

    def __init__(self, desk: Desk, view: View, clock: Callable[[], float]) -> None:
        self._desk = desk
        self._delivery = Delivery(desk, view, clock)

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
        """Ask the sources, until nothing is left. Whom a busy one names may wait for what is on its way to them, as may
        the one before this node in a line; they may name who stands nearer. Behind them the busy one is asked again,
        and may name others. Where it has no more to name, or did so too often, it serves whoever says that (`wait_s`).
        However many are busy, or lie about others, a request has an end."""
        whole = len(rest) == len(fetch.chunks)
        sources = deque(cast(tuple[ChunkSource, ...], fetch.sources))
        asked: list[ChunkSource] = []
        named: set[ChunkSource] = set()
        served_by: dict[ChunkSource, ChunkSource] = {}
        redirects, insists = 0, False
        while sources:
            source = sources.popleft()
            is_before = self._desk.is_before(source)
            passes_on = source == fetch.before or source in named
            namer = None if fetch.kind.is_urgent and not is_before else served_by.get(source)
            waits = (is_before and (passes_on or insists)) or namer is not None
            wait_s = self._desk.wait_s() if waits else 0.0
            if asked:
                self._desk.turned(fetch, source, wait_s)
            asked.append(source)
            lacked = False
            intake = Intake(self._desk, self._delivery, job, fetch, source, rest, outcome, wait_s)
            try:
                intake.take()
            except NotFoundError as error:  # no fault of the source: it may well have other packs
                lacked = True
                self._desk.tried(job, rest, source, error)
                if namer is not None:
                    self._desk.misled(namer)
                if source in named or (source == fetch.before and not self._desk.holds(job, source, rest)):
                    outcome.explained = True  # it promised nothing
                else:
                    outcome.explained |= self._desk.source_lacks(job, source, rest)
            except RedirectedError as error:
                self._desk.tried(job, rest, source, error)
                if source.kind == "supernode" and insists:
                    self._desk.source_failed(fetch, source, error)
                elif redirects < REDIRECTS_MAX:
                    redirects += 1
                    receivers = [other for other in self._desk.receivers(fetch, source, error) if other not in asked]
                    named.update(receivers)
                    if error.from_here:
                        served_by.update(dict.fromkeys(receivers, source))
                    # Whoever has it and names nobody that may be asked serves who comes back.
                    comes_back = error.from_here and fetch.kind.is_urgent and not receivers
                    again = [source] if source.kind == "supernode" or comes_back else []
                    sources = deque([*receivers, *again, *(other for other in sources if other not in receivers)])
                    insists = redirects == REDIRECTS_MAX or (bool(again) and not receivers)
                outcome.explained = True
            except NotYetError as error:
                self._desk.tried(job, rest, source, error)
                self._desk.source_waits(job, source, error)
                outcome.explained = True
            except TemporaryError as error:
                self._desk.tried(job, rest, source, error)
                self._desk.source_failed(fetch, source, error)
                outcome.explained = True
            outcome.bad.intersection_update(rest)
            served = not rest and (fetch.chunks or intake.told)
            if passes_on and fetch.kind.is_urgent:
                if served:
                    self._desk.passed_on(fetch, source)
                else:
                    self._desk.not_passed_on(source, lacked=lacked)
            if served:
                outcome.round_trip_s = intake.told.round_trip_s if whole and intake.told else None
                return
            whole = False

    def _is_here(self, job: Job, fetch: Fetch, chunk: int) -> bool:
        return self._land_kept(job, fetch, chunk) or self._copy(job, fetch, chunk)

    def _land_kept(self, job: Job, fetch: Fetch, chunk: int) -> bool:
        """Try again with a chunk that the disk did not take before."""
        kept = self._desk.kept(job, chunk)
        if kept is None:
            return False
        with memory(len(kept)) as raw:
            raw[:] = kept
            self._delivery.one(job, fetch, chunk, raw, None, len(kept))
        return True

    def _copy(self, job: Job, fetch: Fetch, chunk: int) -> bool:
        """Take the chunk from another pack on this disk, if it is there and its bytes are right."""
        for twin in tuple(job.twins.get(chunk, ())):
            self._desk.pauses()
            other, other_chunk = twin
            with other.use() as usable:
                size = job.store.index.size(chunk)
                if not (usable and other.index.size(other_chunk) == size and other.has(other_chunk)):
                    continue
                with memory(size) as raw:
                    try:
                        other.read_into(other_chunk, raw)
                        job.store.verify(chunk, raw)
                    except (CorruptError, OSError) as error:
                        _log.warning("pack %s: no copy of its chunk %d: %s", job.name, chunk, error)
                        job.drop_twin(chunk, twin)
                        continue
                    self._delivery.one(job, fetch, chunk, raw, None, size, twin=twin)
                return True
        return False

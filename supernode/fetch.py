"""Layers from a registry into the store: each one read once, converted while it downloads, whoever asks and how often.

Single-flight per layer: a job is entered in `_jobs` before the first await and leaves when the layer is sealed or has
failed, so that two resolves at once never start two downloads. Who follows a job sees its error when it fails; a
later `start` tries again, after a hold-off that keeps a broken layer from being downloaded over and over.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from imgdist.errors import CorruptError, DeclinedError, ImgdistError, NotFoundError, TemporaryError
from imgdist.oci.manifest import Descriptor
from imgdist.oci.reference import Reference, is_sha256
from imgdist.wire.control import METADATA_LAYER_BYTES, Body, LayerStatus
from supernode.catalog import Catalog
from supernode.metadata import metadata_bodies
from supernode.store import LocalStore

log = logging.getLogger("imgdist.fetch")

HOLD_OFF_S = 1.0
HOLD_OFF_MAX_S = 300.0
"""Wait before a failed layer is tried again: doubled with each failure. Guesses; agents ask again every few seconds."""
SMALL_BYTES = 1 << 20
"""Layers up to this size are converted in the image's order: containerd asks for them one after another, the base
first, and none of them is what the image waits for. A guess."""
ORIGINS_MAX = 100_000
"""Layers whose registry and size are remembered (~300 bytes each)."""


class Progress(Protocol):
    """How far a conversion is."""

    @property
    def chunks(self) -> int: ...


class Result(Protocol):
    """A sealed pack; `pack_id` in hexadecimal."""

    @property
    def pack_id(self) -> str: ...


class Conversion(Protocol):
    """One layer on its way into the store, outside this process's event loop (`supernode.convert.Conversion`).

    Inside `async with`: `feed` all of it, then `finish`. Leaving without that keeps nothing. Any number may `follow`.
    """

    async def __aenter__(self) -> Conversion: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def progress(self) -> Progress: ...

    async def feed(self, data: bytes) -> None: ...

    async def finish(self) -> Result: ...

    def follow(self, start: int = 0) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a layer comes from and what its image says of it."""

    host: str
    repository: str
    layer: Descriptor
    diff_id: str

    @property
    def blob(self) -> Reference:
        """What its registry calls it."""
        return Reference(self.host, self.repository, digest=self.layer.digest)

    @property
    def obstacle(self) -> str | None:
        """Why the layer is declined without a look at its bytes."""
        if not is_sha256(self.layer.digest):
            return f"layer digest {self.layer.digest[:16]}... is not sha256"
        return self.layer.obstacle


Converter = Callable[[Origin], Conversion]
Reader = Callable[[Origin], AsyncGenerator[bytes, None]]
"""A layer's compressed bytes in order; ends normally only if size and digest match (RegistryClient.blob)."""


@dataclass(slots=True)
class Job:
    """A layer waiting for its turn or on its way.

    `begun` is set once `conversion` or `error` is, `over` when the job has left `_jobs`.
    """

    origin: Origin
    received_bytes: int = 0
    conversion: Conversion | None = None
    error: ImgdistError | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class _Failed:
    error: ImgdistError
    count: int
    retry_at: float


class Fetcher:
    """Starts, runs and reports the conversion of layers. `run` does the work, `parallel` layers at a time."""

    def __init__(
        self,
        store: LocalStore,
        catalog: Catalog,
        read: Reader,
        convert: Converter,
        parallel: int,
        observe_seconds: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._read = read
        self._convert = convert
        self._parallel = parallel
        self._observe_seconds = observe_seconds
        self._clock = clock
        self._origins: dict[str, Origin] = {}
        self._jobs: dict[str, Job] = {}
        self._declined: dict[str, str] = {}
        self._failed: dict[str, _Failed] = {}
        # Bounded by the layers that were ever resolved: each has one job at most. Oldest image first, in it the
        # biggest layer first, because the whole image waits for that one, then the small ones in its order.
        self._queue: asyncio.PriorityQueue[tuple[int, int, int, Job]] = asyncio.PriorityQueue()
        self._images = itertools.count()
        self._entered = itertools.count()

    async def load(self) -> None:
        """Remember the layers that an earlier run declined."""
        self._declined = await self._catalog.declined()

    @property
    def jobs(self) -> Mapping[str, Job]:
        """Layers on their way, by digest."""
        return self._jobs

    @property
    def declined(self) -> Mapping[str, str]:
        """Reasons, by layer digest."""
        return self._declined

    def learn(self, origins: Sequence[Origin]) -> None:
        """Remember where an image's layers come from; the longest unseen are forgotten."""
        for origin in origins:
            digest = origin.layer.digest
            self._origins.pop(digest, None)
            self._origins[digest] = origin
            if origin.obstacle:
                self._declined[digest] = origin.obstacle
        while len(self._origins) > ORIGINS_MAX:
            forgotten = next(iter(self._origins))
            del self._origins[forgotten]
            self._failed.pop(forgotten, None)

    def start(self, origins: Sequence[Origin]) -> None:
        """Convert what is absent or damaged of an image, and not held off. No await: decides and marks at once."""
        image = next(self._images)
        for origin in origins:
            digest = origin.layer.digest
            failed = self._failed.get(digest)
            if self._is_wanted(digest) and not (failed and self._clock() < failed.retry_at):
                self._enter(image, origin)

    def again(self, digests: Sequence[str]) -> None:
        """Convert layers whose packs are not in order, of those that are known; the others come when an image that has
        them is resolved. No await, as in `start`."""
        for digest in digests:
            if digest in self._origins and digest not in self._jobs:
                self._enter(next(self._images), self._origins[digest])

    def _is_wanted(self, digest: str) -> bool:
        state = self.status(digest).state
        if state == "ready":
            return self._store.is_damaged(digest) and digest not in self._declined
        return state == "absent"

    def _enter(self, image: int, origin: Origin) -> None:
        job = self._jobs[origin.layer.digest] = Job(origin)
        self._queue.put_nowait((image, -max(origin.layer.size, SMALL_BYTES), next(self._entered), job))

    def status(self, digest: str) -> LayerStatus:
        """How far a layer is."""
        origin = self._origins.get(digest)
        size = origin.layer.size if origin else None
        if job := self._jobs.get(digest):
            chunks = job.conversion.progress.chunks if job.conversion else 0
            return LayerStatus(digest, "converting", None, job.received_bytes, job.origin.layer.size, chunks)
        if is_sha256(digest) and (pack_id := self._store.find(digest)):
            return LayerStatus(digest, "ready", pack_id, size or 0, size)
        if reason := self._declined.get(digest):
            return LayerStatus(digest, "declined", None, 0, size, reason=reason)
        failed = self._failed.get(digest)
        return LayerStatus(digest, "absent", None, 0, size, reason=str(failed.error) if failed else None)

    def known(self, digest: str) -> bool:
        """Whether the layer was resolved, or is here."""
        return digest in self._origins or self.status(digest).state != "absent"

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(self._parallel):
                workers.create_task(self._work())

    async def index(self, digest: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        """The raw index stream of a layer from record `start` on, followed to its seal while the layer converts.

        Raises NotFoundError for a layer that is neither here nor on its way, else the error that stopped it.
        """
        if job := self._jobs.get(digest):
            await job.begun.wait()
            if job.conversion is None:
                assert job.error is not None
                raise job.error
            try:
                async for piece in job.conversion.follow(start):
                    yield piece
            except ImgdistError:
                # Told once the part is gone and the verdict stands: who asks again must not meet the dead job.
                await job.over.wait()
                raise
            await job.over.wait()
            return
        status = self.status(digest)
        if status.pack_id is not None:
            self._store.used(status.pack_id)
            yield await asyncio.to_thread(self._store.index_bytes, status.pack_id, start)
            return
        if status.state == "declined":
            raise DeclinedError(f"layer {digest}: {status.reason}")
        if failed := self._failed.get(digest):
            raise failed.error
        raise NotFoundError(f"layer {digest} is neither here nor on its way: resolve an image that has it")

    async def ready_indexes(self, digests: Sequence[str], most_bytes: int) -> dict[str, bytes]:
        """The index streams of those layers that are ready, the first that fit into `most_bytes`."""
        wanted = [digest for digest in digests if is_sha256(digest) and digest not in self._jobs]
        return await asyncio.to_thread(self._read_indexes, wanted, most_bytes)

    def _read_indexes(self, digests: Sequence[str], most_bytes: int) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for digest in digests:
            if (pack_id := self._store.find(digest)) is None:
                continue
            with suppress(NotFoundError):  # removed meanwhile
                stream = self._store.index_bytes(pack_id)
                if len(stream) <= most_bytes:
                    self._store.used(pack_id)
                    found[digest] = stream
                    most_bytes -= len(stream)
        return found

    async def metadata(self, streams: Mapping[str, bytes], most_bytes: int) -> dict[str, tuple[Body, ...]]:
        """The metadata chunks of those layers whose index streams are given, the first that fit into `most_bytes`."""
        return await asyncio.to_thread(self._read_metadata, streams, most_bytes)

    def _read_metadata(self, streams: Mapping[str, bytes], most_bytes: int) -> dict[str, tuple[Body, ...]]:
        found: dict[str, tuple[Body, ...]] = {}
        for digest, stream in streams.items():
            reader = self._store.open(self._store.find(digest) or "")
            if reader is None:
                continue
            with suppress(CorruptError, NotFoundError):  # who needs the chunk asks for it, and hears of it
                bodies = metadata_bodies(reader, stream, min(most_bytes, METADATA_LAYER_BYTES))
                if bodies:
                    found[digest] = bodies
                    most_bytes -= sum(len(one.body) for one in bodies)
        return found

    async def _work(self) -> None:
        while True:
            *_, job = await self._queue.get()
            digest = job.origin.layer.digest
            try:
                await self._run_job(job)
                self._failed.pop(digest, None)
            except asyncio.CancelledError:
                job.error = TemporaryError(f"layer {digest}: the supernode stops")
                raise
            except ImgdistError as error:
                await self._fail(job, error)
            except Exception as error:
                log.exception("layer %s: conversion failed", digest)
                await self._fail(job, TemporaryError(f"layer {digest}: conversion failed: {error}"))
            finally:
                del self._jobs[digest]
                job.begun.set()
                job.over.set()

    async def _run_job(self, job: Job) -> None:
        origin, started = job.origin, self._clock()
        async with self._convert(origin) as conversion:
            job.conversion = conversion
            job.begun.set()
            async with aclosing(self._read(origin)) as pieces:
                async for piece in pieces:
                    job.received_bytes += len(piece)
                    await conversion.feed(piece)
            result = await conversion.finish()
        seconds = self._clock() - started
        self._observe_seconds(seconds)
        digest = origin.layer.digest
        log.info("layer %s: pack %s, %d bytes in %.2f s", digest, result.pack_id, job.received_bytes, seconds)

    async def _fail(self, job: Job, error: ImgdistError) -> None:
        digest = job.origin.layer.digest
        job.error = error
        reason = str(error).removeprefix(f"layer {digest}: ")
        if isinstance(error, DeclinedError):
            log.info("layer %s is declined: %s", digest, reason)
            self._declined[digest] = reason
            try:
                await self._catalog.keep_declined(digest, reason)
            except TemporaryError as problem:
                log.warning("layer %s: the verdict holds for this run only: %s", digest, problem)
            return
        log.warning("layer %s: %s", digest, reason)
        count = self._failed[digest].count + 1 if digest in self._failed else 1
        hold_off_s = min(HOLD_OFF_MAX_S, HOLD_OFF_S * 2 ** (count - 1))
        self._failed[digest] = _Failed(error, count, self._clock() + hold_off_s)

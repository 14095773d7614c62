"""A running conversion, as the event loop sees it: a worker process that is fed, watched and followed."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from imgdist.errors import CorruptError, DeclinedError, ImgdistError, TemporaryError
from imgdist.limits import DEFAULT_LIMITS, Limits
from imgdist.pack import codec
from supernode.convert.workers import Worker, Workers
from supernode.store.growing import GrowingPack
from supernode.store.local import LocalStore

log = logging.getLogger("imgdist.convert")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a conversion is: bytes fed to it, chunks that can be served, bytes of index that can be followed."""

    fed_bytes: int
    chunks: int
    index_bytes: int


@dataclass(frozen=True, slots=True)
class Result:
    """A sealed pack. `pack_id` in hexadecimal, sizes in bytes; `seconds` from start to seal."""

    pack_id: str
    diff_id: str
    image_bytes: int
    chunks: int
    files: int
    tar_bytes: int
    seconds: float


class Conversion:
    """Converts one layer into the store; `async with`, `feed` all of it, `finish`.

    Leaving the block without a finished result, also by cancellation, kills the worker and removes what it wrote.
    One task feeds and finishes; any number follow. A second conversion of the same layer must not run beside it.
    """

    def __init__(
        self,
        store: LocalStore,
        workers: Workers,
        layer_digest: str,
        *,
        diff_id: str | None = None,
        threads: int = 2,
        level: int = codec.LEVEL_FAST,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """`diff_id`: what the image's configuration says the layer is; a layer that differs is not sealed."""
        self._store = store
        self._workers = workers
        self._layer_digest = layer_digest
        self._expected_diff_id = diff_id
        self._settings = {"layer": layer_digest, "threads": threads, "level": level, "limits": asdict(limits)}
        self._worker: Worker | None = None
        self._watcher: asyncio.Task[dict[str, Any]] | None = None
        self._growing: GrowingPack | None = None
        self._fed_bytes = 0
        self._started = time.monotonic()

    @property
    def progress(self) -> Progress:
        """How far it is."""
        growing = self._growing
        return Progress(self._fed_bytes, *((growing.chunks, growing.index_bytes) if growing else (0, 0)))

    async def __aenter__(self) -> Self:
        part = await asyncio.to_thread(self._store.begin, self._layer_digest)
        self._growing = GrowingPack(part)
        try:
            self._worker = await self._workers.start(self._settings | {"part": str(part)})
        except ImgdistError:
            await asyncio.to_thread(self._store.abandon, self._layer_digest)
            raise
        self._watcher = asyncio.create_task(self._watch(self._worker, self._growing))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._growing is not None
        if not self._growing.is_over:
            self._growing.fail(error if isinstance(error, ImgdistError) else self._abandoned())
        await asyncio.shield(self._clean_up(self._growing))

    async def feed(self, data: bytes) -> None:
        """Give the worker the next bytes of the compressed layer. Waits while it has enough to do.

        Raises what `finish` would raise, as soon as the worker has given up.
        """
        assert self._worker is not None
        try:
            self._worker.layer.write(data)
            await self._worker.layer.drain()
        except (BrokenPipeError, ConnectionResetError):
            await self._outcome()
            raise
        self._fed_bytes += len(data)

    async def finish(self) -> Result:
        """All of the layer was fed, and its digest is right: wait for the worker, check the diff ID, seal the pack.

        Raises `DeclinedError` where only an ordinary pull will do, `CorruptError` for a layer that is not what it
        should be, `TemporaryError` if the worker died or the disk is full. Nothing is kept then.
        """
        assert self._worker is not None and self._growing is not None
        try:
            if not self._worker.layer.is_closing():
                self._worker.layer.write_eof()
            done = await self._outcome()
            if self._expected_diff_id not in (None, done["diff_id"]):
                raise CorruptError(
                    f"layer {self._layer_digest} unpacks to {done['diff_id']}, "
                    f"but the image's configuration says {self._expected_diff_id}"
                )
            self._growing.advance(done["chunks"], sys.maxsize)
            await asyncio.to_thread(self._store.seal, self._layer_digest, bytes.fromhex(done["pack_id"]))
        except ImgdistError as error:
            self._growing.fail(error)
            raise
        self._growing.seal()
        return Result(
            pack_id=done["pack_id"],
            diff_id=done["diff_id"],
            image_bytes=done["image_bytes"],
            chunks=done["chunks"],
            files=done["files"],
            tar_bytes=done["tar_bytes"],
            seconds=time.monotonic() - self._started,
        )

    async def follow(self, start: int = 0) -> AsyncIterator[bytes]:
        """The index stream from record `start` on, as it grows. Ends after the seal, when the pack has its name.

        Raises the conversion's error if it fails. Usable after the `async with` block has ended, too.
        """
        assert self._growing is not None
        async for piece in self._growing.follow(start):
            yield piece

    async def _outcome(self) -> dict[str, Any]:
        """What the worker ended with; raises its error."""
        assert self._watcher is not None
        outcome = await asyncio.shield(self._watcher)
        reason = f"layer {self._layer_digest}: "
        if "declined" in outcome:
            raise DeclinedError(reason + outcome["declined"].removeprefix("layer: "))
        if "corrupt" in outcome:
            raise CorruptError(reason + outcome["corrupt"].removeprefix("layer: "))
        if "done" not in outcome:
            raise TemporaryError(reason + outcome.get("failed", "the conversion worker ended without a result"))
        done: dict[str, Any] = outcome["done"]
        return done

    async def _watch(self, worker: Worker, growing: GrowingPack) -> dict[str, Any]:
        """Read the worker's reports until it is gone. Returns its outcome, or that it ended without one."""
        outcome: dict[str, Any] = {}
        try:
            async for line in worker.reports:
                report = json.loads(line)
                if not isinstance(report, dict):
                    raise TypeError("no object")
                if "progress" in report:
                    growing.advance(report["progress"]["chunks"], report["progress"]["index_bytes"])
                elif "ended" not in report:
                    outcome = report
                elif not outcome:
                    outcome = _ended(report["ended"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            worker.kill()
            await worker.reports.read()
            outcome = {"failed": f"the conversion worker made no sense: {error!r}"}
        return outcome or {"failed": "the process that conversion workers are forked from ended"}

    def _abandoned(self) -> ImgdistError:
        return TemporaryError(f"conversion of layer {self._layer_digest} was abandoned")

    async def _clean_up(self, growing: GrowingPack) -> None:
        assert self._worker is not None
        assert self._watcher is not None
        self._worker.kill()
        await self._watcher
        self._workers.release(self._worker)
        if growing.error is not None:
            await asyncio.to_thread(self._store.abandon, self._layer_digest)


def _ended(code: int) -> dict[str, str]:
    """The outcome of a worker that ended without telling one."""
    if code == -signal.SIGXCPU:
        return {"declined": "converting the layer takes more CPU time than is allowed (limits.cpu_s)"}
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return {"failed": f"the conversion worker ended {how}"}

"""Has this node's packs proved: the tar-split stream is fetched for that only, and kept nowhere.

At a time one pack is looked at that somebody waits for, and one unasked: who waits does not wait for what has only idle
processors.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Protocol

from agent.layer import Layer
from agent.work import SharedWork
from imgdist.errors import ImgdistError
from imgdist.pack.kinds import Kind
from imgdist.proving.process import When, prove_aside
from imgdist.proving.verdict import Verdict
from imgdist.space import disk_of

log = logging.getLogger("imgdist.proving")

MARK = "proven"
"""An empty file in a pack's directory: it was proved by this node once."""
LOOKS_MAX = 10_000
"""Looks that are remembered, some 200 bytes each; the oldest go."""
SLACK_BYTES = 64 << 10
"""By how much a compressed stream may be longer than it is uncompressed (zstd: 1/256 and some)."""
DISK_SHARE = 4
"""One part in so many of what the disk has available is what a stream may take while it is looked at (a guess)."""


class Splits(Protocol):
    """Where tar-split streams come from (agent.supernodes)."""

    async def tar_split(self, pack_id: str, out: IO[bytes], most_bytes: int) -> None:
        """Write the compressed stream of a pack to `out`. ImgdistError if it cannot be had."""


@dataclass(slots=True)
class Look:
    """A pack that is, or was, looked at. Bytes are those of layer image and tar, about."""

    done_bytes: int = 0
    total_bytes: int = 0
    verdict: Verdict | None = None


class Prover:
    """On the event loop. `found(layer, verdict)` is called with each verdict. `looks` has the latest of each pack."""

    def __init__(
        self,
        splits: Splits,
        tasks: asyncio.TaskGroup,
        found: Callable[[Layer, Verdict], None] = lambda layer, verdict: None,
    ) -> None:
        self._splits = splits
        self._tasks = tasks
        self._found = found
        self._one: dict[When, asyncio.Lock] = {"idle": asyncio.Lock(), "soon": asyncio.Lock()}
        self._under_way: dict[str, SharedWork[Verdict]] = {}
        self.looks: dict[str, Look] = {}
        self.outcomes: Counter[str] = Counter()
        """How many looks ended how, since this process began."""

    def begin(self, layer: Layer, when: When = "soon") -> SharedWork[Verdict]:
        """Look at a layer's pack, unless that is being done: the verdict to wait for."""
        work = self._under_way.get(layer.pack_id)
        if work is None:
            look = Look(total_bytes=layer.store.index.image_size)
            work = self._under_way[layer.pack_id] = SharedWork(self._tasks, self._look(layer, look, when))
            self.looks.pop(layer.pack_id, None)
            self.looks[layer.pack_id] = look
            if len(self.looks) > LOOKS_MAX:
                del self.looks[next(iter(self.looks))]
        return work

    def is_proven(self, layer: Layer) -> bool:
        """Whether this node has proved the pack before; one stat(2)."""
        return (layer.store.directory / MARK).exists()

    async def _look(self, layer: Layer, look: Look, when: When) -> Verdict:
        try:
            async with self._one[when]:
                verdict = look.verdict = await self._proved(layer, look, when)
        finally:
            del self._under_way[layer.pack_id]
            look.verdict = look.verdict or Verdict("unproven", "the look was cut short")
        self.outcomes[verdict.outcome] += 1
        if verdict.outcome == "proven":
            with suppress(OSError):  # a full disk: it is proved again some time
                (layer.store.directory / MARK).touch()
        level = logging.ERROR if verdict.outcome in ("false", "damaged") else logging.INFO
        log.log(level, "layer %s: %s", layer.pack_id, verdict)
        self._found(layer, verdict)
        return verdict

    async def _proved(self, layer: Layer, look: Look, when: When) -> Verdict:
        def progress(done: int, total: int) -> None:
            look.done_bytes, look.total_bytes = done, total

        directory, index = layer.store.directory, layer.store.index
        with layer.store.use() as usable:
            if not usable:
                return Verdict("unproven", "it is being removed")
            is_whole = layer.store.is_complete
        try:
            with tempfile.TemporaryFile(dir=directory.parent) as split:
                if is_whole and index.kind is Kind.LAYER:
                    most = most_bytes(index.tar_split.size, disk_of(directory).available_bytes)
                    await self._splits.tar_split(layer.pack_id, split, most)
                    split.seek(0)
                return await prove_aside(
                    "agent.proving.worker", when, [str(directory), str(split.fileno())], progress, [split.fileno()]
                )
        except (ImgdistError, OSError) as error:
            return Verdict("unproven", str(error))


def most_bytes(named: int, available: int) -> int:
    """The longest compressed stream that is taken of one whose index says `named` bytes, on a disk with `available`:
    the index is the word of whoever hands out the stream, and is not to fill the disk."""
    return min(named + named // 128 + SLACK_BYTES, available // DISK_SHARE)

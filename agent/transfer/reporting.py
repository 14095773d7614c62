"""Whom requests under way ask and tell: the view, and the transfers' own desk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agent.transfer.fetch import Fetch
from agent.transfer.job import Job
from agent.transfer.sources import ChunkSource
from imgdist.errors import ImgdistError, NotYetError, RedirectedError, TemporaryError
from imgdist.wire.client import Told


class View(Protocol):
    """What transfers tell the view (fuse.link.ViewLink). Offsets are bytes of the layer's image."""

    def linger(self) -> bool:
        """Whether the thread that told of a miss may carry it out, until it is `back`."""

    def back(self) -> None:
        """It can be told of the next one."""

    def acquire_ring(self, *, keep: bool = False) -> int | None:
        """A free buffer of the ring, or None. `keep`: it is the caller's to read until `release_ring`, also once it was
        handed over."""

    def release_ring(self, slot: int) -> None:
        """A buffer that was kept may be used again, if the view has given it back."""

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


class Desk(Protocol):
    """Where a landing asks and reports (Transfers)."""

    def turned(self, fetch: Fetch, source: ChunkSource, wait_s: float) -> None:
        """What the source before did not serve is asked of this one now, which may wait so long for it."""

    def pauses(self) -> None:
        """The thread is about to wait for an answer: what was put off is done now."""

    def named(self, fetch: Fetch, chunks: Sequence[int]) -> None:
        """A source chose these chunks for an `any_of` request."""

    def began(self, fetch: Fetch) -> None:
        """An answer begins that was waited for: what came meanwhile says nothing of how long its chunks take."""

    def answered(self, job: Job, fetch: Fetch, source: ChunkSource, told: Told) -> None:
        """The first chunk of an answer is here."""

    def tried(self, job: Job, chunks: Sequence[int], source: ChunkSource, error: ImgdistError) -> None:
        """A source did not give these chunks."""

    def receivers(self, fetch: Fetch, source: ChunkSource, error: RedirectedError) -> list[ChunkSource]:
        """A busy source says who else has the chunks, or is getting them."""

    def wait_s(self) -> float:
        """How long to wait for chunks that are on their way to whom a busy source named."""

    def is_before(self, source: ChunkSource) -> bool:
        """Whether this node may wait for what that one waits for: never both for each other."""

    def passed_on(self, fetch: Fetch, source: ChunkSource) -> None:
        """It served what it may have had to wait for: the next miss goes there first, unless another had to help."""

    def not_passed_on(self, source: ChunkSource, *, lacked: bool) -> None:
        """It did not: it `lacked` that, or it failed or sent this node elsewhere."""

    def source_waits(self, job: Job, source: ChunkSource, error: NotYetError) -> None:
        """A source has nothing of the layer for us just now."""

    def source_failed(self, fetch: Fetch, source: ChunkSource, error: TemporaryError) -> None:
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
        self,
        job: Job,
        fetch: Fetch,
        chunks: Sequence[int],
        source: ChunkSource | None,
        body_bytes: int,
        answered_at: float,
    ) -> list[int]:
        """Verified chunks are in the image, `body_bytes` of them together. Returns those that readers waited for."""

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

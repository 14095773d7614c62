"""Blobs of registries as this daemon hands them out: what the mirror endpoints are built on.

The supernode's source reads the registry once for any number of readers; the agent's takes chunks from its supernode
and other agents. Both give bytes while more are still coming, and none that did not match its digest.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from imgdist.oci.reference import Reference


class BlobFile(NamedTuple):
    """Where a whole blob lies on this disk: `size` bytes from `offset` on in the file of descriptor `fd`."""

    fd: int
    offset: int
    size: int


class Blob(Protocol):
    """One reader's view of a blob, to be used in `async with`: leaving it, also by cancellation, frees what only this
    reader held. Any number may read one blob at a time, each from its own place."""

    @property
    def digest(self) -> str:
        """`sha256:<hex>`."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def file(self) -> BlobFile | None:
        """For sendfile, once the blob is whole, verified and lies there as it is; None before. Valid until the end of
        `async with`. Its offset is the file's, not the blob's."""

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset` on, as soon as the first of them are here: at least one and at most `length` and some
        256 KiB; b"" at the end of the blob and beyond.

        The last bytes of a blob come only when all of it is known to be right, so that no reader ever gets the whole
        of a wrong one. Raises TemporaryError if the bytes cannot be had now, CorruptError if the registry's blob is
        not what its digest says, DeniedError or NotFoundError where the registry changed its mind.
        """

    def stream(self, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes [start, end) in order, each piece as soon as it is here; close it when done. Raises as `read`."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Unheld:
    """A `Blob` without a file, of which nothing has to be freed."""

    file: BlobFile | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


async def pieces_of(blob: Blob, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
    """`Blob.stream` by `Blob.read`."""
    end = blob.size if end is None else min(end, blob.size)
    while start < end:
        piece = await blob.read(start, end - start)
        start += len(piece)
        yield piece


class BlobSource(Protocol):
    """Where blobs come from. Who may have which is not decided here, but asked before (`authorization` is only what
    the registry is shown when it has to be read)."""

    async def size(self, blob: Reference, *, authorization: str | None = None) -> int:
        """Bytes of the blob that `blob.digest` names in `blob.host` and `blob.repository`; nothing is fetched.

        Raises NotFoundError if there is none, DeniedError if the registry says so, DeclinedError for a digest that is
        not sha256, TemporaryError if nobody answers.
        """

    async def open(self, blob: Reference, *, authorization: str | None = None, size: int | None = None) -> Blob:
        """The blob, on its way or here. Returns when its size is known and its bytes can be expected: fetching has
        begun then. `size`, if a manifest told it, spares the registry a question. Raises as `size`.
        """

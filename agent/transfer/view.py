"""What transfers tell the view."""

from __future__ import annotations

from typing import Protocol


class View(Protocol):
    """As fuse.link.ViewLink has it. Offsets are bytes of the layer's image."""

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

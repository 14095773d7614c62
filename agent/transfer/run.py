"""Verified chunks that follow one another in an image, gathered in memory to be written at once."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterator

RUN_BYTES = 512 * 1024
"""Written at once. [measured, O_DIRECT into reserved space, CPU-s/GB: 256 KiB 0.16-0.25, 512 KiB 0.08-0.18, 1 MiB 0.06,
2 MiB 0.04-0.06] What was touched stays resident, and a node is to do with 64 MiB."""
_BUFFERS_KEPT = 2
_free: list[memoryview] = []
"""What was given back last goes out first, and few are kept: hardly more chunks are decoded at once than a small node
has cores, however many threads there are."""
PATIENT_AT_ONCE = 3
"""Runs with memory, of those that wait for it: two are decoded while one is written. Without a bound eight threads had
4 MiB [measured: CPU of a fill 3.1 s a GB, 3.2 before], of the 64 that a node is to do with."""
_patient = threading.Semaphore(PATIENT_AT_ONCE)


class Run:
    """Used by one thread. It has memory only while there is something in it, and is not to keep it while the thread
    waits for the network: a `patient` one's first place waits until few others have memory."""

    def __init__(self, *, patient: bool = False) -> None:
        self._patient = patient
        self.chunks: list[int] = []
        self.bodies: list[int] = []
        """How many bytes came for each."""
        self._places: list[memoryview] = []
        self._buffer: memoryview | None = None
        self._end = 0

    @property
    def is_untouched(self) -> bool:
        """Whether it has no memory."""
        return self._buffer is None

    def place(self, chunk: int, size: int) -> memoryview | None:
        """Where the bytes of a chunk are to be put; None if it does not follow the last one, or there is no room."""
        if self.chunks and (chunk != self.chunks[-1] + 1 or self._end + size > RUN_BYTES):
            return None
        if self._buffer is None:
            self._buffer = _take_in_turn() if self._patient else _take()
        return self._buffer[self._end : self._end + size]

    def add(self, chunk: int, place: memoryview, body_bytes: int) -> None:
        """The chunk's bytes are in the place that it was given, verified; `body_bytes` came for it."""
        self.chunks.append(chunk)
        self.bodies.append(body_bytes)
        self._places.append(place)
        self._end += len(place)

    def __iter__(self) -> Iterator[tuple[int, memoryview, int]]:
        """Each chunk, its bytes, and how many came for it."""
        return zip(self.chunks, self._places, self.bodies, strict=True)

    @property
    def raw(self) -> memoryview:
        """The bytes of all, from the first chunk on."""
        assert self._buffer is not None
        return self._buffer[: self._end]

    def close(self) -> None:
        """Its memory is others'."""
        if self._buffer is not None:
            _give(self._buffer)
            if self._patient:
                _patient.release()


@contextlib.contextmanager
def memory(size: int) -> Iterator[memoryview]:
    """So many bytes for one chunk, within the block."""
    buffer = _take()
    try:
        yield buffer[:size]
    finally:
        _give(buffer)


def _take_in_turn() -> memoryview:
    _patient.acquire()
    try:
        return _take()
    except BaseException:
        _patient.release()
        raise


def _take() -> memoryview:
    """Page-aligned, as O_DIRECT wants it."""
    try:
        return _free.pop()
    except IndexError:
        return memoryview(mmap.mmap(-1, RUN_BYTES))


def _give(buffer: memoryview) -> None:
    if len(_free) < _BUFFERS_KEPT:
        _free.append(buffer)

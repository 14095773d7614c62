"""Hashing and encoding chunks on several threads, handing them on in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from blake3 import blake3

from imgdist.pack import BLOCK, codec
from imgdist.pack.index import zero_digest
from imgdist.pack.records import Chunk

Encoded = tuple[Chunk, int, codec.Body]
Deliver = Callable[[Chunk, int, codec.Body], None]
_QUEUED_PER_THREAD = 3
"""Chunks in work or waiting, per thread: enough to keep a thread busy while the tar parser holds the GIL, and at
256 KiB raw + encoded each little against the 64 MiB that a worker may take."""


class OrderedEncoder:
    """`submit` chunks in order; `deliver` is called for each in the same order, on any thread, one call at a time.

    Delivery does not wait for the next submit: a reader that follows sees a chunk as soon as it is encoded, also
    while the next bytes of the layer are still on their way.
    """

    def __init__(self, threads: int, level: int | None, deliver: Deliver) -> None:
        """`level` None: no encoding, bodies are the raw bytes."""
        self._level = level
        self._deliver = deliver
        self._limit = threads * _QUEUED_PER_THREAD
        # SimpleQueue, also for counting what is in work: the other primitives are Python code, and a GIL's fight.
        self._room: SimpleQueue[None] = SimpleQueue()
        self._work: SimpleQueue[tuple[int, codec.Body, bool] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._finished: dict[int, Encoded] = {}
        self._delivered = 0
        self.submitted = 0
        """Chunks so far."""
        self._error: BaseException | None = None
        self._digests = blake3()
        self._release(self._limit)
        self._most_threads = threads
        self._threads: list[threading.Thread] = []

    def submit(self, raw: codec.Body, metadata: bool) -> None:
        """Take a chunk; its buffer is the encoder's from now on. Waits for room, raises what a delivery raised."""
        self._room.get()
        if len(self._threads) < self._most_threads:  # started as chunks come: most layers of most images have one
            self._threads.append(threading.Thread(target=self._run, name=f"encode-{len(self._threads)}"))
            self._threads[-1].start()
        self._work.put((self.submitted, raw, metadata))
        self.submitted += 1
        self._raise()

    def drain(self) -> bytes:
        """Wait until every chunk is delivered. Returns BLAKE3-256 of their concatenated digests."""
        for _ in range(self._limit):
            self._room.get()
        self._release(self._limit)
        self._raise()
        return self._digests.digest()

    def close(self) -> None:
        """Stop the threads, once they have done what was submitted."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def _release(self, count: int) -> None:
        for _ in range(count):
            self._room.put(None)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            number, raw, metadata = work
            try:
                if self._error is None:
                    self._hand_on(number, encode_chunk(raw, self._level, metadata=metadata))
            except BaseException as error:
                self._error = error
            del work, raw
            self._release(1)

    def _hand_on(self, number: int, encoded: Encoded) -> None:
        """Deliver the chunk, and those behind it that were waiting for it; or leave it to the one it waits for."""
        with self._lock:
            self._finished[number] = encoded
            while (ready := self._finished.pop(self._delivered, None)) is not None:
                self._digests.update(ready[0].digest)
                self._deliver(*ready)
                self._delivered += 1


def encode_chunk(raw: codec.Body, level: int | None, *, metadata: bool = False) -> Encoded:
    """A chunk's record, encoding and body; `level` None: the raw bytes."""
    blocks = len(raw) // BLOCK
    if codec.is_zero(raw):
        return Chunk(blocks, zero_digest(len(raw)), zero=True, metadata=metadata), codec.ZERO, b""
    digest = blake3(raw).digest()
    encoding, body = (codec.RAW, raw) if level is None else codec.encode(raw, level)
    return Chunk(blocks, digest, metadata=metadata), encoding, body

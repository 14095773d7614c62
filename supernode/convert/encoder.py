"""Hashing and encoding chunks on several threads, handing them on in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

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
        self._pool = ThreadPoolExecutor(threads, "encode")
        self._limit = threads * _QUEUED_PER_THREAD
        self._room = threading.Semaphore(self._limit)
        self._lock = threading.Lock()
        self._finished: dict[int, Encoded] = {}
        self._delivered = 0
        self.submitted = 0
        """Chunks so far."""
        self._error: BaseException | None = None
        self._digests = blake3()

    def submit(self, raw: codec.Body, metadata: bool) -> None:
        """Take a chunk; its buffer is the encoder's from now on. Waits for room, raises what a delivery raised."""
        self._room.acquire()
        self._raise()
        self._pool.submit(self._work, self.submitted, raw, metadata)
        self.submitted += 1

    def drain(self) -> bytes:
        """Wait until every chunk is delivered. Returns BLAKE3-256 of their concatenated digests."""
        for _ in range(self._limit):
            self._room.acquire()
        self._room.release(self._limit)
        self._raise()
        return self._digests.digest()

    def close(self) -> None:
        """Stop the threads; chunks not yet begun are dropped."""
        self._pool.shutdown(cancel_futures=True)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self, number: int, raw: codec.Body, metadata: bool) -> None:
        try:
            encoded = self._encode(raw, metadata)
            with self._lock:
                self._finished[number] = encoded
                while self._error is None and (ready := self._finished.pop(self._delivered, None)) is not None:
                    self._digests.update(ready[0].digest)
                    self._deliver(*ready)
                    self._delivered += 1
        except BaseException as error:
            self._error = error
        finally:
            self._room.release()

    def _encode(self, raw: codec.Body, metadata: bool) -> Encoded:
        blocks = len(raw) // BLOCK
        if codec.is_zero(raw):
            return Chunk(blocks, zero_digest(len(raw)), zero=True, metadata=metadata), codec.ZERO, b""
        digest = blake3(raw).digest()
        encoding, body = (codec.RAW, raw) if self._level is None else codec.encode(raw, self._level)
        return Chunk(blocks, digest, metadata=metadata), encoding, body

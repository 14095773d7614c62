"""Answers to reads: from the image, from the agent's ring, or an errno; each parked request is answered once."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from fuse.disk import Disk
from fuse.layer import Layer
from fuse.notes import Notes
from fuse.parking import Parked, Parking
from fuse.protocol import Buffer, Request
from imgdist.errors import CorruptError

log = logging.getLogger("imgdist.view")

GATHERED_MAX = 16 << 20
"""Bytes that waiting reads keep of chunks that the disk did not take: sixteen of the largest reads (a guess)."""


class Replies(Protocol):
    """How answers reach whoever asked. One to a request that is gone (interrupted, answered before) is ignored."""

    def data(self, unique: int, *pieces: Buffer) -> None:
        """The bytes of a READ, in pieces."""

    def error(self, unique: int, number: int) -> None:
        """Fail with an errno, or acknowledge without data (0)."""

    def entry(self, unique: int, node: int, size: int) -> None:
        """LOOKUP found this file."""

    def attr(self, unique: int, node: int, size: int) -> None:
        """Attributes of a file or of the root."""

    def opened(self, unique: int, node: int) -> None:
        """OPEN and OPENDIR succeeded."""

    def listing(self, unique: int, entries: Iterable[tuple[int, bytes]], offset: int, size: int) -> None:
        """READDIR of (node, name) pairs from position `offset` on, at most `size` bytes."""

    def statfs(self, unique: int, blocks: int, files: int) -> None:
        """STATFS: 4 KiB blocks and files in all."""


class Answers:
    """Brings bytes and replies together. Thread-safe: the parking decides who answers.

    Nothing here waits for the disk, except on a disk thread. Those read before they claim: while the disk is stalled,
    the read can still be interrupted, or end at its deadline.
    """

    def __init__(self, replies: Replies, parking: Parking, notes: Notes, disk: Disk) -> None:
        self._replies, self._parking, self._notes, self._disk = replies, parking, notes, disk

    def from_image(self, layer: Layer, unique: int, buffer: memoryview, offset: int) -> bool:
        """Answer with len(buffer) bytes of the image at `offset`, which are present; False, and no answer, if they are
        not cached: then the read has to be parked."""
        try:
            if not layer.read_now(buffer, offset):
                return False
        except OSError as error:
            self._note_broken(layer, offset, error)
            self._replies.error(unique, errno.EIO)
            return True
        self._replies.data(unique, buffer)
        return True

    def parked_from_image(self, layer: Layer, parked: Parked) -> None:
        """Answer a parked read whose bytes are all present."""
        self._complete(layer, parked, _end(layer, parked.request), memoryview(b""))

    def parked_from_ring(self, layer: Layer, parked: Parked, start: int, data: memoryview) -> None:
        """Answer a parked read that overlaps `data`, verified bytes of the image at `start`, if the rest is present."""
        offset, end = parked.request.offset, _end(layer, parked.request)
        low, high = max(start, offset), min(start + len(data), end)
        if low < high and layer.has(offset, low - offset) and layer.has(high, end - high):
            self._complete(layer, parked, low, data[low - start : high - start])

    def parked_gathers(self, layer: Layer, parked: Parked, start: int, data: memoryview) -> None:
        """Keep `data`, as above, for a parked read that overlaps it; answer it once it has all that the image lacks.
        Beyond `GATHERED_MAX` in all reads nothing is kept: they wait for the disk, or their deadline."""
        offset, end = parked.request.offset, _end(layer, parked.request)
        low, high = max(start, offset), min(start + len(data), end)
        if low >= high or parked.at_disk:
            return
        gathered = sum(len(piece) for other in self._parking.all() for piece in other.pieces.values())
        if gathered + high - low > GATHERED_MAX:
            return
        parked.pieces[low] = bytes(data[low - start : high - start])
        self.parked_gathered(layer, parked)

    def parked_gathered(self, layer: Layer, parked: Parked) -> None:
        """Answer a parked read from what it has gathered and the image, if that is all it needs."""
        place, end = parked.request.offset, _end(layer, parked.request)
        for at, piece in sorted(parked.pieces.items()):
            if at > place and not layer.has(place, at - place):
                return
            place = max(place, at + len(piece))
        if not parked.at_disk and (place >= end or layer.has(place, end - place)):
            parked.at_disk = True
            self._disk.put(partial(self._complete_gathered, layer, parked))

    def parked_fails(self, parked: Parked, number: int) -> bool:
        """Fail a parked request with errno `number`; False if someone else has answered it."""
        return self.settle(parked, lambda request: self._replies.error(request.unique, number))

    def settle(self, parked: Parked, answer: Callable[[Request], None]) -> bool:
        """Claim a parked request and have `answer` answer it; False if someone else has.

        Whatever goes wrong, a claimed request is answered: nobody else would. What cannot even be failed is left to
        the next view, which finds it in the table.
        """
        if not self._parking.claim(parked):
            return False
        request = parked.request  # of now: a resent copy may have come meanwhile
        try:
            answer(request)
        except Exception as error:
            try:
                text = f"{request.size} bytes at {request.offset}: {error!r}; EIO"
                self._notes.failure("internal", f"of node {request.node}", text)
                self._replies.error(request.unique, errno.EIO)
            except Exception:
                log.exception("a read cannot be answered: this view ends, the next one answers what is left")
                os._exit(1)
        self._parking.done(parked)
        return True

    def _complete(self, layer: Layer, parked: Parked, at: int, middle: memoryview) -> None:
        """Answer with `middle`, the image's bytes at `at`, and what the image has before and after it."""
        if parked.at_disk:
            return
        try:
            pieces = _pieces(layer, parked.request, at, middle, layer.read_now)
        except OSError as error:
            self._broken(layer, parked, error)
            return
        if pieces is not None:
            self.settle(parked, lambda request: self._replies.data(request.unique, *pieces))
            return
        parked.at_disk = True
        self._disk.put(partial(self._complete_from_disk, layer, parked, at, memoryview(bytes(middle))))

    def _complete_from_disk(self, layer: Layer, parked: Parked, at: int, middle: memoryview) -> None:
        def read(buffer: memoryview, offset: int) -> bool:
            layer.read_into(buffer, offset)
            return True

        try:
            pieces = _pieces(layer, parked.request, at, middle, read)
        except (OSError, CorruptError) as error:
            self._broken(layer, parked, error)
            return
        assert pieces is not None
        self.settle(parked, lambda request: self._replies.data(request.unique, *pieces))

    def _complete_gathered(self, layer: Layer, parked: Parked) -> None:
        offset = parked.request.offset
        answer = memoryview(bytearray(_end(layer, parked.request) - offset))
        try:
            layer.read_into(answer, offset)
        except (OSError, CorruptError) as error:
            self._broken(layer, parked, error)
            return
        for at, piece in parked.pieces.items():
            answer[at - offset : at - offset + len(piece)] = piece
        self.settle(parked, lambda request: self._replies.data(request.unique, answer))

    def _broken(self, layer: Layer, parked: Parked, error: Exception) -> None:
        if self.parked_fails(parked, errno.EIO):
            self._note_broken(layer, parked.request.offset, error)

    def _note_broken(self, layer: Layer, offset: int, error: Exception) -> None:
        self._notes.failure("image", layer.label, f"read at {offset}: {error}; EIO")


def _end(layer: Layer, request: Request) -> int:
    return max(request.offset, min(request.offset + request.size, layer.size_bytes))


def _pieces(
    layer: Layer, request: Request, at: int, middle: memoryview, read: Callable[[memoryview, int], bool]
) -> tuple[memoryview, memoryview, memoryview] | None:
    """The bytes of `request`: before `at`, `middle`, after it; None if `read` cannot have them."""
    after = at + len(middle)
    head, tail = memoryview(bytearray(at - request.offset)), memoryview(bytearray(_end(layer, request) - after))
    if (head and not read(head, request.offset)) or (tail and not read(tail, after)):
        return None
    return head, middle, tail

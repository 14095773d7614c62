"""Answers to reads: from the image, from the agent's ring, or an errno; each parked request is answered once."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Protocol

from fuse.layer import Layer
from fuse.notes import Notes
from fuse.parking import Parked, Parking
from fuse.protocol import Buffer
from imgdist.errors import CorruptError


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
    """Brings bytes and replies together. Thread-safe: the parking decides who answers."""

    def __init__(self, replies: Replies, parking: Parking, notes: Notes) -> None:
        self._replies, self._parking, self._notes = replies, parking, notes

    def from_image(self, layer: Layer, unique: int, buffer: memoryview, offset: int) -> None:
        """Answer with len(buffer) bytes of the image at `offset`, which are present."""
        try:
            layer.read_into(buffer, offset)
        except (OSError, CorruptError) as error:
            self._broken_image(layer, unique, offset, error)
            return
        self._replies.data(unique, buffer)

    def parked_from_image(self, layer: Layer, parked: Parked) -> None:
        """Answer a parked read whose bytes are all present."""
        if self._parking.claim(parked):
            request = parked.request
            size = max(0, min(request.size, layer.size_bytes - request.offset))
            self.from_image(layer, request.unique, memoryview(bytearray(size)), request.offset)
            self._parking.done(parked)

    def parked_from_ring(self, layer: Layer, parked: Parked, start: int, data: memoryview) -> None:
        """Answer a parked read that overlaps `data`, verified bytes of the image at `start`, if the rest is present."""
        request = parked.request
        offset, stop = request.offset, min(request.offset + request.size, layer.size_bytes)
        low, high = max(start, offset), min(start + len(data), stop)
        if low >= high or not layer.has(offset, low - offset) or not layer.has(high, stop - high):
            return
        if not self._parking.claim(parked):
            return
        unique = parked.request.unique  # of now: a resent copy may have come meanwhile
        head, tail = memoryview(bytearray(low - offset)), memoryview(bytearray(stop - high))
        try:
            layer.read_into(head, offset)
            layer.read_into(tail, high)
        except (OSError, CorruptError) as error:
            self._broken_image(layer, unique, offset, error)
        else:
            self._replies.data(unique, head, data[low - start : high - start], tail)
        self._parking.done(parked)

    def parked_fails(self, parked: Parked, number: int) -> bool:
        """Fail a parked request with errno `number`; False if someone else has answered it."""
        if not self._parking.claim(parked):
            return False
        self._replies.error(parked.request.unique, number)
        self._parking.done(parked)
        return True

    def _broken_image(self, layer: Layer, unique: int, offset: int, error: Exception) -> None:
        self._notes.failure("image", f"layer {layer.label}: read at {offset}: {error}; EIO")
        self._replies.error(unique, errno.EIO)

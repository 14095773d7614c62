"""An answer on its way to a reader that may have no room: it goes in pieces and can be left and taken up again."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

from imgdist.wire.arrivals import Arrivals
from imgdist.wire.messages import FRAME_SIZE, Frame, encode_frame
from imgdist.wire.requests import AnyRequest, BodyRequest
from imgdist.wire.responses import encode_head

REQUEST_S = 10.0
"""How long an answer may take beyond what its bytes need at the lowest rate; as long as a client waits in silence."""
RATE_LEAST = 8 * 1024
"""Bytes per second below which a reader is given up (a guess: a node below it starts nothing)."""
_LAST, _MORE = int(socket.MSG_NOSIGNAL), int(socket.MSG_NOSIGNAL | socket.MSG_MORE)


class Row(NamedTuple):
    """Where a chunk's body of `length` bytes is: in the file of this descriptor, at this offset."""

    fd: int
    offset: int
    length: int
    encoding: int


class ChunkReader(Protocol):
    """The encoded chunks of one pack. What rows point to stays open while the reader is referenced, whatever happens to
    its directory."""

    @property
    def identity(self) -> Hashable:
        """The same for all readers of one pack, under whatever name, while one of them is open."""

    @property
    def count(self) -> int:
        """Chunks that may be there; more while the pack is being written."""

    @property
    def arrivals(self) -> Arrivals | None:
        """What came lately; None for whoever has everything."""

    def row(self, number: int) -> Row:
        """A chunk's place. Raises NotFoundError where it is not there (yet)."""

    def wait(self, numbers: Sequence[int], seconds: float) -> bool:
        """Return once these are there, are not on their way, or time is over; whether that took any time."""


class Answer:
    """What a request for `numbers` still gets. `deadline` is on the clock of `now`. Raises NotFoundError if a chunk is
    not there."""

    def __init__(self, request: BodyRequest, numbers: Sequence[int], reader: ChunkReader, now: float) -> None:
        self.request = request
        self.numbers = numbers
        self._reader = reader  # keeps open what rows point to
        self._rows = deque([(number, reader.row(number)) for number in numbers])
        self._head = b""
        self._fd = self._offset = self._left = 0
        self.size_bytes = sum(row.length for _, row in self._rows)
        """Of all bodies."""
        self.deadline = now + REQUEST_S + self.size_bytes / RATE_LEAST

    def open(self, queue_bytes: int, have: Sequence[int]) -> None:
        """Write the head: what waits to be sent, what came lately."""
        self._head = encode_head(
            200,
            self.size_bytes + FRAME_SIZE * len(self._rows),
            keep_alive=self.request.keep_alive,
            queue_bytes=queue_bytes,
            have=have,
            chunks=self.numbers if isinstance(self.request, AnyRequest) else (),
        )

    @property
    def is_sent(self) -> bool:
        """Whether the kernel has all of it."""
        return not (self._left or self._rows or self._head)

    @property
    def is_between_chunks(self) -> bool:
        """Whether a chunk begins with the next `send`."""
        return not self._left

    @property
    def chunk_left(self) -> int:
        """Bytes of the chunk that the next `send` goes on with, or begins."""
        return self._left or (self._rows[0][1].length if self._rows else 0)

    def send(self, sock: socket.socket, most: int | None = None) -> int:
        """Hand over the rest of a chunk, or `most` bytes of it; how many of its body's bytes went.

        Raises BlockingIOError where the reader made no room within SO_SNDTIMEO (what went is taken note of), else
        OSError: the reader left, or the pack's file is short.
        """
        if not self._left and self._rows:
            number, (self._fd, self._offset, self._left, encoding) = self._rows.popleft()
            raw_size = self._left if encoding == 0 else 0
            self._head += encode_frame(Frame(number, encoding, self._left, raw_size))
        flags = _MORE if self._left else _LAST
        while self._head:
            self._head = self._head[sock.send(self._head, flags) :]
        if not self._left:
            return 0
        count = self._left if most is None else min(self._left, most)
        sent = os.sendfile(sock.fileno(), self._fd, self._offset, count)
        if sent == 0:
            end = self._offset + self._left
            raise OSError(errno.EIO, f"the pack's file ends {self._left} bytes short of offset {end}")
        self._offset += sent
        self._left -= sent
        return sent

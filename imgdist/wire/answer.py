"""An answer on its way to a reader that may have no room: it goes in pieces and can be left and taken up again."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from typing import NamedTuple, Protocol

from imgdist.wire.arrivals import Arrivals
from imgdist.wire.messages import FRAME_SIZE, Frame, encode_frame
from imgdist.wire.requests import ChunkRequest
from imgdist.wire.responses import encode_head

REQUEST_S = 10.0
"""How long an answer may take beyond what its bytes need at the lowest rate; as long as a client waits in silence."""
RATE_LEAST = 64 * 1024
"""Bytes per second below which a reader is given up (a guess: a node below it starts nothing)."""


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
    def count(self) -> int:
        """Chunks that may be there; more while the pack is being written."""

    @property
    def arrivals(self) -> Arrivals | None:
        """What came lately; None for whoever has everything."""

    def row(self, number: int) -> Row:
        """A chunk's place. Raises NotFoundError where it is not there (yet)."""


class Answer:
    """What a request still gets. `deadline` is on the clock of `now`. Raises NotFoundError if a chunk is not there."""

    def __init__(self, request: ChunkRequest, reader: ChunkReader, now: float) -> None:
        self.request = request
        self._reader = reader
        self._rows = deque((number, reader.row(number)) for number in request.numbers)
        size = sum(FRAME_SIZE + row.length for _, row in self._rows)
        self._head = encode_head(200, size, keep_alive=request.keep_alive)
        self._fd = self._offset = self._left = 0
        self.deadline = now + REQUEST_S + size / RATE_LEAST

    @property
    def is_sent(self) -> bool:
        """Whether the kernel has all of it."""
        return not (self._left or self._rows or self._head)

    @property
    def is_between_chunks(self) -> bool:
        """Whether a chunk begins with the next `send`."""
        return not self._left

    def send(self, sock: socket.socket, most: int | None = None) -> int:
        """Hand over the rest of a chunk, or `most` bytes of it; how many of its body's bytes went.

        Raises BlockingIOError where the reader made no room within SO_SNDTIMEO (what went is taken note of), else
        OSError: the reader left, or the pack's file is short.
        """
        if not self._left and self._rows:
            number, (self._fd, self._offset, self._left, encoding) = self._rows.popleft()
            raw_size = self._left if encoding == 0 else 0
            self._head += encode_frame(Frame(number, encoding, self._left, raw_size))
        more = socket.MSG_MORE if self._left else 0
        while self._head:
            self._head = self._head[sock.send(self._head, more | socket.MSG_NOSIGNAL) :]
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

"""A client's connection to a chunk server: one socket, and a buffer while an answer is read; used by one thread at a
time."""

from __future__ import annotations

import contextlib
import mmap
import select
import socket
import struct
import time
from collections.abc import Callable

from imgdist.errors import TemporaryError, UnreachableError
from imgdist.wire.address import Address
from imgdist.wire.messages import BODY_MAX, FRAME_SIZE, HEAD_MAX
from imgdist.wire.responses import ResponseHead, decode_response_head

_GATHER_LEAST = 16 * 1024
"""Bytes from which on the kernel is told how many are waited for: on a link each packet would wake the thread
otherwise."""
_RATE_LEAST = 8 * 1024
"""Bytes per second below which a source is given up (a guess; as the server's for a reader). A crowd's share of a slow
link must be more: what is given up was sent for nothing, and is sent again."""
_SPARE_BUFFERS = 4
"""Kept for the next answers; a start has two misses outstanding, and a node is to do with 64 MiB."""
_spare: list[memoryview] = []
"""The one given back last goes out first: its pages are there, and in the cache."""


class Connection:
    """A blocking connection. Raises TemporaryError where the network fails, ProtocolError for a broken head."""

    def __init__(self, address: Address, connect_timeout_s: float, read_timeout_s: float) -> None:
        self._socket = address.connect(connect_timeout_s)
        # Blocking with SO_RCVTIMEO, not settimeout: recv can then wait for all bytes (MSG_WAITALL) without the GIL.
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(read_timeout_s))
        self._address = address
        self.read_timeout_s = read_timeout_s
        """Longest silence within an answer; may be set between requests."""
        self._patience_s = 0.0
        self._arrival = select.poll()
        self._arrival.register(self._socket, select.POLLIN)
        self._gathers = self._socket.family != socket.AF_UNIX
        self._awaited = 1
        self.is_aborted = False
        """Whether somebody else ended its use."""
        self.heard_at = time.monotonic()
        """When the last bytes came, or the last request was sent."""
        self._buffer = memoryview(b"")
        self._start = 0
        self._end = 0
        self.answered_after_s = 0.0
        """From sending the last request to the first bytes of its answer."""

    def ask(self, request: bytes, on_pause: Callable[[], None] | None = None) -> ResponseHead | None:
        """Send a request and read the answer's head; None if the server had closed the connection before. `on_pause` is
        called before the thread waits."""
        if not self._buffer:
            self._buffer = _take_buffer()
        self._start = self._end = 0
        asked = self.heard_at = time.monotonic()
        deadline = asked + 2 * self.read_timeout_s
        try:
            self._socket.sendall(request)
        except (ConnectionResetError, BrokenPipeError):
            return None
        except OSError as error:
            raise self._cut(error) from None
        if on_pause is not None:
            on_pause()
        try:
            while (found := decode_response_head(self._buffer[: self._end])) is None:
                count = self._receive(len(self._buffer), 0, deadline)
                if count == 0:
                    if self._end == 0:
                        return None
                    raise UnreachableError(f"{self._address}: closed the connection within a response's head")
                if self._end == 0:
                    self.answered_after_s = time.monotonic() - asked
                self._end += count
        except (ConnectionResetError, BrokenPipeError) as error:
            if self._end == 0:
                return None
            raise self._cut(error) from None
        except OSError as error:
            raise self._cut(error) from None
        head, self._start = found
        return head

    def read(self, size: int, on_pause: Callable[[], None] | None = None) -> memoryview:
        """The next `size` bytes (at most BODY_MAX), valid until the next call. However they trickle in, they take no
        longer than `read_timeout_s` and a second for each 8 KiB. `on_pause` is called before the thread waits."""
        if self._end - self._start < size:
            self._read_up_to(size, on_pause)
        start = self._start
        self._start += size
        return self._buffer[start : self._start]

    def _read_up_to(self, size: int, on_pause: Callable[[], None] | None) -> None:
        """Have so many bytes in the buffer."""
        if self._start == self._end or self._start + size > len(self._buffer):
            rest = self._end - self._start
            self._buffer[:rest] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, rest
        end = self._start + size
        # With what came behind a frame's header: each call may have to wait for Python's lock.
        most = len(self._buffer) if size == FRAME_SIZE else end
        deadline = time.monotonic() + self.read_timeout_s + size / _RATE_LEAST
        while self._end < end:
            count = self._take_what_is_here(most) if on_pause is not None else None
            if count is None:
                if on_pause is not None:
                    on_pause()
                count = self._wait_for(end, most, deadline)
            if count == 0:
                raise UnreachableError(f"{self._address}: closed the connection {end - self._end} bytes short")
            self._end += count

    def _take_what_is_here(self, most: int) -> int | None:
        """Receive into the buffer, up to `most`, without waiting; None: nothing is here."""
        try:
            return self._take_in(most, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._cut(error) from None

    def _wait_for(self, end: int, most: int, deadline: float) -> int:
        """Receive what is missing up to `end`, or up to `most` what came behind it."""
        try:
            if self._gathers and end - self._end >= _GATHER_LEAST:
                return self._gather(end, deadline)
            return self._receive(most, 0 if most > end else socket.MSG_WAITALL, deadline)
        except OSError as error:
            raise self._cut(error) from None

    def _receive(self, end: int, flags: int, deadline: float) -> int:
        """Receive into the buffer up to `end`. Raises TimeoutError, and BlockingIOError after a silence."""
        self._be_patient(deadline)
        self._await(1)
        return self._take_in(end, flags)

    def _gather(self, end: int, deadline: float) -> int:
        """The same, once all of it is there, or as much as the kernel takes in at a time."""
        patience_s = self._be_patient(deadline)
        self._await(end - self._end)
        self._arrival.poll(patience_s * 1000)
        return self._take_in(end, socket.MSG_DONTWAIT)

    def _take_in(self, end: int, flags: int) -> int:
        count = self._socket.recv_into(self._buffer[self._end : end], 0, flags)
        self.heard_at = time.monotonic()
        return count

    def _be_patient(self, deadline: float) -> float:
        """Have the kernel wait no longer than a silence may last; so many seconds. Raises TimeoutError."""
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        patience_s = min(left_s, self.read_timeout_s)
        if patience_s != self._patience_s:
            self._patience_s = patience_s
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(patience_s))
        return patience_s

    def _await(self, size: int) -> None:
        """Have the kernel wake this thread for so many bytes (SO_RCVLOWAT, socket(7))."""
        if size != self._awaited:
            self._awaited = size
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    @property
    def is_drained(self) -> bool:
        """True when nothing beyond what was read has arrived: the next request starts clean."""
        return self._start == self._end

    def abort(self) -> None:
        """Make the thread that uses the connection fail at once; callable from any thread."""
        self.is_aborted = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def rest(self) -> None:
        """The answer was read: until the next `ask` others may have the memory."""
        buffer, self._buffer = self._buffer, memoryview(b"")
        if buffer and len(_spare) < _SPARE_BUFFERS:
            _spare.append(buffer)

    def close(self) -> None:
        """Give the descriptor back."""
        self._socket.close()
        self.rest()

    def _cut(self, error: OSError) -> TemporaryError:
        if isinstance(error, BlockingIOError) and self._patience_s == self.read_timeout_s:
            return TemporaryError(f"{self._address}: nothing came for {self.read_timeout_s:g} s")
        if isinstance(error, (BlockingIOError, TimeoutError)):
            return TemporaryError(f"{self._address}: too slow: below {_RATE_LEAST // 1024} KiB/s")
        return UnreachableError(f"{self._address}: the connection was cut: {error.strerror or error}")


def _take_buffer() -> memoryview:
    try:
        return _spare.pop()
    except IndexError:
        # Not a bytearray: pages that no body has reached yet do not exist, and most bodies are far below the largest.
        return memoryview(mmap.mmap(-1, HEAD_MAX + FRAME_SIZE + BODY_MAX))


def _timeval(seconds: float) -> bytes:
    """A struct timeval; never 0, which means for ever."""
    microseconds = max(1, int(seconds * 1e6))
    return struct.pack("@ll", *divmod(microseconds, 1_000_000))

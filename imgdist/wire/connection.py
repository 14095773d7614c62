"""A client's connection to a chunk server: one socket, one preallocated buffer, used by one thread at a time."""

from __future__ import annotations

import contextlib
import mmap
import socket
import struct
import time

from imgdist.errors import TemporaryError
from imgdist.wire.address import Address
from imgdist.wire.messages import BODY_MAX, FRAME_SIZE, HEAD_MAX, ResponseHead, decode_response_head

_HEAD_READ = 4096


class Connection:
    """A blocking connection. Raises TemporaryError where the network fails, ProtocolError for a broken head."""

    def __init__(self, address: Address, connect_timeout_s: float, read_timeout_s: float) -> None:
        self._socket = address.connect(connect_timeout_s)
        # Blocking with SO_RCVTIMEO, not settimeout: recv can then wait for all bytes (MSG_WAITALL) without the GIL.
        self._socket.settimeout(None)
        seconds = int(read_timeout_s)
        limit = struct.pack("@ll", seconds, int((read_timeout_s - seconds) * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._address = address
        self._read_timeout_s = read_timeout_s
        # Not a bytearray: pages that no body has reached yet do not exist, and most bodies are far below the largest.
        self._buffer = memoryview(mmap.mmap(-1, HEAD_MAX + FRAME_SIZE + BODY_MAX))
        self._start = 0
        self._end = 0
        self.answered_after_s = 0.0
        """From sending the last request to the first bytes of its answer."""

    def ask(self, request: bytes) -> ResponseHead | None:
        """Send a request and read the answer's head; None if the server had closed the connection before."""
        self._start = self._end = 0
        asked = time.monotonic()
        try:
            self._socket.sendall(request)
            while (found := decode_response_head(self._buffer[: self._end])) is None:
                count = self._socket.recv_into(self._buffer[self._end : self._end + _HEAD_READ])
                if count == 0:
                    if self._end == 0:
                        return None
                    raise TemporaryError(f"{self._address}: closed the connection within a response's head")
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

    def read(self, size: int) -> memoryview:
        """The next `size` bytes (at most BODY_MAX), valid until the next call."""
        if self._start + size > len(self._buffer):
            rest = self._end - self._start
            self._buffer[:rest] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, rest
        end = self._start + size
        try:
            while self._end < end:
                count = self._socket.recv_into(self._buffer[self._end : end], 0, socket.MSG_WAITALL)
                if count == 0:
                    raise TemporaryError(f"{self._address}: closed the connection {end - self._end} bytes short")
                self._end += count
        except OSError as error:
            raise self._cut(error) from None
        data = self._buffer[self._start : end]
        self._start = end
        return data

    @property
    def is_drained(self) -> bool:
        """True when nothing beyond what was read has arrived: the next request starts clean."""
        return self._start == self._end

    def abort(self) -> None:
        """Make the thread that uses the connection fail at once; callable from any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back."""
        self._socket.close()

    def _cut(self, error: OSError) -> TemporaryError:
        if isinstance(error, (BlockingIOError, TimeoutError)):
            return TemporaryError(f"{self._address}: nothing came for {self._read_timeout_s:g} s")
        return TemporaryError(f"{self._address}: the connection was cut: {error.strerror or error}")

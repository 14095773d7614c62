"""A valve between a client and a server: of an answer so many bytes pass, the rest when the test says so."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

_PIECE = 1 << 16


class Valve:
    """Listens on loopback, `address` is where, and forwards connections to `target` ("host:port"). Open at first."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._changed = threading.Condition()
        self._limit = float("inf")
        self._closed = False
        self._ends: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for end in (self._listener, *self._ends):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()

    def let(self, size_bytes: float) -> None:
        """From now on so many of the server's bytes pass on each connection, those before included."""
        with self._changed:
            self._limit = size_bytes
            self._changed.notify_all()

    def open(self) -> None:
        """Everything passes."""
        self.let(float("inf"))

    def _start(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                with self._changed:
                    self._ends |= {near, far}
                    if self._closed:
                        return
                self._start(self._forward, near, far, False)
                self._start(self._forward, far, near, True)

    def _forward(self, source: socket.socket, sink: socket.socket, is_counted: bool) -> None:
        passed = 0
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                while piece:
                    room = self._room(passed) if is_counted else len(piece)
                    passed += len(piece[:room])
                    sink.sendall(piece[:room])
                    piece = piece[room:]
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _room(self, passed: int) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._limit > passed or self._closed)
            if self._closed:
                raise OSError("the valve is gone")
            return int(min(_PIECE, self._limit - passed))

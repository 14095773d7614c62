"""A connection that misbehaves: forwards TCP, and delays, cuts, shortens, stops or falsifies what comes back."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

_PIECE = 1 << 16


class Link:
    """Listens on loopback (`address`, "host:port") and forwards to `target`, which may be set later; a context manager.

    Faults concern the server's bytes, on connections that stand or are made while they last. All are off at first.
    """

    def __init__(self, target: str = "") -> None:
        self.target = target
        self.delay_s = 0.0
        """Each piece comes so much later."""
        self.flip_next = 0
        """So many pieces more have one bit flipped."""
        self.silent = False
        """Nothing passes, and nothing ends."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._closed = False
        self._acceptor = threading.Thread(target=self._accept, name="link", daemon=True)

    def __enter__(self) -> Link:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed, self.silent = True, False
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._acceptor.join()

    def cut(self) -> None:
        """Reset every connection, wherever in an answer it is."""
        with self._lock:
            for pair in self._pairs:
                for end in pair:
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            far = socket.create_connection((host, int(port)), timeout=5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        pair = near, far
        with self._lock:
            self._pairs.add(pair)
        forth = threading.Thread(target=self._forward, args=(near, far, False), daemon=True)
        forth.start()
        self._forward(far, near, True)
        forth.join()
        with self._lock:
            self._pairs.discard(pair)
        for end in pair:
            end.close()

    def _forward(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := bytearray(source.recv(_PIECE)):
                if is_answer:
                    self._harm(piece)
                sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _harm(self, piece: bytearray) -> None:
        while self.silent and not self._closed:
            time.sleep(0.01)
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.flip_next > 0:
            self.flip_next -= 1
            piece[len(piece) // 2] ^= 1

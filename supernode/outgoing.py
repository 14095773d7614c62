"""Answers that are on their way to nodes: how much of them has not arrived yet. Belongs to the event loop."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from imgdist.wire.uplink import unacknowledged

ANSWER_BYTES = 256 * 1024
"""An answer counts for no more: one reader that has stalled says nothing of the others (a guess)."""


class Outgoing:
    """`left(socket)`: bytes that the other side has not acknowledged."""

    def __init__(self, left: Callable[[socket.socket], int] = unacknowledged) -> None:
        self._left = left
        self._made = 0
        self._written: set[socket.socket] = set()

    @property
    def size_bytes(self) -> int:
        """Of answers that are being made and written, and of those that the kernel has."""
        sizes = {sock: self._left(sock) for sock in self._written}
        self._written = {sock for sock, size in sizes.items() if size}
        return self._made * ANSWER_BYTES + sum(min(size, ANSWER_BYTES) for size in sizes.values())

    @contextmanager
    def answering(self, request: web.BaseRequest) -> Iterator[None]:
        """An answer is made and written in the block."""
        self._made += 1
        try:
            yield
        finally:
            self._made -= 1
            if (transport := request.transport) is not None:  # else whoever asked has left
                self._written.add(transport.get_extra_info("socket"))

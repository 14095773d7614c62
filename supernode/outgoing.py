"""Answers that are on their way to nodes: how much of them has not arrived yet. Belongs to the event loop."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from imgdist.wire.uplink import unacknowledged


class Outgoing:
    """`left(socket)`: bytes that the other side has not acknowledged."""

    def __init__(self, left: Callable[[socket.socket], int] = unacknowledged) -> None:
        self._left = left
        self._written: set[socket.socket] = set()
        self._writing_bytes = 0

    @property
    def size_bytes(self) -> int:
        """What is being written, and what the kernel has of what was."""
        sizes = {sock: self._left(sock) for sock in self._written}
        self._written = {sock for sock, size in sizes.items() if size}
        return self._writing_bytes + sum(sizes.values())

    @contextmanager
    def writing(self, request: web.BaseRequest, size_bytes: int) -> Iterator[None]:
        """An answer of so many bytes is written in the block."""
        self._writing_bytes += size_bytes
        try:
            yield
        finally:
            self._writing_bytes -= size_bytes
            if (transport := request.transport) is not None:  # else whoever asked has left
                self._written.add(transport.get_extra_info("socket"))

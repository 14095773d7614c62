"""Loopback ports for daemons that are started here."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

_LEAST = 10_000


def free_port() -> int:
    """A port that nobody has, and whose next one nobody has (a supernode serves chunks there unless told otherwise).

    Below the range that the kernel takes outgoing connections' ports from: one of those would be gone again before the
    daemon has started.
    """
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(_LEAST, ephemeral - 1)
        if _are_free(port, port + 1):
            return port


def _are_free(*ports: int) -> bool:
    with ExitStack() as stack:
        for port in ports:
            probe = stack.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True

"""RUN/holder.sock: where a command finds the holder, learns how it was started, and asks it for an upgrade.

SOCK_SEQPACKET, one JSON document a message. {"ask": "about"} is answered by what `about()` gives. {"upgrade": {...}}
(agent/upgrading.py) is answered by {"done": text} or {"failed": text} when it is over. The standard library alone.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

from agent.nursery import Nursery

_MESSAGE_MAX = 1 << 18


class Control:
    """Answers on the listening socket `fd`. `upgrade(client, wanted)` takes the client's socket over."""

    def __init__(
        self,
        nursery: Nursery,
        fd: int,
        about: Callable[[], dict[str, Any]],
        upgrade: Callable[[socket.socket, dict[str, Any]], None],
    ) -> None:
        self._nursery, self._about, self._upgrade = nursery, about, upgrade
        self._listener = socket.socket(fileno=fd)
        self._listener.setblocking(False)
        nursery.watch(fd, self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it did not wait
        client.setblocking(False)
        self._nursery.watch(client.fileno(), lambda: self._hear(client))

    def _hear(self, client: socket.socket) -> None:
        try:
            message = json.loads(client.recv(_MESSAGE_MAX))
            wanted = message.get("upgrade")
        except (OSError, ValueError, AttributeError):  # it hung up, or is none of ours
            self._nursery.unwatch(client.fileno())
            client.close()
            return
        if wanted is None:
            answer(client, self._about())
            return
        self._nursery.unwatch(client.fileno())
        self._upgrade(client, wanted)


def answer(client: socket.socket, message: dict[str, Any]) -> None:
    """Send one message to whoever asked, if it is still there."""
    try:
        client.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)
    except OSError:
        return

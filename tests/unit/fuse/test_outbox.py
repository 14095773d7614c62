"""Messages to an agent that does not read, or that the kernel has no memory for."""

from __future__ import annotations

import errno
import select
from collections.abc import Iterator
from typing import Any

import pytest

from fuse.outbox import Outbox


class Connection:
    """A socket whose next sends end with these errno numbers."""

    def __init__(self) -> None:
        self.errors: list[int] = []
        self.sent: list[bytes] = []

    def send(self, message: bytes, flags: int) -> None:
        if self.errors:
            raise OSError(self.errors.pop(0), "cannot send")
        self.sent.append(message)


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    outbox = Outbox()
    yield outbox
    outbox.close()


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM], ids=errno.errorcode.get)
def test_message_that_could_not_be_sent_is_sent_again_in_its_turn(outbox: Outbox, number: int) -> None:
    connection: Any = Connection()
    outbox.connect(connection)
    connection.errors = [number, number]
    outbox.put(b"one")
    outbox.put(b"two")
    assert not connection.sent and outbox.events & select.POLLOUT
    outbox.flush()
    assert not connection.sent
    outbox.flush()
    assert connection.sent == [b"one", b"two"] and not outbox.events & select.POLLOUT


def test_dead_agent_is_told_nothing_more(outbox: Outbox) -> None:
    connection: Any = Connection()
    outbox.connect(connection)
    connection.errors = [errno.EPIPE]
    outbox.put(b"one")
    assert not connection.sent and not outbox.events & select.POLLOUT

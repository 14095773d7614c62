"""Servers that go away and come back: lost SYNs, a sign of life, requests that hang on dead connections."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from imgdist.errors import TemporaryError, UnreachableError
from imgdist.wire.address import Address
from imgdist.wire.client import ChunkClient
from imgdist.wire.dialling import connect
from imgdist.wire.messages import Priority
from imgdist.wire.requests import ChunkRequest

NOT_HERE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        yield listener


def test_a_lost_syn_is_sent_again_soon(listener: socket.socket) -> None:
    """A full backlog drops SYNs as a broken link does; the kernel alone would try again after 1, 3 and 7 s."""
    host, port = listener.getsockname()
    first = connect(host, port, 1.0)
    made: list[tuple[float, socket.socket]] = []
    thread = threading.Thread(target=lambda: made.append((time.monotonic(), connect(host, port, 10.0))))
    thread.start()
    time.sleep(1.2)  # the kernel's second SYN, after 1 s, is lost as well; its third would come after 3 s
    assert not made
    room = time.monotonic()
    accepted = [listener.accept()[0]]
    thread.join(10)
    assert time.monotonic() - room < 1.0
    for one in (first, made[0][1], *accepted):
        one.close()


def test_refusals_and_timeouts_are_told(listener: socket.socket) -> None:
    host, port = listener.getsockname()
    first = connect(host, port, 1.0)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        connect(host, port, 0.6)
    assert 0.5 < time.monotonic() - started < 2.0
    first.close()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        connect(host, port, 1.0)


def test_a_probe_takes_any_answer_for_a_sign_of_life(listener: socket.socket) -> None:
    client = ChunkClient(Address(*listener.getsockname()))
    answering = threading.Thread(target=lambda: _answer(listener.accept()[0], NOT_HERE))
    answering.start()
    client.probe(5.0)
    answering.join(5)
    started = time.monotonic()
    with pytest.raises(TemporaryError):
        client.probe(0.3)
    assert time.monotonic() - started < 2.0
    listener.close()
    with pytest.raises(UnreachableError):
        client.probe(0.3)


def test_renewed_requests_are_asked_again_on_fresh_connections(listener: socket.socket) -> None:
    client = ChunkClient(Address(*listener.getsockname()), read_timeout_s=30.0)
    errors: list[Exception] = []

    def fetch() -> None:
        try:
            client.fetch(ChunkRequest("00" * 32, (1,), Priority.DEMAND), lambda *_: None)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    hanging, _ = listener.accept()
    hanging.recv(4096)
    client.renew(60.0)  # it has not been silent for so long
    client.renew(0.0)
    fresh, _ = listener.accept()
    _answer(fresh, NOT_HERE)
    thread.join(10)
    assert "NotFoundError" in repr(errors)
    hanging.close()
    client.close()


def _answer(connection: socket.socket, answer: bytes) -> None:
    with connection:
        connection.recv(4096)
        connection.sendall(answer)

"""A link is occupied until others have what was sent."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from imgdist.wire.uplink import KEPT, STALLED_S, Uplink

A, B = "10.0.0.1:7651", "10.0.0.2:7651"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        with ours, theirs:
            yield ours, theirs


def stuff(sock: socket.socket) -> int:
    """Send more than the reader's kernel takes; how much."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(bytes(1 << 20))
    return sent


def test_it_is_occupied_for_others_until_all_was_acknowledged(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    uplink = Uplink()
    assert not uplink.is_occupied(A)
    left = stuff(ours)
    uplink.sent(ours, A)
    assert uplink.is_occupied(B)
    assert not uplink.is_occupied(A), "its own is no reason to send it away"
    theirs.settimeout(10)
    while left:
        left -= len(theirs.recv(1 << 20))
    theirs.sendall(b"seen")
    ours.setblocking(True)
    assert ours.recv(4) == b"seen", "which acknowledges everything"
    assert not uplink.is_occupied(B)


def test_a_reader_that_stalls_occupies_it_for_a_moment(pair: tuple[socket.socket, socket.socket]) -> None:
    now = 100.0
    uplink = Uplink(lambda: now)
    stuff(pair[0])
    uplink.sent(pair[0], None)
    assert uplink.is_busy and uplink.is_occupied(A)
    now += STALLED_S
    assert not uplink.is_busy and not uplink.is_occupied(A)


def test_what_is_closed_occupies_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    uplink = Uplink()
    stuff(ours)
    uplink.sent(ours, A)
    ours.close()
    assert not uplink.is_occupied(B)


def test_the_latest_are_kept(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    uplink = Uplink()
    stuff(ours)
    uplink.sent(ours, A)
    with contextlib.ExitStack() as stack:
        for _ in range(KEPT):
            uplink.sent(stack.enter_context(socket.socket()), A)
        assert not uplink.is_occupied(B)

"""How long a node waits for a silent peer: by what answers take, and really so, on new connections and on kept ones."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from agent.swarm.patience import FIRST_S, PATIENCE_S, Patience
from agent.swarm.peers import PeerChunks
from imgdist.errors import NotFoundError, TemporaryError
from imgdist.wire.messages import Priority
from imgdist.wire.requests import ChunkRequest
from imgdist.wire.responses import encode_head

SHORT_S = 0.05


def test_patience_is_some_times_what_answers_take_within_bounds() -> None:
    patience = Patience()
    assert patience.seconds == FIRST_S
    for _ in range(3):
        patience.answered(0.001)
    assert patience.seconds == FIRST_S, "three answers say nothing"
    patience.answered(0.001)
    assert patience.seconds == PATIENCE_S[0]
    for _ in range(100):
        patience.answered(0.3)
    assert patience.seconds == pytest.approx(2.4)
    for _ in range(100):
        patience.answered(9.0)
    assert patience.seconds == PATIENCE_S[1]


def test_one_peer_in_four_that_is_slow_on_purpose_changes_nothing() -> None:
    patience = Patience()
    for number in range(200):
        patience.answered(4.9 if number % 4 == 0 else 0.01)
    assert patience.seconds == PATIENCE_S[0]


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[PeerChunks]:
    """A peer whose connections are handled by `answer`, and which has little time."""
    patience = Patience()
    patience.seconds = SHORT_S
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        peer = PeerChunks(f"127.0.0.1:{listener.getsockname()[1]}", patience)
        try:
            yield peer
        finally:
            peer.close()
            thread.join(10)
            assert not thread.is_alive()


def ask(peer: PeerChunks, wait_s: float = 0.0) -> float:
    """Seconds until it was given up."""
    started = time.monotonic()
    with pytest.raises(TemporaryError):
        peer.fetch(ChunkRequest("00" * 32, (1,), Priority.FILL, wait_s=wait_s), lambda number, encoding, body: None)
    return time.monotonic() - started


def test_a_peer_that_may_wait_gets_the_time_for_it() -> None:
    def answer(connection: socket.socket) -> None:
        while connection.recv(4096):
            pass

    with server(answer) as peer:
        assert ask(peer, wait_s=2 * SHORT_S) >= 2.9 * SHORT_S
        assert peer._client.read_timeout_s == SHORT_S, "others that are asked meanwhile have no more"


def test_a_silent_peer_is_given_up_on_a_kept_connection_too() -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(encode_head(404, 0))
        while connection.recv(4096):
            pass

    with server(answer) as peer:
        peer._patience.seconds = 30.0
        with pytest.raises(NotFoundError):
            peer.fetch(ChunkRequest("00" * 32, (1,), Priority.FILL), lambda number, encoding, body: None)
        peer._patience.seconds = SHORT_S
        assert ask(peer) < 3.0


def test_a_peer_that_sends_a_byte_now_and_then_is_given_up() -> None:
    stop = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        try:
            for byte in encode_head(200, 1000):
                connection.sendall(bytes([byte]))
                stop.wait(SHORT_S / 2)
        except OSError:
            return

    with server(answer) as peer:
        took_s = ask(peer)
        stop.set()
    assert took_s < 1.0, "a head of some 50 bytes would have taken longer"

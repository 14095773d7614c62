"""Fill stands back for what is urgent, keeps a low share, and does not fill the queue of a slow link."""

from __future__ import annotations

import fcntl
import itertools
import socket
import sys
import termios
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from imgdist.wire.outstanding import (
    DISTANCE_S,
    HOSTS_KEPT,
    OUTSTANDING_LEAST,
    URGENT_LEAST,
    URGENT_S,
    Distances,
    Outstanding,
    UrgentQueue,
)
from imgdist.wire.pieces import KEPT_S, PAUSE_MOST_S, SHARE, SLOW_S, STALLED_S, Pieces
from imgdist.wire.precedence import CALM_S, LATELY_S, LINGER_S, SHARE_S, Precedence

ONE, OTHER = socket.socketpair()


class Clock:
    """Time that passes only by sleeping; `at_sleep` is called with each sleep."""

    def __init__(self) -> None:
        self.now = 100.0
        self.at_sleep: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        self.at_sleep()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def made(
    clock: Clock,
    left: Callable[[socket.socket], int],
    is_sending: Callable[[], bool] = lambda: False,
    distance_s: float = 0.0,
) -> Precedence:
    """Each connection is another reader's."""
    pieces = Pieces(left, lambda sock: distance_s, lambda sock: str(sock.fileno()))
    return Precedence(is_sending, pieces, clock, clock.sleep)


@pytest.fixture
def precedence(clock: Clock) -> Precedence:
    return made(clock, lambda sock: 0)


def test_fill_goes_at_once_where_nothing_is_urgent(precedence: Precedence, clock: Clock) -> None:
    precedence.stand_back(ONE)
    assert clock.now == 100.0


def test_fill_lingers_after_what_was_urgent(precedence: Precedence, clock: Clock) -> None:
    with precedence.urgent():
        pass
    precedence.stand_back(ONE)
    assert clock.now == pytest.approx(100.0 + LINGER_S)
    precedence.stand_back(ONE)
    assert clock.now == pytest.approx(100.0 + LINGER_S)


def test_fill_keeps_a_low_share_of_a_chain_without_pauses(precedence: Precedence, clock: Clock) -> None:
    with precedence.urgent():
        gone = []
        for _ in range(5):
            precedence.stand_back(ONE)
            gone.append(clock.now)
    assert gone == pytest.approx([100.0 + SHARE_S * n for n in range(1, 6)])


def test_fill_stands_back_for_what_the_kernel_still_sends(clock: Clock) -> None:
    until = 100.1
    precedence = made(clock, lambda sock: 0, lambda: clock.now < until)
    with precedence.urgent():
        pass
    gone = []
    while clock.now < until:
        precedence.stand_back(ONE)
        gone.append(clock.now)
    assert gone[:2] == pytest.approx([100.0 + SHARE_S, 100.0 + 2 * SHARE_S])
    assert until <= gone[2] <= until + LINGER_S


def test_fill_takes_little_of_a_slow_link_beside_what_is_urgent(clock: Clock) -> None:
    arrives = 0.0
    precedence = made(clock, lambda sock: int(clock.now < arrives))
    with precedence.urgent():
        gone = []
        for _ in range(4):
            precedence.stand_back(ONE)
            gone.append(clock.now)
            arrives = clock.now + 0.05
    between = [later - sooner for sooner, later in itertools.pairwise(gone)]
    assert between == pytest.approx([0.05 / SHARE] * 3, rel=0.1)


def test_nobodys_fill_queues_behind_another_ones_soon_after_what_was_urgent(clock: Clock) -> None:
    arrives = 0.0
    precedence = made(clock, lambda sock: int(clock.now < arrives))
    with precedence.urgent():
        pass
    for _ in range(3):
        precedence.stand_back(ONE)
    arrives = before = clock.now + SLOW_S / 2
    precedence.stand_back(ONE)
    assert clock.now < arrives, "its own connection is bounded by itself, on a link that is fast"
    precedence.stand_back(OTHER)
    assert arrives <= clock.now < before + SLOW_S
    clock.now += CALM_S
    arrives = float("inf")
    before = clock.now
    for sock in (ONE, OTHER):
        precedence.stand_back(sock)
    assert clock.now == before, "in a calm nobody minds"


def test_a_long_way_is_no_slow_link(clock: Clock) -> None:
    arrives = 0.0
    precedence = made(clock, lambda sock: int(clock.now < arrives), distance_s=0.05)
    with precedence.urgent():
        pass
    precedence.stand_back(ONE)
    arrives = clock.now + 0.055
    precedence.stand_back(OTHER)
    assert arrives <= clock.now < arrives + SLOW_S


def test_a_connection_that_began_in_a_queue_does_not_hide_a_slow_link(clock: Clock) -> None:
    """It takes the queue for the way; a connection with the same host from before the queue knows better."""
    arrives = 0.0
    distances = {ONE: 0.001, OTHER: 0.3}
    pieces = Pieces(lambda sock: int(clock.now < arrives), distances.__getitem__, lambda sock: "a host")
    precedence = Precedence(lambda: False, pieces, clock, clock.sleep)
    with precedence.urgent():
        for sock in (ONE, OTHER):
            precedence.stand_back(sock)
            arrives = clock.now + 0.2
        clock.now += KEPT_S
        for _ in range(2):
            sent = clock.now
            precedence.stand_back(OTHER)
            arrives = clock.now + 0.2
        assert clock.now - sent == pytest.approx(PAUSE_MOST_S, rel=0.1)


def test_fill_leaves_most_of_a_slow_link_alone_for_a_while(clock: Clock) -> None:
    arrives = 0.0
    precedence = made(clock, lambda sock: int(clock.now < arrives))
    with precedence.urgent():
        pass
    gone = []
    for _ in range(4):
        precedence.stand_back(ONE)
        gone.append(clock.now)
        arrives = clock.now + 0.02
        assert precedence.is_narrow == (len(gone) in (2, 3))
    first = 100.0 + LINGER_S
    assert gone == pytest.approx([first, first + 0.02 / SHARE, first + 0.04 / SHARE, first + LATELY_S], abs=0.15)


def test_a_pause_between_requests_is_no_slow_link(clock: Clock) -> None:
    precedence = made(clock, lambda sock: 0)
    with precedence.urgent():
        for _ in range(5):
            precedence.stand_back(ONE)
            clock.now += 0.2
            before = clock.now
            precedence.stand_back(OTHER)
            assert clock.now == before and not precedence.is_narrow


def test_one_slow_reader_makes_no_slow_link(clock: Clock) -> None:
    arrives: dict[socket.socket, float] = {}
    precedence = made(clock, lambda sock: int(clock.now < arrives.get(sock, 0.0)))
    with precedence.urgent():
        pass
    for _ in range(2):
        for sock, takes_s in ((ONE, SLOW_S / 4), (OTHER, 30 * SLOW_S)):
            precedence.stand_back(sock)
            arrives[sock] = clock.now + takes_s
    before = clock.now
    precedence.stand_back(ONE)
    assert not precedence.is_narrow
    assert clock.now <= before + 2 * SLOW_S, "as long as the link may be blamed for it"


def test_a_reader_that_stalls_holds_up_nobodys_fill_for_long(clock: Clock) -> None:
    precedence = made(clock, lambda sock: 1)
    with precedence.urgent():
        pass
    precedence.stand_back(ONE)
    precedence.stand_back(OTHER)
    assert STALLED_S < LATELY_S
    assert clock.now == pytest.approx(100.0 + LINGER_S + LATELY_S, abs=0.01)


def test_each_urgent_request_prolongs_the_wait(precedence: Precedence, clock: Clock) -> None:
    chain = iter(range(2))

    def next_miss() -> None:
        if next(chain, None) is not None:
            with precedence.urgent():
                pass

    with precedence.urgent():
        pass
    clock.now += LINGER_S / 2
    clock.at_sleep = next_miss
    precedence.stand_back(ONE)
    assert 100.0 + 2 * LINGER_S < clock.now <= 100.0 + SHARE_S


def test_it_is_calm_a_while_after_what_was_urgent(precedence: Precedence, clock: Clock) -> None:
    assert precedence.is_calm
    with precedence.urgent():
        assert not precedence.is_calm
    assert not precedence.is_calm
    clock.now += CALM_S + 2 * LINGER_S
    assert precedence.is_calm


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def test_a_piece_waits_for_acknowledgements(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    with near, far:
        outstanding = Outstanding(near, "host", Distances())
        assert outstanding.has_room(0.0)
        near.setblocking(False)
        with pytest.raises(BlockingIOError):  # until both sockets' buffers are full
            while True:
                near.send(bytes(OUTSTANDING_LEAST))
        assert not outstanding.has_room(0.05)

        def drain() -> None:
            while far.recv(1 << 20):
                pass

        reader = threading.Thread(target=drain)
        reader.start()
        assert outstanding.has_room(10.0)
        near.shutdown(socket.SHUT_WR)
        reader.join()


def test_a_reader_that_makes_no_room_gets_no_more_than_the_limit(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    with near, far:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        outstanding = Outstanding(near, "host", Distances())
        outstanding.tune(calm=False)
        near.setblocking(False)
        waiting = array("i", [0])
        while outstanding.has_room(0.05):
            near.send(bytes(4096))
        fcntl.ioctl(near, termios.TIOCOUTQ, waiting)
        assert 0 < waiting[0] <= 2 * (outstanding.piece or 0) + 65536


class TimedSocket:
    """One whose reader took the last answer at `rate` bytes a second, `way_s` away."""

    def __init__(self, rate: int, way_s: float = 0.0) -> None:
        self.rate, self.way_s, self.bound = rate, way_s, 0

    def getsockopt(self, level: int, option: int, size: int = 0) -> bytes | int:
        way_us = int(self.way_s * 1e6).to_bytes(4, sys.byteorder)
        return bytes(148) + way_us + bytes(8) + self.rate.to_bytes(8, sys.byteorder) if size else 2 * self.bound

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.bound = value


def test_on_a_slow_link_what_is_urgent_leaves_room_for_requests() -> None:
    sock: Any = TimedSocket(0)
    queue = UrgentQueue(sock)
    bounds = []
    for rate in (0, 500_000, 510_000, 1_500_000, 100_000_000, 0):
        sock.rate = rate
        queue.tune()
        bounds.append(sock.bound * 4 // 3)
    assert bounds == [0, URGENT_LEAST, URGENT_LEAST, int(1_500_000 * URGENT_S), 0, 0]
    far: Any = TimedSocket(2_000_000, way_s=0.1)
    UrgentQueue(far).tune()
    assert far.bound == 0, "what the way holds is no queue"


def test_a_calm_fill_goes_by_chunks(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    with near, far:
        outstanding = Outstanding(near, "host", Distances())
        outstanding.tune(calm=True)
        assert outstanding.piece is None
        outstanding.tune(calm=False)
        assert outstanding.piece is not None


def test_a_connection_that_begins_in_a_queue_knows_the_distance_from_others() -> None:
    now = 0.0
    distances = Distances(lambda: now)
    assert distances.least("a", 20_000) == 20_000
    assert distances.least("a", 900) == 900
    assert distances.least("a", 20_000) == 900
    assert distances.least("b", 20_000) == 20_000
    now = DISTANCE_S
    assert distances.least("a", 20_000) == 20_000, "the way has become longer"
    for host in range(HOSTS_KEPT):
        distances.least(str(host), 1)
    assert distances.least("b", 30_000) == 30_000, "forgotten"


def test_pieces_grow_where_nothing_is_delayed(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    with near, far:
        outstanding = Outstanding(near, "host", Distances())
        first = outstanding.piece
        assert first is not None
        deadline = time.monotonic() + 10
        while (outstanding.piece or 0) < 16 * first:
            near.sendall(b"x")
            far.recv(1)
            outstanding.tune(calm=False)
            assert time.monotonic() < deadline

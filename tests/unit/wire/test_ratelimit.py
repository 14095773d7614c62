"""The token bucket: the average holds, demand goes first, fill is not starved for ever."""

from __future__ import annotations

import pytest
from clock import Clock
from hypothesis import given
from hypothesis import strategies as st

from imgdist.wire.messages import BODY_MAX
from imgdist.wire.ratelimit import PIECE, RateLimit

RATE = 1_000_000.0


def send(limit: RateLimit, clock: Clock, size: int, *, urgent: bool = False) -> None:
    """Wait as told, and not a moment longer."""
    while (wait_s := limit.take(size, urgent=urgent)) > 0:
        clock.now += wait_s + 1e-9


def test_the_average_is_kept(clock: Clock) -> None:
    limit = RateLimit(RATE, clock)
    for _ in range(1000):
        send(limit, clock, PIECE)
    assert clock.now - 100.0 == pytest.approx((1000 * PIECE - BODY_MAX) / RATE, rel=0.01)


def test_an_idle_link_saves_up_no_more_than_a_burst(clock: Clock) -> None:
    limit = RateLimit(RATE, clock)
    clock.now += 3600
    sent = 0
    while limit.take(1000) == 0.0:
        sent += 1000
    assert sent == BODY_MAX // 1000 * 1000


def test_demand_goes_before_fill_and_at_most_a_chunk_into_debt(clock: Clock) -> None:
    limit = RateLimit(RATE, clock)
    send(limit, clock, BODY_MAX)
    assert limit.take(PIECE) > 0
    overdrawn = 0
    while limit.take(PIECE, urgent=True) == 0.0:
        overdrawn += PIECE
    assert BODY_MAX - PIECE < overdrawn <= BODY_MAX
    assert limit.take(PIECE) == pytest.approx((overdrawn + PIECE) / RATE)


def test_what_was_not_sent_is_given_back(clock: Clock) -> None:
    limit = RateLimit(RATE, clock)
    send(limit, clock, BODY_MAX)
    limit.give_back(PIECE)
    assert limit.take(PIECE) == 0.0
    assert limit.take(1) > 0


@given(st.lists(st.tuples(st.integers(0, BODY_MAX), st.booleans(), st.floats(0, 2)), max_size=50))
def test_never_more_than_the_rate_a_burst_and_a_chunk(sends: list[tuple[int, bool, float]]) -> None:
    clock = Clock()
    limit = RateLimit(RATE, clock)
    total = 0
    for size, urgent, pause_s in sends:
        if limit.take(size, urgent=urgent) == 0.0:
            total += size
        assert total <= (clock.now - 100.0) * RATE + 2 * BODY_MAX + 1
        clock.now += pause_s

"""What a chunk server says of its queue, and how it learns its rate."""

from __future__ import annotations

import pytest
from clock import Clock

from imgdist.wire.load import BODY_BYTES, RATE_BYTES_PER_S, SLICE_S, STALLED_S, Load
from imgdist.wire.messages import Priority


@pytest.fixture
def load(clock: Clock) -> Load:
    return Load(clock)


def test_what_is_more_urgent_counts_and_what_is_less_does_not(load: Load) -> None:
    load.take_on(Priority.DEMAND, 1)
    load.take_on(Priority.FILL, 8)
    assert load.ahead_bytes(Priority.DEMAND) == load.ahead_bytes(Priority.TRACE) == BODY_BYTES
    assert load.ahead_bytes(Priority.FILL) == 9 * BODY_BYTES
    assert load.wait_s(Priority.FILL) == pytest.approx(9 * BODY_BYTES / RATE_BYTES_PER_S)
    assert [load.requests(priority) for priority in Priority] == [1, 0, 1]


def test_sizes_are_learned_and_what_was_sent_waits_no_more(load: Load) -> None:
    ticket = load.take_on(Priority.FILL, 2)
    load.settle(ticket, 100_000, 2)
    assert load.ahead_bytes(Priority.FILL) == 100_000
    load.sent(ticket, 30_000)
    assert load.ahead_bytes(Priority.FILL) == 70_000
    load.done(ticket)
    load.done(ticket)
    assert (load.ahead_bytes(Priority.FILL), load.requests(Priority.FILL)) == (0, 0)
    assert BODY_BYTES > load.take_on(Priority.FILL, 1).left_bytes > 50_000


def test_the_rate_is_learned_from_busy_time_only(load: Load, clock: Clock) -> None:
    for _ in range(400):
        ticket = load.take_on(Priority.DEMAND, 1)
        load.settle(ticket, 100_000, 1)
        clock.now += SLICE_S / 10
        load.sent(ticket, 100_000)
        load.done(ticket)
        clock.now += 10.0
    load.settle(load.take_on(Priority.DEMAND, 1), 1_000_000, 1)
    assert load.wait_s(Priority.DEMAND) == pytest.approx(SLICE_S, rel=0.05)


def test_a_link_that_stops_shows_soon(load: Load, clock: Clock) -> None:
    ticket = load.take_on(Priority.FILL, 1)
    load.settle(ticket, 10_000_000, 1)
    before = load.wait_s(Priority.FILL)
    for _ in range(20):
        clock.now += SLICE_S
        load.sent(ticket, 1000)
    assert load.wait_s(Priority.FILL) > 10 * before


def test_answers_whose_readers_stalled_count_for_nobody_until_they_go_on(load: Load, clock: Clock) -> None:
    tickets = [load.take_on(Priority.FILL, 1) for _ in range(4)]
    other = load.take_on(Priority.DEMAND, 1)
    for ticket in tickets:
        load.pause(ticket)
    load.resume(tickets[3])
    clock.now += STALLED_S * 0.9
    assert (load.requests(Priority.FILL), load.ahead_bytes(Priority.FILL)) == (4, 5 * BODY_BYTES)
    clock.now += STALLED_S * 0.2
    assert (load.requests(Priority.FILL), load.ahead_bytes(Priority.FILL)) == (1, 2 * BODY_BYTES)
    load.resume(tickets[0])
    load.done(tickets[1])
    load.done(tickets[1])
    assert (load.requests(Priority.FILL), load.ahead_bytes(Priority.FILL)) == (2, 3 * BODY_BYTES)
    for ticket in (*tickets, other):
        load.done(ticket)
    assert (load.requests(Priority.FILL), load.ahead_bytes(Priority.FILL)) == (0, 0)


def test_what_waits_for_chunks_that_come_counts_for_nobody(load: Load, clock: Clock) -> None:
    before = load.wait_s(Priority.DEMAND)
    for _ in range(100):
        ticket = load.take_on(Priority.DEMAND, 1)
        load.set_aside(ticket)
        assert (load.requests(Priority.DEMAND), load.ahead_bytes(Priority.FILL)) == (0, 0)
        clock.now += 1.0
        load.resume(ticket)
        assert load.requests(Priority.DEMAND) == 1
        load.settle(ticket, 100_000, 1)
        clock.now += SLICE_S
        load.sent(ticket, 100_000)
        load.done(ticket)
    assert (load.requests(Priority.DEMAND), load.wait_s(Priority.DEMAND)) == (0, before)
    load.settle(load.take_on(Priority.DEMAND, 1), 1_000_000, 1)
    assert load.wait_s(Priority.DEMAND) == pytest.approx(10 * SLICE_S, rel=0.05), "the rate is of the time it sent"


def test_what_only_stalled_readers_wait_for_is_no_busy_time(load: Load, clock: Clock) -> None:
    ticket = load.take_on(Priority.FILL, 8)
    load.pause(ticket)
    clock.now += STALLED_S
    assert load.requests(Priority.FILL) == 0
    clock.now += 1000.0
    load.resume(ticket)
    load.settle(ticket, 1_000_000, 8)
    clock.now += SLICE_S
    load.sent(ticket, 1_000_000)
    load.settle(load.take_on(Priority.DEMAND, 1), 1_000_000, 1)
    assert load.wait_s(Priority.DEMAND) < 0.2, "the rate is of busy time"

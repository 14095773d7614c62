"""The transfer policy, with a clock of its own: order, gates, windows, and never the same chunk twice at once."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from made_layers import MadeLayer

from agent.swarm.policy import SourceKind
from agent.transfer.bulk import TRACE_TRIES
from agent.transfer.fetch import RUN_CHUNKS, Fetch, Kind, Landed
from agent.transfer.flights import BULK_SLOTS
from agent.transfer.gate import CALM_S, HOLD_S, LOW_SHARE, QUIET_S
from agent.transfer.lead import LEAD_BYTES
from agent.transfer.scheduler import AHEAD_CHUNKS, Scheduler
from agent.transfer.urgent import DEMAND_SLOTS, NOW_SLOTS
from agent.transfer.window import AHEAD_MIN, AHEAD_S, WINDOW_MIN
from imgdist.pack import BLOCK, CHUNK_MAX

LAYER = MadeLayer([64] * 40 + [1])  # 40 chunks of 256 KiB, one of metadata
COUNT = LAYER.index.chunk_count


def offset(chunk: int) -> int:
    return LAYER.index.start(chunk)


@pytest.fixture
def scheduler() -> Scheduler:
    """One layer, node 2, nothing present; a round trip of 0.1 ms is known, so nothing is fetched ahead."""
    made = Scheduler(lambda: 0.5)
    made.window.answered(0, 0.0, 0.0001, 0.001)
    made.add(2, LAYER.index, range(COUNT))
    return made


def land(scheduler: Scheduler, fetch: Fetch, now: float) -> list[Landed]:
    landed = [scheduler.landed(fetch.node, chunk, now) for chunk in fetch.chunks]
    scheduler.finished(fetch, now)
    return landed


def test_a_miss_is_fetched_at_once_alone_and_once(scheduler: Scheduler) -> None:
    assert scheduler.miss(2, offset(3) + 4096, 4096, 1.0) is True
    (fetch,) = scheduler.due(1.0)
    assert fetch == Fetch(2, (3,), Kind.DEMAND)
    assert scheduler.miss(2, offset(3), 4096, 1.1) is True, "a second reader waits for the same chunk"
    assert scheduler.due(1.1) == []
    assert land(scheduler, fetch, 1.5) == [Landed(0.5, False)]
    assert scheduler.miss(2, offset(3), 4096, 2.0) is False
    assert scheduler.miss(9, 0, 4096, 2.0) is None


def test_a_starts_own_time_stands_still_while_anybody_waits(scheduler: Scheduler) -> None:
    assert scheduler.running_s(5.0) == 5.0
    scheduler.miss(2, offset(3), 1, 5.0)
    scheduler.miss(2, offset(4), 1, 6.0)
    first, second = scheduler.due(6.0)
    assert scheduler.running_s(7.0) == 5.0
    land(scheduler, first, 8.0)
    assert scheduler.running_s(9.0) == 5.0, "one still waits"
    land(scheduler, second, 10.0)
    assert scheduler.running_s(12.0) == 7.0


def test_who_gave_up_waiting_does_not_stop_a_starts_clock() -> None:
    scheduler = Scheduler(lambda: 0.5, read_deadline_s=60.0)
    scheduler.add(2, LAYER.index, range(COUNT))
    scheduler.miss(2, offset(3), 1, 0.0)
    scheduler.due(60.0)
    assert scheduler.running_s(70.0) == 10.0


def test_a_miss_over_two_chunks_wants_both_in_parallel(scheduler: Scheduler) -> None:
    scheduler.miss(2, offset(4) - 4096, 8192, 0.0)
    assert scheduler.due(0.0) == [Fetch(2, (3,), Kind.DEMAND), Fetch(2, (4,), Kind.DEMAND)]


def test_demand_slots_are_bounded(scheduler: Scheduler) -> None:
    for chunk in range(20):
        scheduler.miss(2, offset(chunk), 1, 0.0)
    first = scheduler.due(0.0)
    assert [fetch.chunks for fetch in first] == [(chunk,) for chunk in range(DEMAND_SLOTS)]
    land(scheduler, first[0], 0.1)
    assert scheduler.due(0.1) == [Fetch(2, (DEMAND_SLOTS,), Kind.DEMAND)]


def test_demand_takes_a_chunk_out_of_the_trace_queue(scheduler: Scheduler) -> None:
    scheduler.trace([(2, chunk) for chunk in range(40)])
    in_flight = {chunk for fetch in scheduler.due(0.0) for chunk in fetch.chunks}
    assert 39 not in in_flight
    scheduler.miss(2, offset(39), 1, 0.1)
    (demand,) = scheduler.due(0.1)
    assert demand == Fetch(2, (39,), Kind.DEMAND)
    assert 39 not in drive(scheduler, 0.2, [demand])


def drive(scheduler: Scheduler, now: float, running: list[Fetch]) -> list[int]:
    """Land everything until nothing is due any more; the chunks asked for on the way."""
    asked: list[int] = []
    running = running + [flight.fetch for flight in scheduler.flights if flight.fetch not in running]
    while running:
        land(scheduler, running.pop(0), now)
        fresh = scheduler.due(now)
        asked += [chunk for fetch in fresh for chunk in fetch.chunks]
        running += fresh
    return asked


def test_demand_for_a_chunk_in_flight_waits_and_is_reported(scheduler: Scheduler) -> None:
    scheduler.trace([(2, 0), (2, 1)])
    (fetch,) = scheduler.due(0.0)
    scheduler.miss(2, offset(1), 1, 0.5)
    assert scheduler.due(0.5) == []
    assert scheduler.is_wanted(2, 1)
    assert land(scheduler, fetch, 0.75) == [Landed(None, False), Landed(0.25, False)]
    assert not scheduler.is_wanted(2, 1)


def test_the_run_behind_a_miss_is_fetched_only_without_a_trace_and_far_away(scheduler: Scheduler) -> None:
    far = Scheduler(lambda: 0.5)
    far.add(2, LAYER.index, range(COUNT))
    far.miss(2, offset(3), 1, 0.0)
    assert far.due(0.0) == [Fetch(2, (3,), Kind.DEMAND), Fetch(2, tuple(range(4, 4 + AHEAD_CHUNKS)), Kind.TRACE)]
    far.miss(2, offset(38), 1, 0.0)
    assert far.due(0.0) == [Fetch(2, (38,), Kind.DEMAND), Fetch(2, (39,), Kind.TRACE)], "it ends before metadata"
    far.trace([(2, 20)])
    far.miss(2, offset(30), 1, 0.0)
    assert [fetch.chunks for fetch in far.due(0.0)] == [(30,), (20,)]


@pytest.mark.parametrize(("rate", "is_ahead"), [(1e6, False), (25e6, True)])
def test_where_a_chunk_takes_longer_than_the_way_nothing_is_fetched_ahead(rate: float, is_ahead: bool) -> None:
    far = Scheduler(lambda: 0.5)
    far.add(2, LAYER.index, range(COUNT))
    far.window.received(85_000, 200_000)
    far.window.answered(0, 0.9, 0.01, 0.91 + 85_000 / rate)
    far.miss(2, offset(3), 1, 1.0)
    assert [fetch.kind for fetch in far.due(1.0)] == [Kind.DEMAND, Kind.TRACE][: 1 + is_ahead]


def test_a_trace_keeps_the_window_full_in_runs(scheduler: Scheduler) -> None:
    scheduler.trace([(2, chunk) for chunk in reversed(range(40))])
    fetches = scheduler.due(0.0)
    assert [fetch.chunks for fetch in fetches] == [tuple(range(39, 31, -1)), tuple(range(31, 23, -1))]
    assert sum(len(fetch.chunks) for fetch in fetches) * 262144 * 0.5 >= WINDOW_MIN


@pytest.mark.parametrize("rate", [0.5e6, 2.5e6, 25e6])
def test_what_a_trace_foretells_holds_up_a_miss_on_a_slow_link_for_a_moment(scheduler: Scheduler, rate: float) -> None:
    scheduler.window.received(85_000, 170_000)
    scheduler.window.answered(0, 0.9, 0.001, 0.901 + 85_000 / rate)
    scheduler.trace([(2, chunk) for chunk in range(40)])
    in_flight = [
        sum(scheduler.window.estimate(LAYER.index.size(c)) for c in fetch.chunks) for fetch in scheduler.due(1.0)
    ]
    most = max(AHEAD_MIN, AHEAD_S * rate)
    assert 0.75 * min(most, WINDOW_MIN) <= sum(in_flight) <= most + max(in_flight)
    assert len(in_flight) >= 2, "while one is sent the next one waits there"


def test_the_window_grows_to_link_times_round_trip(scheduler: Scheduler) -> None:
    """100 MB/s at 50 ms round trip: 5 MB must be in flight, and are, two round trips after the start."""
    window = Scheduler(lambda: 0.5).window
    now, rate, round_trip = 0.0, 100e6, 0.05
    for _ in range(6):
        size = window.size_bytes
        before = window.delivered
        took = max(round_trip, size / rate)
        window.received(size, size)
        window.answered(before, now, round_trip, now + took)
        now += took
    assert 5e6 <= window.size_bytes <= 12e6


def _large(chunks: int) -> tuple[Scheduler, MadeLayer]:
    """One layer of so many chunks, far from its source, and a trace that names them all."""
    large = MadeLayer([64] * chunks + [1])
    scheduler = Scheduler(lambda: 0.5)
    scheduler.window.answered(0, 0.0, 0.01, 0.02)
    scheduler.add(2, large.index, range(large.index.chunk_count))
    scheduler.trace([(2, chunk) for chunk in range(chunks)])
    return scheduler, large


def test_a_trace_that_nobody_reads_stops_and_fill_goes_on_without_it() -> None:
    lead = LEAD_BYTES // CHUNK_MAX
    scheduler, large = _large(3 * lead)
    asked = drive(scheduler, 0.0, scheduler.due(0.0))
    assert lead <= len(asked) + BULK_SLOTS * RUN_CHUNKS <= lead + 2 * BULK_SLOTS * RUN_CHUNKS
    scheduler.miss(2, large.index.start(3 * lead - 10), 1, 1.0)
    fetches = scheduler.due(1.0)
    assert fetches[0].kind is Kind.DEMAND
    assert len(fetches) > 1, "the trace is wrong: what is behind a miss is fetched as if there were none"
    drive(scheduler, 1.0, fetches)
    scheduler.fill(2)
    (first, *_) = scheduler.due(1.1 + QUIET_S)
    assert first.kind is Kind.FILL, "a trace that stopped does not keep fill waiting"


def test_a_trace_that_is_read_goes_on() -> None:
    lead = LEAD_BYTES // CHUNK_MAX
    scheduler, large = _large(3 * lead)
    drive(scheduler, 0.0, scheduler.due(0.0))
    assert scheduler.due(0.5) == []
    scheduler.touched([(2, large.index.start(0) // BLOCK, 64 * lead)], 1.0)
    assert len(drive(scheduler, 1.0, scheduler.due(1.0))) >= lead


def test_a_trace_that_nobody_reads_does_not_hold_up_that_of_the_next_start() -> None:
    lead = LEAD_BYTES // CHUNK_MAX
    scheduler, _ = _large(3 * lead)
    drive(scheduler, 0.0, scheduler.due(0.0))
    assert scheduler.due(0.5) == []
    scheduler.trace([])
    assert scheduler.due(0.5) == [], "no trace is no reason to go on"
    scheduler.add(3, LAYER.index, range(COUNT))
    scheduler.trace([(3, chunk) for chunk in range(10)])
    fetches = scheduler.due(1.0)
    assert [fetch.chunks for fetch in fetches if fetch.node == 3] == [tuple(range(8)), (8, 9)]
    asked = drive(scheduler, 1.0, fetches)
    assert len(asked) <= lead + 2 * BULK_SLOTS * RUN_CHUNKS, "and the earlier one stays bounded"


def test_a_trace_that_goes_on_keeps_its_order_and_what_it_has_left(scheduler: Scheduler) -> None:
    scheduler.add(3, LAYER.index, range(COUNT))
    scheduler.trace([(2, 7), (2, 8)])
    scheduler.trace([(3, 0)])
    scheduler.trace([(3, 3), (2, 8), (2, 7)], goes_on=True)
    assert [(fetch.node, fetch.chunks) for fetch in scheduler.due(0.0)] == [(3, (0, 3)), (2, (8, 7))]


def test_each_part_of_a_trace_does_not_earn_it_more_ahead_of_its_readers() -> None:
    lead = LEAD_BYTES // CHUNK_MAX
    scheduler, _ = _large(3 * lead)
    asked = drive(scheduler, 0.0, scheduler.due(0.0))
    scheduler.add(3, LAYER.index, range(COUNT))
    scheduler.trace([(3, chunk) for chunk in range(10)], goes_on=True)
    asked += drive(scheduler, 1.0, scheduler.due(1.0))
    assert len(asked) <= lead + BULK_SLOTS * RUN_CHUNKS


def test_what_a_job_waits_for_comes_before_traces_and_leaves_slots_to_misses(scheduler: Scheduler) -> None:
    scheduler.add(3, LAYER.index, range(COUNT))
    scheduler.trace([(2, 0)])
    assert scheduler.want(2, range(40)) == list(range(40))
    fetches = scheduler.due(0.0)
    assert [fetch.kind for fetch in fetches] == [Kind.NOW] * 5, "chunk 0 is in one of them"
    scheduler.want(3, range(40))
    assert len(scheduler.due(0.0)) == NOW_SLOTS - 5
    scheduler.miss(3, offset(39), 1, 0.0)
    assert [fetch.kind for fetch in scheduler.due(0.0)] == [Kind.DEMAND]


def test_fill_waits_for_quiet(scheduler: Scheduler) -> None:
    scheduler.miss(2, offset(0), 1, 1.0)
    (demand,) = scheduler.due(1.0)
    scheduler.fill(2)
    assert scheduler.due(1.0) == []
    land(scheduler, demand, 1.1)
    assert scheduler.due(1.1) == []
    assert scheduler.wake_at(1.1) == pytest.approx(1.0 + QUIET_S)
    (little,) = scheduler.due(1.0 + QUIET_S + 0.001)
    assert little == Fetch(2, (1,), Kind.FILL), "a run would keep the next miss waiting"
    assert scheduler.wake_at(1.5) == pytest.approx(1.0 + CALM_S)
    land(scheduler, little, 1.6)
    (more,) = scheduler.due(1.6)
    assert more.chunks == (2,)
    assert scheduler.due(1.0 + CALM_S)[0] == Fetch(2, tuple(range(3, 3 + RUN_CHUNKS)), Kind.FILL)


def test_fill_gets_a_low_share_when_starts_never_end(scheduler: Scheduler) -> None:
    busy_layer = MadeLayer([1] * 250)
    scheduler.add(3, busy_layer.index, range(250))
    scheduler.trace([(3, 249)])  # a trace is known: nothing is fetched ahead
    scheduler.fill(2)
    fills: list[float] = []
    running: list[tuple[float, Fetch]] = []
    for tick in range(190):
        now = tick / 10  # a miss every 100 ms, answered at once; a fill takes 200 ms
        scheduler.miss(3, busy_layer.index.start(tick), 1, now)
        for fetch in scheduler.due(now):
            is_fill = fetch.kind is Kind.FILL
            fills += [now] * is_fill
            assert not is_fill or len(fetch.chunks) == 1, "a run would keep the next miss waiting"
            running.append((now + 0.2 * is_fill, fetch))
        for done in [entry for entry in running if entry[0] <= now]:
            running.remove(done)
            land(scheduler, done[1], now)
    assert fills[0] == pytest.approx(HOLD_S, abs=0.2)
    assert 4 <= len(fills) <= (19 - HOLD_S) * LOW_SHARE / 0.2 + 1


def test_drain_does_not_wait(scheduler: Scheduler) -> None:
    scheduler.miss(2, offset(0), 1, 1.0)
    scheduler.due(1.0)
    scheduler.drain(True)
    assert {fetch.kind for fetch in scheduler.due(1.0)} == {Kind.FILL}
    drive(scheduler, 1.0, [])
    assert scheduler.incomplete() == []


def test_a_failed_fetch_is_tried_again_later_and_later(scheduler: Scheduler) -> None:
    scheduler.miss(2, offset(0), 1, 0.0)
    now, pauses = 0.0, []
    for _ in range(8):
        (fetch,) = scheduler.due(now)
        scheduler.finished(fetch, now)
        assert scheduler.due(now) == []
        wake = scheduler.wake_at(now)
        assert wake is not None
        pauses.append(wake - now)
        now = wake
    assert pauses == pytest.approx(sorted(pauses))
    assert pauses[0] <= 0.07
    assert pauses[-1] <= 0.5
    (fetch,) = scheduler.due(now)
    assert land(scheduler, fetch, now)[0].waited_s == pytest.approx(now)


def test_nobody_waits_beyond_the_deadline_but_asking_again_heals(scheduler: Scheduler) -> None:
    scheduler.miss(2, offset(0), 1, 0.0)
    (fetch,) = scheduler.due(0.0)
    scheduler.finished(fetch, 1.0)
    assert scheduler.due(61.0) == []
    assert not scheduler.is_wanted(2, 0)
    scheduler.miss(2, offset(0), 1, 70.0)
    assert scheduler.due(70.0) == [Fetch(2, (0,), Kind.DEMAND)]


def test_a_failed_trace_run_keeps_its_place(scheduler: Scheduler) -> None:
    scheduler.trace([(2, chunk) for chunk in (5, 9, 1)])
    (fetch,) = scheduler.due(0.0)
    scheduler.landed(2, 9, 0.0)
    scheduler.finished(fetch, 0.0)
    assert scheduler.due(0.0) == []
    assert scheduler.due(1.0) == [Fetch(2, (5, 1), Kind.TRACE)]


def test_a_trace_gives_a_chunk_up_after_some_tries_and_keeps_no_other_layer_waiting(scheduler: Scheduler) -> None:
    scheduler.add(3, LAYER.index, range(COUNT))
    scheduler.want(2, [4])
    (failing,) = scheduler.due(0.0)
    scheduler.finished(failing, 0.0)  # layer 2 backs off
    scheduler.give_up(2, [4])
    scheduler.trace([(2, 5), (3, 1)])
    now, tries, landed = 0.0, 0, False
    while tries < TRACE_TRIES:
        for fetch in scheduler.due(now):
            if fetch.node == 2:
                tries += 1
                scheduler.finished(fetch, now)
            else:
                assert not tries, "the layer behind does not wait"
                landed = True
                land(scheduler, fetch, now)
        now += 0.05
    assert landed
    assert scheduler.due(60.0) == []
    scheduler.miss(2, offset(5), 1, 60.0)
    assert scheduler.due(60.0) == [Fetch(2, (5,), Kind.DEMAND)]


def test_what_cannot_start_is_no_start(scheduler: Scheduler) -> None:
    scheduler.add(3, LAYER.index, range(COUNT))
    scheduler.miss(2, offset(0), 1, 0.0)
    scheduler.trace([(2, 5)])
    now = 0.0
    for _ in range(8):
        for fetch in scheduler.due(now):
            scheduler.finished(fetch, now)
        now = scheduler.wake_at(now) or 0.0
    for fetch in scheduler.due(now):
        scheduler.finished(fetch, now)
    scheduler.fill(3)
    fetches = scheduler.due(now)
    assert fetches, "layer 2 backs off with a reader and a trace"
    assert all(fetch.node == 3 and fetch.kind is Kind.FILL for fetch in fetches)


def test_a_chunk_that_came_wrong_rests_alone(scheduler: Scheduler) -> None:
    scheduler.miss(2, offset(0), 1, 0.0)
    now = 0.0
    times: list[float] = []
    while len(times) < 9:
        for fetch in scheduler.due(now):
            assert fetch.chunks == (0,)
            times.append(now)
            scheduler.finished(fetch, now, bad={0})
            scheduler.miss(2, offset(len(times)), 1, now)
            (other,) = scheduler.due(now)
            assert other.chunks == (len(times),), "its layer goes on"
            land(scheduler, other, now)
        now = scheduler.wake_at(now) or 0.0
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, *[0.4] * 5])


def test_a_reader_hurries_a_chunk_that_rests_for_long(scheduler: Scheduler) -> None:
    scheduler.add(3, LAYER.index, [7])
    scheduler.fill(3)
    now = 0.0
    for _ in range(9):
        (fetch,) = scheduler.due(now)
        scheduler.finished(fetch, now, bad={7})
        now = scheduler.wake_at(now) or 0.0
    (fetch,) = scheduler.due(now)
    scheduler.finished(fetch, now, bad={7})
    assert scheduler.due(now + 5.0) == []
    scheduler.miss(3, offset(7), 1, now + 5.0)
    assert scheduler.due(now + 5.0) == [Fetch(3, (7,), Kind.DEMAND)]


def test_a_source_of_nothing_but_wrong_chunks_is_not_asked_for_all_of_them_at_once(scheduler: Scheduler) -> None:
    scheduler.fill(2)
    asked = 0
    for tick in range(100):
        for fetch in scheduler.due(tick / 10):
            asked += len(fetch.chunks)
            scheduler.finished(fetch, tick / 10, bad=fetch.chunks)
    assert asked <= 4 * COUNT


def test_first_touches_close_the_gate_at_once_and_end_with_quiet(scheduler: Scheduler) -> None:
    scheduler.fill(2)
    (first, *_) = scheduler.due(0.0)
    scheduler.touched([(2, 1, 1)], 1.0)
    land(scheduler, first, 1.0)
    assert scheduler.due(1.0) == []
    scheduler.touched([(2, 2, 1), (9, 1, 1)], 1.2)
    assert scheduler.due(1.1 + QUIET_S) == []
    assert scheduler.wake_at(1.1 + QUIET_S) == pytest.approx(1.2 + QUIET_S)
    assert scheduler.due(1.21 + QUIET_S)[0].kind is Kind.FILL


def test_waking_costs_no_more_with_many_failing_layers_and_readers(scheduler: Scheduler) -> None:
    """Counted in looks at the wanted chunks: 500 layers x 1,000 reads would be half a million."""
    looks = 0

    class Counted(dict[tuple[int, int], Any]):
        def __iter__(self) -> Any:
            nonlocal looks
            for key in super().__iter__():
                looks += 1
                yield key

    small = MadeLayer([1, 1])
    for node in range(10, 510):
        scheduler.add(node, small.index, range(2))
        for chunk in range(2):
            scheduler.miss(node, small.index.start(chunk), 1, 0.0)
        scheduler._layers[node].backoff.failed(0.0, 0.5)
    scheduler._urgent._wanted = Counted(scheduler._urgent._wanted)
    assert scheduler.wake_at(0.0) is not None
    assert looks <= 4 * 1000


def test_the_last_chunk_completes_once(scheduler: Scheduler) -> None:
    assert scheduler.add(4, LAYER.index, []) is True
    scheduler.add(3, LAYER.index, [7])
    scheduler.miss(3, offset(7), 1, 0.0)
    (fetch,) = scheduler.due(0.0)
    assert land(scheduler, fetch, 0.1) == [Landed(0.1, True)]
    assert scheduler.landed(3, 7, 0.2) == Landed(None, False)


def test_what_was_lost_is_missing_again(scheduler: Scheduler) -> None:
    scheduler.add(3, LAYER.index, [7])
    scheduler.lost(3, [7])
    assert scheduler.incomplete().count(3) == 1
    scheduler.miss(3, offset(7), 1, 0.0)
    (fetch,) = scheduler.due(0.0)
    land(scheduler, fetch, 0.1)
    assert scheduler.miss(3, offset(7), 1, 0.2) is False
    scheduler.lost(3, [7, 2])
    scheduler.fill(3)
    assert scheduler.miss(3, offset(7), 1, 0.3) is True
    assert [one.completes for fetch in scheduler.due(0.3) for one in land(scheduler, fetch, 0.4)] == [False]
    assert [one.completes for fetch in scheduler.due(1.0) for one in land(scheduler, fetch, 1.1)] == [True]


def test_a_removed_layer_leaves_nothing(scheduler: Scheduler) -> None:
    scheduler.miss(2, offset(0), 1, 0.0)
    scheduler.want(2, [5])
    scheduler.trace([(2, 8)])
    scheduler.fill(2)
    fetches = scheduler.due(0.0)
    scheduler.remove(2)
    assert scheduler.in_flight(2) == len(fetches) > 0
    for fetch in fetches:
        land(scheduler, fetch, 0.1)
    assert scheduler.due(100.0) == []
    assert scheduler.wake_at(100.0) is None
    assert scheduler.in_flight(2) == 0


class Machine(RuleBasedStateMachine):
    """Any order of events: no chunk twice in flight, slots and window kept, and in the end everything lands."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.scheduler = Scheduler(lambda: 0.5)
        self.flying: list[Fetch] = []
        self.here: set[tuple[int, int]] = set()
        for node in (2, 3):
            self.scheduler.add(node, LAYER.index, range(COUNT))

    def pump(self) -> None:
        fresh = self.scheduler.due(self.now)
        chunks = [(f.node, c) for f in self.flying + fresh for c in f.chunks]
        assert len(chunks) == len(set(chunks))
        assert not self.here.intersection((f.node, c) for f in fresh for c in f.chunks)
        self.flying += fresh

    @rule(node=st.sampled_from([2, 3]), chunk=st.integers(0, COUNT - 1), length=st.integers(1, 600_000))
    def miss(self, node: int, chunk: int, length: int) -> None:
        self.scheduler.miss(node, offset(chunk), length, self.now)
        self.pump()
        urgent = [f for f in self.flying if f.kind in (Kind.DEMAND, Kind.NOW)]
        flying = {(f.node, c) for f in self.flying for c in f.chunks}
        layer = self.scheduler._layers[node]
        backing_off = layer.backoff.failures > 0 or chunk in layer.bad
        if len(urgent) < DEMAND_SLOTS and not backing_off:
            assert (node, chunk) in flying | self.here, "a miss with a slot free flies at once"

    @rule(node=st.sampled_from([2, 3]), chunks=st.lists(st.integers(0, COUNT - 1), max_size=20))
    def trace(self, node: int, chunks: list[int]) -> None:
        self.scheduler.trace((node, chunk) for chunk in chunks)
        self.pump()

    @rule(node=st.sampled_from([2, 3]), chunks=st.lists(st.integers(0, COUNT - 1), max_size=20))
    def want(self, node: int, chunks: list[int]) -> None:
        self.scheduler.want(node, chunks)
        self.pump()

    @rule(node=st.sampled_from([2, 3]))
    def fill(self, node: int) -> None:
        self.scheduler.fill(node)
        self.pump()

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.pump()

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def finish(self, data: Any) -> None:
        fetch = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        came = data.draw(st.integers(0, len(fetch.chunks)))
        for chunk in fetch.chunks[:came]:
            self.scheduler.landed(fetch.node, chunk, self.now)
            self.here.add((fetch.node, chunk))
        bad = data.draw(st.sets(st.sampled_from(fetch.chunks[came:]))) if fetch.chunks[came:] else set()
        self.scheduler.finished(fetch, self.now, bad=bad)
        self.pump()

    @invariant()
    def limits_hold(self) -> None:
        kinds = [fetch.kind for fetch in self.flying]
        assert kinds.count(Kind.DEMAND) + kinds.count(Kind.NOW) <= DEMAND_SLOTS
        assert kinds.count(Kind.NOW) <= NOW_SLOTS
        assert kinds.count(Kind.TRACE) + kinds.count(Kind.FILL) <= BULK_SLOTS
        assert all(len(fetch.chunks) <= RUN_CHUNKS for fetch in self.flying)

    def teardown(self) -> None:
        self.scheduler.drain(True)
        for _ in range(2000):
            self.pump()
            if not self.flying:
                if not self.scheduler.incomplete():
                    break
                self.now = self.scheduler.wake_at(self.now) or self.now + 1
            for fetch in self.flying:
                land(self.scheduler, fetch, self.now)
                self.here.update((fetch.node, chunk) for chunk in fetch.chunks)
            self.flying = []
        assert self.scheduler.incomplete() == []
        assert self.scheduler.flights.bulk_bytes == 0


TestAnyOrder = Machine.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_reader_that_is_held_waits_for_ever() -> None:
    scheduler = Scheduler(lambda: 0.5, math.inf)
    scheduler.policy.join("S", SourceKind.SUPERNODE)
    scheduler.window.answered(0, 0.0, 0.0001, 0.001)  # near: nothing is fetched ahead
    scheduler.add(2, LAYER.index, range(LAYER.index.chunk_count))
    scheduler.miss(2, offset(0), 1, 0.0)
    (fetch,) = scheduler.due(0.0)
    scheduler.finished(fetch, 1.0)
    (again,) = scheduler.due(1e6)
    assert again.chunks == fetch.chunks and again.kind is Kind.DEMAND

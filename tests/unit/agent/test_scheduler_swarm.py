"""The scheduler among other agents: it says what and when, a real policy says from whom."""

from __future__ import annotations

import pytest
from made_layers import MadeLayer

from agent.swarm.bitset import bits_of
from agent.swarm.neighbours import SILENCE_S
from agent.swarm.policy import SourceKind
from agent.transfer.fetch import Fetch, Kind, Landed
from agent.transfer.flights import ENDGAME_S, SOURCES_MAX
from agent.transfer.gate import FillGate
from agent.transfer.line import CROWD_S, KEPT_S, Line
from agent.transfer.pace import BURST_S, Pace
from agent.transfer.scheduler import Scheduler

LAYER = MadeLayer([64] * 40 + [1])  # 40 chunks of 256 KiB, one of metadata
COUNT = LAYER.index.chunk_count
ALL = (1 << COUNT) - 1


def offset(chunk: int) -> int:
    return LAYER.index.start(chunk)


def swarm(
    peers: dict[str, int] | None = None,
    supernodes: tuple[str, ...] = ("S",),
    pace: Pace | None = None,
    me: str = "",
) -> Scheduler:
    """One layer, node 2, nothing here; the peers have these sets."""
    made = Scheduler(lambda: 0.5, swarm=True, pace=pace, line=Line(lambda: me))
    made.window.answered(0, 0.0, 0.0001, 0.001)
    for name in supernodes:
        made.policy.join(name, SourceKind.SUPERNODE)
    made.add(2, LAYER.index, range(COUNT))
    for peer, have in (peers or {}).items():
        made.policy.join(peer, SourceKind.PEER)
        made.policy.opened(peer, 2, have)
        prove(made, peer)
    return made


def prove(scheduler: Scheduler, peer: str) -> None:
    """It gave a chunk once, in no time: it is no stranger, and nothing is known of its rate."""
    scheduler.policy.started(peer, 1, 100_000, False, 0.0)
    scheduler.policy.came(peer, 100_000, 0.0)
    scheduler.policy.ended(peer, 100_000, False, 0.0)


def asked(fetches: list[Fetch]) -> dict[object, set[int]]:
    found: dict[object, set[int]] = {}
    for fetch in fetches:
        found.setdefault(fetch.sources[0], set()).update(fetch.chunks)
    return found


def land(scheduler: Scheduler, fetch: Fetch, now: float, chunks: tuple[int, ...] | None = None) -> list[Landed]:
    landed = [scheduler.landed(2, chunk, now) for chunk in fetch.chunks if chunks is None or chunk in chunks]
    scheduler.finished(fetch, now, 0.001)
    return landed


def test_fill_takes_from_peers_what_they_have_and_lets_the_supernode_choose_of_the_rest() -> None:
    scheduler = swarm({"a": bits_of(range(20)), "b": bits_of(range(10, 20))})
    scheduler.fill(2)
    fetches = scheduler.due(0.0)
    assert all(fetch.picked and len(fetch.sources) == 1 for fetch in fetches)
    by_peers = asked([fetch for fetch in fetches if fetch.sources[0] != "S"])
    assert by_peers.keys() == {"a", "b"} and by_peers["b"] <= set(range(10, 20)) and by_peers["a"] <= set(range(20))
    chosen = [fetch for fetch in fetches if fetch.sources[0] == "S"]
    assert chosen[0].any_of == ALL ^ bits_of(range(20)) and chosen[0].count > 0 and not chosen[0].chunks
    flying = [chunk for fetch in fetches for chunk in fetch.chunks]
    assert len(flying) == len(set(flying)), "nobody is asked for what another one was"


def test_what_a_source_chose_is_in_flight_from_then_on() -> None:
    scheduler = swarm()
    scheduler.fill(2)
    (fetch, *_) = scheduler.due(0.0)
    before = scheduler.flights.bulk_bytes
    scheduler.named(fetch, (7, 9))
    assert scheduler.flights.bulk_bytes != before
    scheduler.miss(2, offset(9), 1, 0.0)
    assert not [f for f in scheduler.due(0.0) if f.kind is Kind.DEMAND], "it is on its way"
    assert scheduler.landed(2, 7, 0.1) == Landed(None, False)
    assert scheduler.landed(2, 9, 0.1) == Landed(0.1, False)
    scheduler.finished(fetch, 0.1, 0.01)


def test_what_a_source_chose_and_did_not_send_is_missing_again() -> None:
    scheduler = swarm()
    scheduler.fill(2)
    running = scheduler.due(0.0)
    scheduler.named(running[0], (7, 9))
    scheduler.landed(2, 7, 0.1)
    for fetch in running:
        scheduler.finished(fetch, 0.1, goes_on=True)
    assert scheduler.flights.bulk_bytes == 0
    scheduler.miss(2, offset(9), 1, 0.1)
    assert [f.chunks for f in scheduler.due(0.1) if f.kind is Kind.DEMAND] == [(9,)]


def test_a_few_missing_chunks_are_left_to_choose_from_once() -> None:
    scheduler = Scheduler(lambda: 0.5, swarm=True)
    scheduler.policy.join("S", SourceKind.SUPERNODE)
    scheduler.add(2, LAYER.index, [3])
    scheduler.fill(2)
    assert [fetch.count for fetch in scheduler.due(0.0)] == [1]
    assert scheduler.due(0.1) == []


def test_a_node_alone_with_a_supernode_fills_one_layer_after_the_other() -> None:
    scheduler = Scheduler(lambda: 0.5, swarm=True)
    scheduler.policy.join("S", SourceKind.SUPERNODE)
    for node in (2, 3, 4):
        scheduler.add(node, LAYER.index, range(20))
        scheduler.fill(node)
    first, second = scheduler.due(0.0)
    assert (first.node, second.node) == (2, 3), "it may choose the same chunks of a layer twice"
    scheduler.named(first, (0, 1))
    scheduler.landed(2, 0, 0.1)
    scheduler.landed(2, 1, 0.1)
    scheduler.finished(first, 0.1, 0.001)
    (third,) = scheduler.due(0.1)
    assert third.node == 2 and third.any_of == bits_of(range(2, 20))


def test_a_trace_is_spread_over_who_has_it() -> None:
    scheduler = swarm({"a": bits_of(range(4)), "b": bits_of(range(4, 8))})
    scheduler.trace([(2, chunk) for chunk in range(12)])
    fetches = scheduler.due(0.0)
    assert asked(fetches)["a"] == set(range(4)) and asked(fetches)["b"] == set(range(4, 8))
    (choice,) = [fetch for fetch in fetches if fetch.any_of]
    assert choice.any_of == bits_of(range(8, 12)) and choice.kind is Kind.TRACE


def test_nothing_is_guessed_in_a_line_on_slow_links() -> None:
    scheduler = swarm({"a": ALL, "b": ALL})
    scheduler.flights.line.served("b", 0.0)
    scheduler.window.rate_bytes_per_s = 1e6
    scheduler.trace([(2, chunk) for chunk in range(12)])
    assert scheduler.due(0.0) == []
    assert scheduler.wake_at(0.0) == pytest.approx(KEPT_S)
    assert asked(scheduler.due(KEPT_S)).keys() == {"a", "b"}
    scheduler = swarm({"a": ALL, "b": ALL})
    scheduler.flights.line.served("b", 0.0)
    scheduler.trace([(2, chunk) for chunk in range(12)])
    assert asked(scheduler.due(0.0)).keys() == {"a", "b"}, "on fast links it is"


def test_on_slow_links_a_crowd_stays_with_the_nearest_that_has_what_is_missed() -> None:
    """Not with whom it was served by first, who may have several behind it."""

    def asked_for(chunk: int, now: float) -> tuple[object, tuple[object, ...]]:
        scheduler.miss(2, offset(chunk), 4096, now)
        (fetch,) = scheduler.due(now)
        land(scheduler, fetch, now)
        return fetch.before, fetch.sources

    scheduler = swarm({"n1": bits_of([2]), "n3": bits_of([1, 3]), "n6": ALL, "n5": ALL}, me="n4")
    scheduler.window.rate_bytes_per_s = 1e6
    scheduler.flights.line.served("n1", 0.0)
    assert asked_for(1, 0.0) == ("n3", ("n3", "n6", "n5", "S", "n1"))
    scheduler.window.rate_bytes_per_s = 1e6
    assert asked_for(2, 1.0)[0] == "n1", "nobody between has it"
    scheduler.window.rate_bytes_per_s = 1e9
    assert asked_for(3, 2.0)[0] == "n1", "on fast links nobody goes short"
    scheduler.window.rate_bytes_per_s = 1e6
    before, sources = asked_for(4, KEPT_S)
    assert before is None and sources[:2] == ("n6", "n5")
    assert not scheduler.flights.line.is_crowd(CROWD_S)


@pytest.mark.parametrize(("rate", "hedges"), [(1e9, 1), (1e6, 0)])
def test_on_slow_links_a_crowd_asks_nobody_twice(rate: float, hedges: int) -> None:
    scheduler = swarm({"a": ALL, "b": ALL})
    scheduler.flights.line.served("c", 0.0)
    scheduler.window.rate_bytes_per_s = rate
    scheduler.miss(2, offset(1), 4096, KEPT_S)
    (first,) = scheduler.due(KEPT_S)
    assert first.before is None
    assert sum(fetch.is_hedge for fetch in scheduler.due(KEPT_S + SILENCE_S / 2)) == hedges


def test_what_comes_as_fill_is_asked_for_again_for_a_reader_on_slow_links_too() -> None:
    """Fill stands back for all that is urgent."""
    scheduler = swarm({"a": ALL, "b": ALL})
    scheduler.flights.line.served("c", 0.0)
    scheduler.window.rate_bytes_per_s = 1e6
    scheduler.fill(2)
    fills = scheduler.due(KEPT_S)
    chunk = fills[0].chunks[0]
    scheduler.miss(2, offset(chunk), 4096, KEPT_S)
    hedges = [fetch for fetch in scheduler.due(KEPT_S + 10) if fetch.is_hedge]
    assert [fetch.chunks for fetch in hedges] == [(chunk,)] and fills[0].kind is Kind.FILL


def test_a_trace_whose_sources_have_enough_to_do_goes_on_when_one_is_done() -> None:
    scheduler = swarm({"a": ALL}, supernodes=())
    scheduler.trace([(2, chunk) for chunk in range(40)])
    done: list[int] = []
    running = scheduler.due(0.0)
    while running:
        fetch = running.pop(0)
        done += fetch.chunks
        land(scheduler, fetch, 0.0)
        running += scheduler.due(0.0)
    assert done == list(range(40))


def test_a_failing_peer_costs_the_layer_no_pause_and_a_failing_supernode_no_peer() -> None:
    scheduler = swarm({"a": ALL, "b": ALL})
    scheduler.trace([(2, 0), (2, 1)])
    first = scheduler.due(0.0)
    assert {fetch.sources[0] for fetch in first} <= {"a", "b"}
    for fetch in first:
        scheduler.policy.failed(fetch.sources[0], 0.0)
        scheduler.finished(fetch, 0.0, goes_on=True)
    failed = {fetch.sources[0] for fetch in first}
    again = scheduler.due(0.0)
    assert again and not failed & {fetch.sources[0] for fetch in again}
    assert not scheduler.flights.layers[2].backoff.failures


def test_with_every_source_failing_there_is_a_pause_and_an_end_of_it() -> None:
    scheduler = swarm()
    scheduler.fill(2)
    now, asked_at = 0.0, []
    while now < 10.0:
        for fetch in scheduler.due(now):
            asked_at.append(now)
            scheduler.policy.failed("S", now)
            scheduler.finished(fetch, now, goes_on=True)
        wake = scheduler.wake_at(now)
        assert wake is not None and wake > now
        now = wake
    assert 5 <= len(asked_at) <= 30


def test_a_source_without_the_layer_is_not_asked_again_at_once() -> None:
    scheduler = swarm()
    scheduler.fill(2)
    for fetch in scheduler.due(0.0):
        scheduler.finished(fetch, 0.0)  # NotFoundError: nobody's fault, and nothing that the policy would know
    assert scheduler.due(0.0) == []
    assert 0.05 <= (scheduler.wake_at(0.0) or 0.0) <= 0.2


def test_a_late_answer_to_a_reader_is_asked_for_elsewhere_and_only_once() -> None:
    scheduler = swarm({"a": ALL})
    scheduler.miss(2, offset(3), 1, 0.0)
    (slow,) = scheduler.due(0.0)
    assert slow.sources[:2] == ("a", "S")
    late = scheduler.wake_at(0.0)
    assert late is not None and late == pytest.approx(0.02)
    assert scheduler.due(0.01) == []
    (hedge,) = scheduler.due(late)
    assert (hedge.chunks, hedge.sources, hedge.is_hedge) == ((3,), ("S",), True)
    assert scheduler.due(5.0) == []
    assert scheduler.landed(2, 3, 5.0).waited_s == 5.0
    scheduler.finished(hedge, 5.0, 0.001)
    scheduler.finished(slow, 6.0)
    assert scheduler.in_flight(2) == 0 and scheduler.incomplete() == [2]


def test_a_reader_waits_for_a_few_sources_and_then_for_others() -> None:
    scheduler = swarm({f"p{number}": ALL for number in range(20)}, supernodes=())
    scheduler.miss(2, offset(3), 1, 0.0)
    (fetch,) = scheduler.due(0.0)
    assert len(fetch.sources) == SOURCES_MAX
    for source in fetch.sources:
        scheduler.policy.failed(source, 0.0)
    scheduler.finished(fetch, 0.0)
    (again,) = scheduler.due(0.06)
    assert not set(again.sources) & set(fetch.sources)


def test_a_hedge_that_fails_leaves_the_first_request_alone() -> None:
    scheduler = swarm({"a": ALL})
    scheduler.miss(2, offset(3), 1, 0.0)
    (slow,) = scheduler.due(0.0)
    (hedge,) = scheduler.due(0.02)
    scheduler.finished(hedge, 0.03, goes_on=True)
    assert scheduler.due(0.03) == [], "the first one may still bring it"
    scheduler.finished(slow, 0.04)
    assert scheduler.due(0.04) == [], "all sources were tried: the layer rests"
    assert [fetch.chunks for fetch in scheduler.due(0.2)] == [(3,)]


def test_a_layer_removed_while_a_chunk_is_asked_of_two_is_as_new_when_it_comes_again() -> None:
    scheduler = swarm({"a": ALL})
    scheduler.miss(2, offset(3), 1, 0.0)
    (slow,) = scheduler.due(0.0)
    (hedge,) = scheduler.due(0.02)
    scheduler.remove(2)
    scheduler.finished(hedge, 0.03)
    scheduler.finished(slow, 0.03)
    scheduler.add(2, LAYER.index, range(COUNT))
    scheduler.miss(2, offset(3), 1, 1.0)
    (fetch,) = scheduler.due(1.0)
    scheduler.finished(fetch, 1.01)
    assert [again.chunks for again in scheduler.due(1.2)] == [(3,)], "it is not in flight for ever"


def test_a_reader_who_comes_while_fill_brings_the_chunk_too_slowly_is_helped() -> None:
    scheduler = swarm({"a": bits_of([3]), "b": bits_of([3])}, supernodes=())
    scheduler.fill(2)
    (fill,) = scheduler.due(0.0)
    scheduler.miss(2, offset(3), 1, 0.0)
    assert scheduler.due(0.0) == []
    (hedge,) = scheduler.due(0.02)
    assert hedge.is_hedge and hedge.sources[0] != fill.sources[0]


def test_what_somebody_waits_for_at_a_silent_source_is_asked_of_another_one_whatever_the_budget() -> None:
    scheduler = swarm({"a": ALL})
    scheduler.policy.hedged()
    scheduler.want(2, range(8))
    scheduler.miss(2, offset(20), 1, 0.0)
    started = scheduler.due(0.0)
    assert {(fetch.kind, fetch.sources[0]) for fetch in started} == {(Kind.NOW, "a"), (Kind.DEMAND, "a")}
    assert scheduler.policy.hedge_at(0.0, 0.0) is None
    assert scheduler.wake_at(0.0) == SILENCE_S
    helped = scheduler.due(SILENCE_S)
    assert {(fetch.kind, fetch.sources, len(fetch.chunks)) for fetch in helped} == {
        (Kind.NOW, ("S",), 8),
        (Kind.DEMAND, ("S",), 1),
    }
    assert scheduler.due(0.9) == [], "once"
    scheduler.miss(2, offset(30), 1, 0.9)
    (later,) = scheduler.due(0.9)
    assert later.sources == ("S", "a"), "who is silent is asked last"
    for fetch in helped:
        land(scheduler, fetch, 1.0)
    for fetch in started:
        scheduler.finished(fetch, 5.0, goes_on=True)
    assert not scheduler.flights._extra


def test_fill_does_not_wait_for_a_silent_source_whose_chunks_others_brought() -> None:
    scheduler = swarm({"a": ALL})
    scheduler.want(2, range(8))
    scheduler.fill(2)
    (silent,) = scheduler.due(0.0)
    assert (silent.kind, silent.sources) == (Kind.NOW, ("a",)) and scheduler.due(0.1) == [], "something starts"
    (helped,) = scheduler.due(SILENCE_S)
    land(scheduler, helped, 0.6, chunks=helped.chunks[1:])
    assert not [fetch for fetch in scheduler.due(0.7) if fetch.kind is Kind.FILL], "a job still waits"
    scheduler.landed(2, helped.chunks[0], 0.8)
    assert {fetch.kind for fetch in scheduler.due(0.8)} == {Kind.FILL}


def test_nobody_is_asked_a_second_time_who_is_not_known_to_have_it() -> None:
    scheduler = swarm({"a": bits_of([3]), "b": bits_of([4])}, supernodes=())
    scheduler.miss(2, offset(3), 1, 0.0)
    (slow,) = scheduler.due(0.0)
    assert slow.sources[0] == "a"
    assert scheduler.due(0.02) == [] and scheduler.due(SILENCE_S) == []
    assert scheduler.policy.hedge_at(0.0, 0.0) is not None, "the budget is for those who have it"
    scheduler.policy.got("b", 2, 1 << 3)
    (helped,) = scheduler.due(SILENCE_S)
    assert helped.sources == ("b",)


def test_a_source_that_sends_is_not_silent_however_long_it_takes() -> None:
    scheduler = swarm({"a": ALL})
    scheduler.want(2, range(8))
    assert len(scheduler.due(0.0)) == 1
    for chunk in range(7):
        scheduler.policy.came("a", 1000, 0.4 * (chunk + 1))
        scheduler.landed(2, chunk, 0.4 * (chunk + 1))
        assert scheduler.due(0.4 * (chunk + 1)) == []
    (helped,) = scheduler.due(0.4 * 7 + SILENCE_S)
    assert helped.chunks == (7,)


def test_one_source_gets_few_requests_of_a_job_at_once() -> None:
    scheduler = swarm({"a": ALL})
    scheduler.want(2, range(40))
    assert [len(fetch.chunks) for fetch in scheduler.due(0.0)] == [8, 8]
    assert scheduler.due(0.0) == []


def test_a_lone_node_hedges_nothing() -> None:
    scheduler = Scheduler(lambda: 0.5)
    for name in "ST":
        scheduler.policy.join(name, SourceKind.SUPERNODE)
    scheduler.window.answered(0, 0.0, 0.0001, 0.001)
    scheduler.add(2, LAYER.index, range(COUNT))
    scheduler.miss(2, offset(3), 1, 0.0)
    (fetch,) = scheduler.due(0.0)
    assert set(fetch.sources) == {"S", "T"} and not fetch.picked
    assert scheduler.wake_at(0.0) == SILENCE_S  # to see whether its source lives
    assert scheduler.due(SILENCE_S) == [] and scheduler.troubled(SILENCE_S) == [fetch.sources[0]]
    assert scheduler.wake_at(SILENCE_S) == 60.0


def test_the_last_chunks_are_asked_of_a_second_source_if_the_first_is_slow() -> None:
    scheduler = Scheduler(lambda: 0.5, swarm=True)
    scheduler.add(2, LAYER.index, [3, 4])
    for name in "ab":
        scheduler.policy.join(name, SourceKind.PEER)
        scheduler.policy.opened(name, 2, ALL)
        prove(scheduler, name)
    scheduler.fill(2)
    first = scheduler.due(0.0)
    assert sorted(chunk for fetch in first for chunk in fetch.chunks) == [3, 4]
    assert scheduler.due(ENDGAME_S / 2) == []
    assert scheduler.wake_at(ENDGAME_S / 2) == pytest.approx(ENDGAME_S)
    second = scheduler.due(ENDGAME_S)
    assert sorted(chunk for fetch in second for chunk in fetch.chunks) == [3, 4]
    sources = {chunk: [fetch.sources[0] for fetch in first + second if chunk in fetch.chunks] for chunk in (3, 4)}
    assert all(len(set(both)) == 2 for both in sources.values())
    assert scheduler.due(9.0) == [], "not of a third"
    landed = [one for fetch in second for one in land(scheduler, fetch, 9.1)]
    assert [one.completes for one in landed] == [False, True]
    for fetch in first:
        land(scheduler, fetch, 9.2)
    assert scheduler.flights.bulk_bytes == 0 and scheduler.due(10.0) == []


def test_a_busy_link_brings_the_last_chunks_no_sooner_by_a_second_copy() -> None:
    scheduler = Scheduler(lambda: 0.5, swarm=True)
    scheduler.add(2, LAYER.index, [3, 4])
    for name in "ab":
        scheduler.policy.join(name, SourceKind.PEER)
        scheduler.policy.opened(name, 2, ALL)
        prove(scheduler, name)
    scheduler.window.received(100_000, 0)
    scheduler.window.answered(0, 0.0, 0.001, 1.001)  # 100 kB/s
    scheduler.fill(2)
    scheduler.due(0.0)
    link_s = scheduler.flights.bulk_bytes / 100_000
    assert link_s > 2 * ENDGAME_S
    assert scheduler.due(0.9 * link_s) == []
    assert scheduler.wake_at(0.9 * link_s) == pytest.approx(link_s)
    assert sorted(chunk for fetch in scheduler.due(link_s) for chunk in fetch.chunks) == [3, 4]


def test_no_chunk_is_asked_for_twice_while_another_layer_lacks_chunks() -> None:
    scheduler = Scheduler(lambda: 0.5, swarm=True)
    scheduler.add(2, LAYER.index, [3, 4])
    scheduler.add(3, LAYER.index, [5])
    for name in "ab":
        scheduler.policy.join(name, SourceKind.PEER)
        scheduler.policy.opened(name, 2, ALL)
        prove(scheduler, name)
    scheduler.fill(2)
    scheduler.fill(3)
    assert {fetch.node for fetch in scheduler.due(0.0)} == {2}
    assert scheduler.due(ENDGAME_S) == [], "nobody has the other layer's chunk yet"
    scheduler.policy.opened("a", 3, ALL)
    first, *seconds = scheduler.due(ENDGAME_S)
    assert (first.node, first.chunks) == (3, (5,))
    assert sorted(chunk for fetch in seconds for chunk in fetch.chunks) == [3, 4]


def test_the_window_bounds_bytes_over_all_sources() -> None:
    scheduler = swarm(dict.fromkeys("abcdefgh", ALL))
    scheduler.trace([(2, chunk) for chunk in range(40)])
    scheduler.due(0.0)
    most = scheduler.window.size_bytes + scheduler.window.estimate(8 * 262144)
    assert 0 < scheduler.flights.bulk_bytes <= most


def test_a_near_source_does_not_narrow_the_window_of_a_far_one() -> None:
    window = swarm().window
    now = 0.0
    for _ in range(40):
        for source, round_trip in (("near", 0.0002), ("far", 0.08)):
            before = window.delivered
            window.received(2_000_000, 2_000_000)
            window.answered(before, now, round_trip, now + 0.1, source)
            now += 0.1
    assert window.round_trip_s == pytest.approx(0.0001)
    assert window.size_bytes == pytest.approx(2 * 20e6 * 0.08, rel=0.01)


def test_chunks_that_another_layer_has_are_no_sources_business() -> None:
    scheduler = swarm({"a": ALL})
    scheduler.copyable(2, range(5))
    scheduler.fill(2)
    (copied, *others) = scheduler.due(0.0)
    assert copied.chunks == tuple(range(5)) and not copied.picked, "copied; all sources stand behind it"
    assert not {chunk for fetch in others for chunk in fetch.chunks} & set(range(5))
    scheduler = swarm({"a": ALL})
    scheduler.copyable(2, [1])
    scheduler.want(2, [0, 1, 2])
    assert sorted((fetch.chunks, fetch.picked) for fetch in scheduler.due(0.0)) == [((0, 2), True), ((1,), False)]


def test_bulk_keeps_to_its_rate() -> None:
    rate = 1_000_000.0
    scheduler = swarm({"a": ALL}, pace=Pace(bytes_per_s=rate))
    scheduler.fill(2)
    now, size, running = 0.0, 0, []
    while now < 3.0:
        running += scheduler.due(now)
        while running:
            fetch = running.pop()
            size += sum(scheduler.window.estimate(LAYER.index.size(chunk)) for chunk in fetch.chunks)
            land(scheduler, fetch, now)
        now = scheduler.wake_at(now) or 99.0
    assert rate * (3.0 - BURST_S) <= size <= rate * (3.0 + BURST_S) + scheduler.window.estimate(8 * 262144)


def test_readers_do_not_wait_for_the_rate() -> None:
    scheduler = swarm({"a": ALL}, pace=Pace(bytes_per_s=1.0))
    scheduler.trace([(2, 0)])
    scheduler.due(0.0)
    scheduler.miss(2, offset(30), 1, 0.0)
    assert [fetch.kind for fetch in scheduler.due(0.0)] == [Kind.DEMAND]


def test_fill_begins_after_its_delay_and_jitter_unless_it_is_drained() -> None:
    scheduler = swarm({"a": ALL}, pace=Pace(delay_s=3.0, jitter_s=4.0))
    scheduler.fill(2, 10.0)
    assert scheduler.due(14.9) == []
    assert scheduler.wake_at(14.9) == pytest.approx(15.0)
    scheduler.fill(2, 14.0)
    assert scheduler.due(15.0), "asked for again: it begins no later"
    scheduler = swarm({"a": ALL}, pace=Pace(delay_s=3.0))
    scheduler.fill(2, 10.0)
    scheduler.drain(True)
    assert scheduler.due(10.0)


def test_a_layer_grows_until_its_seal() -> None:
    scheduler = Scheduler(lambda: 0.5, swarm=True, gate=FillGate())
    scheduler.policy.join("a", SourceKind.PEER)
    scheduler.policy.opened("a", 2, ALL)
    prove(scheduler, "a")
    assert scheduler.add(2, MadeLayer([1]).index, [], sealed=False) is False
    scheduler.fill(2)
    assert scheduler.due(0.0) == []
    scheduler.flights.layers[2].layout = LAYER.index
    scheduler.grow(2, [2, 5], 6)
    landed = [one for fetch in scheduler.due(0.0) for one in land(scheduler, fetch, 0.0)]
    assert [one.completes for one in landed] == [False, False]
    assert scheduler.seal(2) is True
    assert scheduler.incomplete() == []

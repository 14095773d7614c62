"""Whom a node asks: rule by rule, with a clock and a random source of the test's own."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest

from agent.swarm.bitset import bits_of
from agent.swarm.neighbours import FILL_SILENCE_S, SILENCE_S
from agent.swarm.policy import Ask, Limits, Policy, SourceKind

LAYER = 7
CHUNK = 100_000


def _policy(
    have: dict[str, list[int]] | None = None, supernodes: tuple[str, ...] = ("S",), limits: Limits | None = None
) -> Policy:
    policy = Policy(random.Random(4).random, limits or Limits())
    for name in supernodes:
        policy.join(name, SourceKind.SUPERNODE)
    for peer, chunks in (have or {}).items():
        policy.join(peer, SourceKind.PEER)
        policy.opened(peer, LAYER, bits_of(chunks))
        _prove(policy, peer)
    return policy


def _prove(policy: Policy, peer: str, now: float = 0.0) -> None:
    """It gave a chunk once, in no time: nothing is known of its rate."""
    policy.started(peer, 1, CHUNK, False, now)
    policy.came(peer, CHUNK, now)
    policy.ended(peer, CHUNK, False, now)


def _serve(policy: Policy, source: Hashable, took_s: float, now: float, chunks: int = 1, rtt_s: float = 0.001) -> None:
    """One request, answered in full at `now`."""
    policy.started(source, chunks, chunks * CHUNK, False, now - took_s)
    policy.answered(source, rtt_s, 0, now - took_s + rtt_s, urgent=False)
    policy.came(source, chunks * CHUNK, now, chunks)
    policy.ended(source, chunks * CHUNK, False, now)


# Demand.


def test_demand_goes_to_the_neighbour_that_answers_first_then_to_the_supernode() -> None:
    policy = _policy({"far": [1], "near": [1], "empty": []})
    policy.answered("far", 0.02, 0, 0.0)
    policy.answered("near", 0.001, 0, 0.0)
    policy.answered("S", 0.0001, 0, 0.0)
    assert policy.urgent(LAYER, [1], 0.0) == ["near", "far", "S", "empty"]
    assert policy.urgent(LAYER, [1], 0.0, without=["near"]) == ["far", "S", "empty"]


def test_in_a_crowd_demand_goes_to_neighbours_in_another_order_but_for_those_in_trouble() -> None:
    policy = _policy({"far": [1], "near": [1], "failing": [1], "empty": []})
    policy.answered("far", 0.02, 0, 0.0)
    policy.answered("near", 0.001, 0, 0.0)
    policy.failed("failing", 0.0)
    turns = {"failing": 0, "far": 1, "empty": 2, "S": 3, "near": 4}
    assert policy.urgent(LAYER, [1], 0.0, turns=lambda sources, now: turns)[:3] == ["far", "near", "S"]
    assert policy.holders(LAYER, [1], 0.0) == ["far", "near"]
    assert policy.holders(LAYER, [1, 2], 0.0) == policy.holders("another", [1], 0.0) == []


def test_who_stands_back_with_fill_is_not_late_for_a_reader() -> None:
    policy = _policy({"a": [1]})
    policy.started("a", (1,), CHUNK, False, 0.0)
    assert policy.is_in_order("a", FILL_SILENCE_S - 0.1) and not policy.is_in_order("a", FILL_SILENCE_S)
    policy.started("a", (1,), CHUNK, True, FILL_SILENCE_S)
    assert policy.late_at("a", 0.0) == FILL_SILENCE_S + SILENCE_S, "from when somebody waits for it"
    policy.started("a", (1,), CHUNK, True, FILL_SILENCE_S + SILENCE_S)
    assert policy.late_at("a", 0.0) == FILL_SILENCE_S + SILENCE_S, "a second reader changes nothing"


def test_who_waits_for_what_it_is_asked_for_is_not_late() -> None:
    policy = _policy({"a": [1]})
    policy.started("a", (1,), CHUNK, True, 0.0, 3.0)
    policy.started("a", (1,), CHUNK, True, 0.1)
    assert policy.is_in_order("a", 2.9) and not policy.is_in_order("a", 3.0)
    assert policy.late_at("a", 0.1) == SILENCE_S, "a reader of something else need not wait as long"
    policy.answered("a", 0.5, 0, 1.0)
    assert not policy.is_in_order("a", 1.0 + SILENCE_S), "what it waited for is here"
    for _ in range(2):
        policy.ended("a", CHUNK, True, 3.0)
    policy.started("a", (1,), CHUNK, True, 4.0)
    assert policy.late_at("a", 4.0) == 4.0 + SILENCE_S
    assert not policy.is_in_order("a", 4.0 + SILENCE_S)


def test_a_queue_makes_a_near_neighbour_far_until_it_is_sent() -> None:
    policy = _policy({"a": [1], "b": [1]})
    for peer, way in (("a", 0.001), ("b", 0.005)):
        _serve(policy, peer, CHUNK / 1e6, 1.0, rtt_s=way)
    assert policy.urgent(LAYER, [1], 1.0)[:2] == ["a", "b"]
    policy.answered("a", 0.001, 20_000, 1.0)  # 20 ms at 1 MB/s
    assert policy.urgent(LAYER, [1], 1.0)[:2] == ["b", "a"]
    assert policy.urgent(LAYER, [1], 1.03)[:2] == ["a", "b"]


def test_who_has_all_of_a_run_is_asked_before_the_supernode_and_who_has_some_after_it() -> None:
    policy = _policy({"some": [1], "all": [1, 2]})
    assert policy.urgent(LAYER, [1, 2], 0.0) == ["all", "S", "some"]


def test_failing_sources_are_asked_later_liars_after_them_and_none_is_left_out() -> None:
    policy = _policy({"a": [1, 2], "b": [1, 2]})
    policy.failed("a", 10.0)
    assert policy.urgent(LAYER, [1], 10.0) == ["b", "S", "a"]
    assert set(policy.urgent(LAYER, [1], 10.6)[:2]) == {"a", "b"}
    policy.failed("a", 10.0, retry_after_s=3.0)
    assert policy.lied("b", LAYER, 1, 12.0)
    assert policy.urgent(LAYER, [1], 12.0) == ["S", "a", "b"]
    policy.came("a", CHUNK, 12.0)
    assert policy.urgent(LAYER, [1], 12.5) == ["a", "S", "b"]


def test_with_nobody_known_to_have_it_everybody_is_worth_a_question() -> None:
    policy = _policy({"a": [], "b": [2]}, supernodes=())
    assert set(policy.urgent(LAYER, [1], 0.0)) == {"a", "b"}


def test_a_second_source_is_asked_late_and_seldom() -> None:
    policy = _policy({"a": [1]})
    assert policy.hedge_at(5.0, 5.0) == pytest.approx(5.02), "the floor, before answers are known"
    for number in range(100):
        policy.answered("a", 0.1 if number >= 90 else 0.001, 0, 1.0)
    assert policy.hedge_at(5.0, 5.0) == pytest.approx(5.1)
    assert policy.hedge_at(5.0, 6.0) == 6.0
    policy.hedged()
    assert policy.hedge_at(5.0, 5.0) is None, "one to begin with, then a share"
    for _ in range(19):
        policy.started("a", (1,), CHUNK, True, 5.0)
    assert policy.hedge_at(5.0, 5.0) is None
    policy.started("a", (1,), CHUNK, True, 5.0)
    policy.started("a", (1,), CHUNK, True, 5.0)
    assert policy.hedge_at(5.0, 5.0) is not None


# Fill.


def test_the_rarest_chunk_comes_first() -> None:
    policy = _policy({"a": [1, 2, 3], "b": [1, 2], "c": [1]}, supernodes=(), limits=Limits(run=1))
    seen = set()
    for _ in range(40):
        ask = policy.fill(LAYER, bits_of([1, 2, 3]), 0.0)
        assert ask is not None and len(ask.chunks) == 1
        seen.add((ask.source, ask.chunks[0]))
    assert seen == {("a", 3), ("b", 2), ("c", 1)}


def test_a_run_is_what_a_loop_over_all_chunks_would_choose() -> None:
    chance = random.Random(5)
    for _ in range(60):
        have = {peer: [chunk for chunk in range(40) if chance.random() < 0.3] for peer in "abcdef"}
        lacks = {chunk for chunk in range(40) if chance.random() < chance.choice((0.2, 0.9))}
        ask = _policy(have, supernodes=(), limits=Limits(run=24)).fill(LAYER, bits_of(lacks), 0.0)
        if ask is None:
            assert not lacks.intersection(*[{chunk for chunks in have.values() for chunk in chunks}])
            continue
        counts = {chunk: sum(chunk in chunks for chunks in have.values()) for chunk in range(40)}
        useful = lacks.intersection(have[str(ask.source)])  # of who has shown no rate yet, a fourth of a run
        rarest = {chunk for chunk in useful if counts[chunk] == min(counts[other] for other in useful)}
        assert len(ask.chunks) == len(set(ask.chunks)) == min(len(useful), 6) and useful.issuperset(ask.chunks)
        assert rarest.issuperset(ask.chunks) or rarest.issubset(ask.chunks)


def test_the_least_busy_is_asked_and_of_these_a_near_one() -> None:
    policy = _policy({"a": [1], "b": [1], "c": [1], "d": []}, supernodes=())
    policy.join("near", SourceKind.PEER, near=True)
    policy.opened("near", LAYER, bits_of([1]))
    _prove(policy, "near")
    _serve(policy, "a", CHUNK / 1e6, 1.0)

    def asked() -> set[Hashable]:
        return {ask.source for _ in range(40) if (ask := policy.fill(LAYER, 0b10, 1.0)) is not None}

    assert asked() == {"near"}
    policy.started("near", 1, CHUNK, False, 1.0)
    policy.answered("a", 0.001, 500_000, 1.0)
    assert asked() == {"b", "c"}, "idle ones, without a queue"
    policy.busy("b", 1.0)
    policy.failed("c", 1.0)
    assert asked() == {"near"}
    assert policy.lied("near", LAYER, 2, 1.0)
    assert asked() == {"a"}, "what is left"


def test_ties_are_broken_at_random() -> None:
    policy = _policy({"a": list(range(50))}, supernodes=(), limits=Limits(run=1))
    asks = [policy.fill(LAYER, bits_of(range(50)), 0.0) for _ in range(60)]
    assert len({ask.chunks for ask in asks if ask}) > 20


def test_what_nobody_near_has_the_supernode_chooses() -> None:
    policy = _policy({"a": [0, 1]})
    ask = policy.fill(LAYER, bits_of([0, 1, 2, 3]), 0.0)
    assert ask is not None and (ask.source, ask.chunks, ask.any_of) == ("S", (), 0b1100) and 1 <= ask.count <= 8


def test_with_the_supernode_busy_peers_serve_and_with_them_busy_the_supernode() -> None:
    policy = _policy({"a": [0, 1]})
    policy.busy("S", 0.0, 1.0)
    ask = policy.fill(LAYER, 0b1111, 0.5)
    assert ask is not None and ask.source == "a" and set(ask.chunks) <= {0, 1}
    policy.busy("a", 0.5, 10.0)
    assert policy.fill(LAYER, 0b1111, 0.9) is None
    assert policy.next_at(0.9) == 1.0
    ask = policy.fill(LAYER, 0b0011, 1.0)
    assert ask is not None and ask.source == "S" and ask.any_of == 0b0011


def test_a_busy_source_is_left_alone_longer_and_longer_until_it_answers() -> None:
    policy = _policy({}, supernodes=("S",))
    pauses = []
    now = 0.0
    for _ in range(12):
        policy.busy("S", now)
        at = policy.next_at(now)
        assert at is not None and policy.fill(LAYER, 1, at - 1e-9) is None and policy.fill(LAYER, 1, at) is not None
        pauses.append(at - now)
        now = at
    assert pauses[0] <= 0.03 and 2.5 <= pauses[-1] <= 7.5
    policy.answered("S", 0.001, 0, now)
    policy.busy("S", now)
    assert policy.next_at(now) <= now + 0.03  # type: ignore[operator]


def test_a_source_cannot_keep_a_node_waiting_for_hours() -> None:
    policy = _policy({})
    policy.busy("S", 0.0, 86400.0)
    assert policy.fill(LAYER, 0b1, policy.limits.busy_s[1] - 0.1) is None
    assert policy.fill(LAYER, 0b1, policy.limits.busy_s[1] + 0.1) is not None
    policy.waits("S", LAYER, 10.0, 86400.0)
    assert (policy.next_at(10.0) or 0.0) <= 10.0 + 1.5 * policy.limits.busy_s[1]


def test_requests_in_flight_are_few_in_all_and_at_a_source() -> None:
    policy = _policy({name: list(range(100)) for name in "abcdef"}, supernodes=())
    sources = []
    lacks = bits_of(range(100))
    while (ask := policy.fill(LAYER, lacks, 0.0)) is not None:
        sources.append(ask.source)
        lacks &= ~bits_of(ask.chunks)
        policy.started(ask.source, ask.chunks, CHUNK, False, 0.0)
    assert len(sources) == 6 == len(set(sources)), "other sources first"
    alone = _policy({"a": list(range(100))}, supernodes=())
    count = 0
    while (ask := alone.fill(LAYER, lacks, 0.0)) is not None:
        alone.started(ask.source, ask.chunks, CHUNK, False, 0.0)
        count += 1
    assert count == 2
    alone.ended("a", CHUNK, False, 0.1)
    assert alone.fill(LAYER, lacks, 0.1) is not None


@pytest.mark.parametrize(("round_trip_s", "most"), [(0.001, 2), (0.05, 4)])
def test_a_node_without_neighbours_keeps_more_requests_at_a_far_supernode(round_trip_s: float, most: int) -> None:
    policy = _policy()
    policy.answered("S", round_trip_s, 0, 9.0)
    count = 0
    while (ask := policy.fill(LAYER, bits_of(range(1000)), 10.0)) is not None:
        policy.started(ask.source, ask.count, ask.count * CHUNK, False, 10.0)
        count += 1
    assert count == most
    assert policy.is_full


@pytest.mark.parametrize(("neighbours", "most"), [("a", 2), ("abcdef", 1)])
def test_among_neighbours_a_node_leaves_the_supernode_to_others(neighbours: str, most: int) -> None:
    policy = _policy({name: [] for name in neighbours})
    count = 0
    while (ask := policy.fill(LAYER, bits_of(range(1000)), 10.0)) is not None:
        policy.started(ask.source, ask.count, ask.count * CHUNK, False, 10.0)
        count += 1
    assert count == most


@pytest.mark.parametrize(("bytes_per_s", "chunks"), [(0.2e6, 1), (0.9e6, 3), (1e9 / 8, 8)])
def test_a_run_of_a_peer_takes_about_400_ms(bytes_per_s: float, chunks: int) -> None:
    policy = _policy({"a": list(range(100))}, supernodes=())
    for i in range(20):
        _serve(policy, "a", CHUNK / bytes_per_s, 1.0 + i)
    ask = policy.fill(LAYER, bits_of(range(100)), 30.0)
    assert ask is not None and len(ask.chunks) == chunks


def test_a_run_of_the_supernode_is_shorter_for_the_others_are_to_get_something_too() -> None:
    policy = _policy({"a": []})
    for i in range(20):
        _serve(policy, "S", CHUNK / 12e6, 1.0 + i)
    ask = policy.fill(LAYER, bits_of(range(100)), 30.0)
    assert ask is not None and (ask.source, ask.count) == ("S", 2)


def test_what_no_neighbour_has_can_be_asked_for_alone() -> None:
    policy = _policy({"a": [0, 1, 2]})
    ask = policy.unseen(LAYER, 0b11111, 1.0)
    assert ask is not None and (ask.source, ask.any_of) == ("S", 0b11000)
    assert policy.unseen(LAYER, 0b111, 1.0) is None, "a neighbour has all of these"
    policy.waits("S", LAYER, 1.0, 0.1)
    assert policy.unseen(LAYER, 0b11111, 1.0) is None, "others got them just now"
    assert policy.unseen("a layer without neighbours", 0b11111, 1.0) is None


def test_a_node_is_full_until_a_request_ends() -> None:
    policy = _policy({"a": [0], "b": [0]})
    for _ in range(Limits().outstanding):
        assert not policy.is_full
        policy.started("a", 1, CHUNK, False, 1.0)
    assert policy.is_full
    policy.ended("a", CHUNK, False, 1.0)
    assert not policy.is_full


@pytest.mark.parametrize(("took_s", "expected"), [(0.2, Limits().outstanding_long), (0.01, Limits().outstanding)])
def test_where_a_whole_run_takes_long_more_requests_are_under_way(took_s: float, expected: int) -> None:
    peers = "abcdefgh"
    policy = _policy({peer: list(range(200)) for peer in peers})
    for number in range(32):
        _serve(policy, peers[number % 8], took_s, (number + 1) * took_s)
    lacks, now, begun = bits_of(range(200)), 33 * took_s, 0
    while (ask := policy.fill(LAYER, lacks, now)) is not None:
        policy.started(ask.source, ask.chunks, len(ask.chunks) * CHUNK, False, now)
        lacks ^= bits_of(ask.chunks)
        begun += 1
    assert begun == expected and policy.is_full


def test_near_neighbours_are_preferred_and_slow_ones_get_one_request_at_a_time() -> None:
    policy = Policy(random.Random(1).random, Limits())
    for name, near in (("near", True), ("far", False), ("slow", False), ("x", False)):
        policy.join(name, SourceKind.PEER, near=near)
        policy.opened(name, LAYER, 1)
        for i in range(10):
            _serve(policy, name, 10.0 if name == "slow" else 0.1, 100.0 * i + 50.0)
    asked = [ask.source for _ in range(200) if (ask := policy.fill(LAYER, 1, 2000.0))]
    assert asked.count("near") > asked.count("far")
    assert [row.state for row in policy.rows()] == ["ok", "ok", "slow", "ok"]
    for name in ("near", "far", "x"):
        policy.leave(name)
    alone = policy.fill(LAYER, 1, 2000.0)
    assert alone is not None and alone.source == "slow"
    policy.started("slow", (0,), CHUNK, False, 2000.0)
    assert policy.fill(LAYER, 1, 2000.0) is None


def test_the_last_chunks_are_asked_of_a_second_source_but_not_of_a_third() -> None:
    policy = _policy({"a": [1, 2], "b": [1, 2]}, supernodes=())
    assert policy.fill(LAYER, 0b110, 0.0, flying={1: ["a"], 2: ["b"]}) in (Ask("b", (1,)), Ask("a", (2,)))
    assert policy.fill(LAYER, 0b110, 0.0, flying={1: ["a", "b"], 2: ["b", "a"]}) is None


# Wrong bytes.


def test_a_rotten_chunk_of_the_only_supernode_costs_only_itself() -> None:
    policy = _policy({}, supernodes=("S", "T"))
    assert not policy.lied("S", LAYER, 1, 10.0)
    assert policy.urgent(LAYER, [1], 10.0) == ["T", "S"]
    policy.answered("T", 1.0, 0, 10.0)
    assert policy.urgent(LAYER, [2], 10.0) == ["S", "T"]
    ask = policy.fill(LAYER, 0b110, 10.0)
    assert ask is not None and ask.source == "S" and ask.any_of == 0b100


def test_several_different_lies_put_a_supernode_last_for_longer_and_longer() -> None:
    policy = _policy({}, supernodes=("S", "T"))
    policy.answered("T", 1.0, 0, 10.0)
    for _ in range(9):
        assert not policy.lied("S", LAYER, 1, 1000.0)
    assert not policy.lied("S", LAYER, 2, 1000.0)
    assert policy.urgent(LAYER, [9], 1000.0) == ["S", "T"], "two chunks, however often"
    now = 1000.0
    for chunk, expected in ((3, 1.0), (4, 2.0), (5, 4.0)):
        assert policy.lied("S", LAYER, chunk, now)
        assert policy.urgent(LAYER, [9], now + expected - 0.01) == ["T", "S"]
        now += expected
        assert policy.urgent(LAYER, [9], now) == ["S", "T"]
    assert not policy.lied("S", LAYER, 5, now), "the same lie again is no news"
    for chunk in range(3):
        policy.lied("S", LAYER, chunk, 3000.0)
    assert policy.urgent(LAYER, [9], 3001.0) == ["S", "T"], "old lies are forgotten"


def test_a_lying_peer_rests_at_once_and_is_out_after_three_lies() -> None:
    policy = _policy({"a": [1, 2, 3, 9], "b": [9]})
    assert policy.lied("a", LAYER, 1, 0.0)
    assert policy.urgent(LAYER, [9], 0.9) == ["b", "S", "a"]
    assert policy.lied("a", LAYER, 2, 1.0)
    assert policy.urgent(LAYER, [9], 2.9) == ["b", "S", "a"]
    assert policy.lied("a", LAYER, 3, 3.0)
    assert policy.urgent(LAYER, [9], 302.0) == ["b", "S", "a"]
    assert policy.urgent(LAYER, [9], 304.0)[-1] == "S"


def test_lies_under_way_when_a_peer_is_found_out_count() -> None:
    policy = _policy({"a": [1, 2, 3, 9], "b": [9]})
    assert policy.lied("a", LAYER, 1, 0.0)
    assert not policy.lied("a", LAYER, 2, 0.1)
    assert policy.urgent(LAYER, [9], 1.0)[0] == "a", "two chunks say little of the others"
    assert policy.lied("a", LAYER, 3, 1.0)
    assert policy.urgent(LAYER, [9], 300.9)[-1] == "a"
    policy = _policy({"a": [9], "b": [9]})
    assert [policy.lied("a", LAYER, chunk, 0.0) for chunk in (1, 2, 3)] == [True, False, False]
    assert policy.urgent(LAYER, [9], 299.9)[-1] == "a"


def test_a_peer_that_lacks_what_it_tells_to_have_rests_for_longer_and_longer() -> None:
    policy = _policy({"a": [1, 9], "b": [9]})
    assert not policy.denied("a", 0.0) and not policy.denied("a", 0.0), "an honest peer has just dropped a layer"
    assert policy.denied("a", 0.0) and not policy.denied("a", 0.1)
    assert policy.urgent(LAYER, [9], 0.9) == ["b", "S", "a"]
    policy.leave("a")
    policy.join("a", SourceKind.PEER)
    assert policy.denied("a", 1.0), "it comes again, and goes on"
    policy.opened("a", LAYER, bits_of([9]))
    assert policy.urgent(LAYER, [9], 2.9) == ["b", "S", "a"]
    assert policy.fill(LAYER, bits_of([9]), 1.1) == Ask("b", (9,))
    policy.leave("S")
    policy.closed("b", LAYER)
    assert policy.fill(LAYER, bits_of([9]), 1.1) == Ask("a", (9,)), "nobody else has it"
    policy.came("a", CHUNK, 3.0)
    assert policy.urgent(LAYER, [9], 3.0) == ["a", "b"]
    assert not policy.denied("a", 3.0), "the row is broken"
    policy.join("S", SourceKind.SUPERNODE)
    assert not any(policy.denied("S", 0.0) for _ in range(9)), "a supernode may not have a chunk yet"


# Trust.


def test_a_stranger_gets_two_small_requests_until_it_has_given_a_chunk_and_a_stained_one_a_single_chunk() -> None:
    policy = _policy({}, supernodes=())
    policy.join("a", SourceKind.PEER)
    policy.opened("a", LAYER, bits_of(range(40)))
    ask = policy.fill(LAYER, bits_of(range(40)), 0.0)
    assert ask is not None and len(ask.chunks) == 2
    assert policy.spread(LAYER, range(40), 0.0) == [Ask("a", (0, 1))]
    policy.started("a", ask.chunks, CHUNK, True, 0.0)
    policy.started("a", ask.chunks, CHUNK, False, 0.0)
    assert policy.fill(LAYER, bits_of(range(40)), 0.1) is None and policy.spread(LAYER, range(40), 0.1) == []
    policy.came("a", CHUNK, 0.2)
    policy.ended("a", CHUNK, True, 0.2)
    policy.ended("a", CHUNK, False, 0.2)
    assert len(policy.spread(LAYER, range(40), 0.2)) == 2
    policy.lied("a", LAYER, 50, 0.2)
    assert policy.spread(LAYER, range(40), 2.0) == [Ask("a", (0,))], "trust is lost with a lie"
    _prove(policy, "a", 2.0)
    policy.failed("a", 2.0)
    assert policy.spread(LAYER, range(40), 3.0) == [Ask("a", (0,))], "and with a failure"
    policy.started("a", (0,), CHUNK, False, 3.0)
    assert policy.spread(LAYER, range(40), 3.0) == [] and policy.fill(LAYER, 0b10, 3.0) is None


def test_a_stranger_that_is_asked_already_is_no_readers_first_choice() -> None:
    policy = _policy({})
    policy.join("a", SourceKind.PEER)
    policy.opened("a", LAYER, 0b110)
    assert policy.urgent(LAYER, [1], 0.0) == ["a", "S"]
    policy.started("a", (1,), CHUNK, True, 0.0)
    policy.started("a", (1,), CHUNK, True, 0.0)
    assert policy.urgent(LAYER, [2], 0.0) == ["S", "a"]


def test_the_last_chunks_are_asked_of_a_stranger_only_if_there_is_nobody_else() -> None:
    policy = _policy({})
    policy.join("a", SourceKind.PEER)
    policy.opened("a", LAYER, 0b10)
    assert policy.fill(LAYER, 0b10, 0.0, flying={1: ["b"]}) == Ask("S", (1,))
    assert policy.fill(LAYER, 0b10, 0.0, flying={1: ["S"]}) == Ask("a", (1,))


def test_a_peer_that_fails_is_left_alone_for_minutes_in_the_end() -> None:
    policy = _policy({"a": [1], "b": [1]})

    def pauses(source: str) -> list[float]:
        now, found = 0.0, []
        for _ in range(12):
            policy.failed(source, now)
            policy.failed(source, now)  # under way together
            found.append((policy.next_at(now) or now) - now)
            now += found[-1]
        return [round(pause, 1) for pause in found]

    assert pauses("a") == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 120.0, 120.0, 120.0, 120.0]
    assert policy.urgent(LAYER, [1], 400.0) == ["b", "S", "a"]
    policy.came("a", CHUNK, 400.0)
    assert policy.urgent(LAYER, [1], 400.0)[-1] == "S"
    assert max(pauses("S")) == 5.0, "of supernodes there may be no other"


def test_to_leave_and_to_come_again_shortens_no_pause_but_of_one_that_was_restarted() -> None:
    policy = _policy({"restarted": [1], "silent": [1]})

    def again(source: str) -> None:
        policy.leave(source)
        policy.join(source, SourceKind.PEER)
        policy.opened(source, LAYER, 0b10)

    for source, times in (("restarted", 2), ("silent", 3)):
        for now in [0.0, 0.6, 2.0][:times]:
            policy.failed(source, now)
        again(source)
    assert policy.urgent(LAYER, [1], 3.9) == ["restarted", "S", "silent"]
    policy.failed("silent", 4.0)
    assert policy.urgent(LAYER, [1], 7.9) == ["restarted", "S", "silent"], "it goes on where it was"
    policy.came("silent", CHUNK, 8.0)
    again("silent")
    policy.failed("silent", 8.0)
    assert policy.urgent(LAYER, [1], 8.6)[-1] == "S", "forgotten with a chunk"


def test_a_silent_source_gets_no_second_request() -> None:
    policy = _policy({"a": [1, 2]}, supernodes=())
    policy.started("a", (1,), CHUNK, False, 0.0)
    assert policy.fill(LAYER, 0b100, 0.1) == Ask("a", (2,))
    assert policy.fill(LAYER, 0b100, SILENCE_S) is None


def test_a_liar_that_comes_again_is_known() -> None:
    policy = _policy({"a": [1], "b": [1]})
    policy.lied("a", LAYER, 1, 0.0)
    policy.leave("a")
    policy.join("a", SourceKind.PEER)
    policy.opened("a", LAYER, 1)
    assert policy.urgent(LAYER, [1], 0.5) == ["b", "S", "a"]


def test_quarantined_sources_give_what_nobody_else_has() -> None:
    policy = _policy({"a": [1, 2], "b": [2]}, supernodes=())
    policy.lied("a", LAYER, 5, 0.0)
    assert policy.fill(LAYER, 0b110, 0.1) == Ask("b", (2,))
    assert policy.fill(LAYER, 0b010, 0.1) == Ask("a", (1,))
    assert policy.spread(LAYER, [1], 0.1) == [Ask("a", (1,))]
    policy.join("S", SourceKind.SUPERNODE)
    ask = policy.fill(LAYER, 0b010, 0.1)
    assert ask is not None and ask.source == "S"
    policy.busy("S", 0.1, 1.0)
    assert policy.fill(LAYER, 0b010, 0.2) is None, "a busy supernode is worth waiting for"
    for _ in range(3):
        policy.failed("S", 0.2)
    assert policy.fill(LAYER, 0b010, 0.2) == Ask("a", (1,)), "a dead one is not"
    policy.started("a", (1,), CHUNK, False, 0.2)
    assert policy.fill(LAYER, 0b010, 0.2) is None, "who lied is asked for one chunk at a time"


def test_three_liars_in_a_row_make_the_node_suspect_itself() -> None:
    policy = _policy({"a": [1], "b": [1], "c": [1]})
    for name in ("a", "a", "b", "b"):
        policy.lied(name, LAYER, 1, 0.0)
    assert not policy.suspects_itself
    policy.lied("c", LAYER, 1, 0.0)
    assert policy.suspects_itself
    policy.came("S", CHUNK, 0.0)
    assert not policy.suspects_itself


# A window of wanted chunks.


def test_a_window_is_spread_over_those_that_have_it() -> None:
    policy = _policy({"a": list(range(16)), "b": list(range(16))})
    for peer in "ab":
        _serve(policy, peer, 0.01, 1.0)
    asks = policy.spread(LAYER, list(range(16)), 1.0)
    assert sorted(chunk for ask in asks for chunk in ask.chunks) == list(range(16))
    assert {ask.source for ask in asks} == {"a", "b"}
    assert all(len(ask.chunks) <= 8 and list(ask.chunks) == sorted(ask.chunks) for ask in asks)


def test_of_what_nobody_has_the_supernode_chooses_unless_the_node_is_alone() -> None:
    asks = _policy({"a": [0]}).spread(LAYER, list(range(20)), 0.0)
    assert Ask("a", (0,)) in asks
    assert [(ask.source, ask.any_of, ask.count) for ask in asks if ask.any_of] == [("S", bits_of(range(1, 20)), 8)]
    alone = _policy({}).spread(LAYER, list(range(20)), 0.0)
    assert [ask.chunks for ask in alone] == [tuple(range(8)), tuple(range(8, 16)), tuple(range(16, 20))]


def test_a_window_waits_for_room() -> None:
    policy = _policy({"a": list(range(64))})
    asks = policy.spread(LAYER, list(range(64)), 0.0)
    assert [ask.source for ask in asks] == ["a", "a"]
    for ask in asks:
        policy.started(ask.source, ask.chunks, CHUNK, False, 0.0)
    assert policy.spread(LAYER, list(range(16, 64)), 0.0) == []
    policy.ended("a", CHUNK, False, 0.1)
    assert len(policy.spread(LAYER, list(range(16, 64)), 0.1)) == 1


def test_a_supernode_with_more_requests_than_it_should_have_gets_no_window() -> None:
    policy = _policy({"a": [0]})
    for _ in range(3):
        policy.started("S", 8, 8 * CHUNK, False, 0.0)
    assert policy.spread(LAYER, list(range(1, 200)), 0.0) == []


# Coming and going.


def test_a_node_whose_neighbours_left_is_alone_again() -> None:
    policy = _policy({name: [1] for name in "abcdef"})
    for name in "abcdef":
        policy.leave(name)
    assert [ask.chunks for ask in policy.spread(LAYER, [5, 6], 0.0)] == [(5, 6)]


def test_sources_that_left_are_not_asked_and_their_requests_no_longer_count() -> None:
    policy = _policy({"a": list(range(9)), "b": list(range(9))}, supernodes=())
    for _ in range(2):
        for name in "ab":
            policy.started(name, (1,), CHUNK, False, 0.0)
    assert policy.fill(LAYER, 1, 0.0) is None
    policy.leave("a")
    policy.ended("a", CHUNK, False, 0.0)
    policy.ended("b", CHUNK, False, 0.0)
    ask = policy.fill(LAYER, 1, 0.0)
    assert ask == Ask("b", (0,))
    policy.closed("b", LAYER)
    assert policy.fill(LAYER, 1, 0.0) is None
    policy.got("b", LAYER, 1)
    assert policy.fill(LAYER, 1, 0.0) == Ask("b", (0,))
    policy.got("a", LAYER, 1)
    assert policy.urgent(LAYER, [0], 0.0) == ["b"]


def test_sources_in_trouble_are_known_supernodes_first_until_they_serve() -> None:
    policy = Policy(lambda: 0.5)
    policy.join("S", SourceKind.SUPERNODE)
    for peer in ("a", "b", "c"):
        policy.join(peer, SourceKind.PEER)
    assert policy.troubled(0.0) == [] and policy.troubled_at(0.0) is None
    policy.failed("a", 0.0)
    policy.started("S", 1, 100, True, 0.0)
    policy.started("c", 1, 100, True, 0.0)
    policy.came("c", 100, 0.4)
    assert policy.troubled(0.4) == ["a"] and policy.troubled_at(0.4) == SILENCE_S
    assert policy.troubled(SILENCE_S) == ["S", "a"] and policy.troubled_at(SILENCE_S) == pytest.approx(0.4 + SILENCE_S)
    policy.ended("S", 100, True, 2.0)
    policy.ended("c", 100, True, 2.0)
    policy.revived("a", 2.0)
    assert policy.troubled(9.0) == [] and policy.troubled_at(9.0) is None
    assert {row.source: row.state for row in policy.rows()}["a"] == "ok"


def test_a_source_that_left_is_in_no_trouble() -> None:
    policy = Policy(lambda: 0.5)
    policy.join("a", SourceKind.PEER)
    policy.failed("a", 0.0)
    policy.leave("a")
    policy.failed("a", 0.0)
    assert policy.troubled(1.0) == []

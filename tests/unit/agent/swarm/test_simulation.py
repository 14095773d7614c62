"""The simulated swarm: its bound, its accounts, and that the policy's rules show in it."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from statistics import mean

import pytest

from agent.swarm.bitset import bits_of
from agent.swarm.simulation import Outcome, Scenario, drawing, simulate
from agent.swarm.simulation.graph import neighbours
from agent.swarm.simulation.seeder import Seeder
from agent.swarm.simulation.tracker import control

SMALL = Scenario(nodes=16, chunks=200, up_bits=25e6, down_bits=25e6, supernode_bits=25e6)
"""Equal links, where only nodes that help each other come near T*."""


@pytest.fixture(scope="module")
def small() -> Outcome:
    return simulate(SMALL)


def test_the_least_time_is_the_slowest_of_three() -> None:
    assert Scenario(nodes=10, chunks=10, chunk_bytes=125_000, supernode_bits=1e6).least_time_s() == pytest.approx(10)
    assert Scenario(nodes=10, chunks=10, chunk_bytes=125_000, down_bits=2e6).least_time_s() == pytest.approx(5)
    uplinks = Scenario(nodes=10, chunks=10, chunk_bytes=125_000, up_bits=1e6, supernode_bits=10e6, down_bits=1e9)
    assert uplinks.least_time_s() == pytest.approx(10 * 10e6 / 20e6)
    slow = replace(uplinks, down_bits=4e6, slow_share=0.5)
    assert slow.least_time_s() == pytest.approx(10 * 10e6 / 17.5e6)
    assert replace(slow, down_bits=2e6).least_time_s() == pytest.approx(10)
    assert replace(slow, down_bits=2e6).least_time_s(of_fast=True) == pytest.approx(10 * 10e6 / 17.5e6)
    assert Scenario(nodes=16, chunks=100).pipeline == pytest.approx(1.04)


def test_equal_nodes_come_near_the_least_time_and_spare_the_supernode(small: Outcome) -> None:
    others = [simulate(replace(SMALL, seed=seed)).ratio for seed in (2, 3)]
    assert small.ratio >= 1.0
    assert mean([small.ratio, *others]) <= 1.2
    assert 1.0 <= small.supernode_share <= 1.3


def test_every_byte_is_accounted_for(small: Outcome) -> None:
    tally, wanted = small.tally, SMALL.nodes * SMALL.layer_bytes
    assert len(tally.done_at) == SMALL.nodes and tally.done_at == sorted(tally.done_at)
    assert tally.supernode_bytes + tally.peer_bytes - tally.duplicate_bytes == wanted
    assert tally.duplicate_bytes <= 0.02 * wanted


def test_the_same_seed_gives_the_same_run_and_another_one_another(small: Outcome) -> None:
    assert simulate(SMALL).tally == small.tally
    late = replace(SMALL, nodes=20, chunks=60, cores=2)  # many last chunks are asked of two
    assert simulate(late).tally == simulate(late).tally
    assert simulate(replace(SMALL, seed=2)).tally.done_at != small.tally.done_at


def test_one_node_alone_takes_what_its_link_takes() -> None:
    alone = simulate(replace(SMALL, nodes=1))
    assert 1.0 <= alone.ratio <= 1.05
    assert alone.supernode_share == 1.0 and alone.tally.peer_bytes == 0


def test_a_fast_supernode_is_not_used_for_what_peers_can_do() -> None:
    fast = simulate(replace(SMALL, supernode_bits=250e6))
    assert fast.ratio <= 1.2 and fast.supernode_share <= 2.0


def test_without_super_seeding_the_supernode_sends_the_same_more_often() -> None:
    blind = simulate(replace(SMALL, super_seeding=False))
    assert blind.supernode_share > 1.02


def test_nodes_at_half_speed_do_not_hold_up_the_others() -> None:
    slow = simulate(replace(SMALL, nodes=40, slow_share=0.2))
    assert slow.ratio <= 1.2 and len(slow.tally.fast_done_at) == 32
    assert slow.fast_ratio <= 1.5


def test_a_supernode_that_dies_is_replaced() -> None:
    killed = simulate(replace(SMALL, supernode_dies_at=0.5))
    assert len(killed.tally.done_at) == SMALL.nodes
    gap = (SMALL.least_time_s() * killed.ratio) - SMALL.least_time_s()
    assert gap <= SMALL.replaced_after_s + 0.3 * SMALL.least_time_s()
    assert killed.origin_share == 2.0


def test_nodes_that_vanish_cost_the_others_little() -> None:
    dying = simulate(replace(SMALL, nodes=40, dying_share=0.2))
    assert dying.tally.died == 8 and len(dying.tally.done_at) >= 32
    assert dying.ratio <= 1.6


def test_lost_packets_cost_time() -> None:
    assert simulate(replace(SMALL, loss=0.05)).ratio > 1.05


def test_a_machine_that_all_nodes_share_takes_its_time(small: Outcome) -> None:
    fast = simulate(replace(SMALL, cores=2, request_cpu_s=1e-4, chunk_cpu_s=1e-4))
    slow = simulate(replace(SMALL, cores=2, request_cpu_s=0.0, chunk_cpu_s=0.008))
    least_s = SMALL.nodes * SMALL.chunks * 0.008 / 2
    assert fast.ratio <= small.ratio + 0.15
    assert least_s <= slow.seconds <= 1.2 * least_s


def test_what_the_shared_machine_spent_is_told_for_what_crossed_the_links() -> None:
    few = replace(SMALL, nodes=8, chunks=50, cores=2)
    shared = simulate(replace(few, request_cpu_s=0.0, chunk_cpu_s=0.001))
    assert shared.cpu_s_per_gb == pytest.approx(0.001 / (2 * SMALL.chunk_bytes / 1e9))
    dear = simulate(replace(few, request_cpu_s=0.001, chunk_cpu_s=0.001))
    assert dear.cpu_s_per_gb > 1.2 * shared.cpu_s_per_gb


def test_what_each_node_takes_first_crosses_the_supernodes_link(small: Outcome) -> None:
    late = simulate(replace(SMALL, head_bytes=500_000))
    extra_s = SMALL.nodes * 500_000 / (SMALL.supernode_bits / 8)
    assert 0.5 * extra_s <= late.seconds - small.seconds <= 1.2 * extra_s
    assert late.supernode_share >= small.supernode_share + SMALL.nodes * 500_000 / SMALL.layer_bytes - 0.1


def test_progress_is_watched_to_the_end() -> None:
    seen: list[tuple[float, float]] = []
    outcome = simulate(SMALL, lambda seconds, share: seen.append((seconds, share)))
    assert seen[0] == (0.0, 0.0) and seen[-1][1] > 0.95
    assert [share for _, share in seen] == sorted(share for _, share in seen)
    assert outcome.tally.done_at == simulate(SMALL).tally.done_at


def test_everybody_is_a_neighbour_where_they_are_few() -> None:
    linked = neighbours(10, [0] * 10, 16, 8, random.Random(1))
    assert all(others == [other for other in range(10) if other != node] for node, others in enumerate(linked))


def test_neighbours_know_each_other_and_some_are_near() -> None:
    zones = [node // 50 for node in range(400)]
    linked = neighbours(400, zones, 16, 8, random.Random(1))
    assert all(node in linked[other] for node, others in enumerate(linked) for other in others)
    assert all(18 <= len(others) <= 24 and node not in others for node, others in enumerate(linked))
    assert all(sum(zones[other] == zones[node] for other in others) >= 4 for node, others in enumerate(linked))


def test_the_supernode_sends_first_what_it_has_sent_least_and_nothing_twice_at_once() -> None:
    seeder = Seeder(6, random.Random(1).random)
    everything = bits_of(range(6))
    assert sorted(seeder.choose(everything, 4, 0.0) + seeder.choose(everything, 4, 0.1)) == list(range(6))
    assert seeder.choose(everything, 1, 0.2) == [], "others got all of them just now"
    assert sorted(seeder.choose(everything, 6, 5.0)) == list(range(6))
    assert sorted(seeder.choose(0b111, 3, 10.0)) == [0, 1, 2]
    assert set(seeder.choose(everything, 3, 20.0)) == {3, 4, 5}


def test_a_tracker_hears_a_join_and_a_report_every_five_seconds() -> None:
    short, long = control([1.0] * 100, 1000, 100, 24.0), control([46.0] * 100, 1000, 100, 24.0)
    assert short.tracker_messages == 400 and long.tracker_messages == 1400
    assert 1000 < short.tracker_bytes / 100 < 6000
    assert short.have_messages == 2400 and short.have_bytes > 2400 * 4 * 1000


def test_the_document_and_the_table_agree(small: Outcome) -> None:
    told = small.document()
    assert told["ratio"] == pytest.approx(told["seconds"] / told["least_seconds"])
    assert told["p50_ratio"] <= told["p99_ratio"] <= told["p999_ratio"] <= told["ratio"]
    assert told["completed"] == 16 and told["origin_share"] == 1.0
    assert told["tracker_bytes_per_node_per_s"] == pytest.approx(told["tracker_bytes_per_node"] / told["seconds"])
    table = small.table()
    assert f"{small.ratio:.3f} T*" in table and f"{small.supernode_share:.2f} F" in table


def test_the_drawing_is_a_rising_curve(small: Outcome) -> None:
    root = ElementTree.fromstring(drawing(small))
    tag = "{http://www.w3.org/2000/svg}"
    curve = root.find(f"{tag}polyline")
    assert curve is not None
    points = [tuple(map(float, point.split(","))) for point in curve.get("points", "").split()]
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
    assert points[0][1] - points[-1][1] == pytest.approx(320, abs=0.2)
    assert any("T* 6.40 s" in (text.text or "") for text in root.findall(f"{tag}text"))

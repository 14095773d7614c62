"""The bound that swarms are measured against."""

from __future__ import annotations

import pytest

from bench.swarm_bound import Link, least_seconds


def _equal(nodes: int, rate: float = 10.0, chunks: int = 1_000_000) -> float:
    link = Link(rate, rate)
    return least_seconds(1000, chunks, link, [link] * nodes)


def test_one_node_waits_for_the_link() -> None:
    assert _equal(1) == 100


@pytest.mark.parametrize("nodes", [2, 4, 8, 16, 1000])
def test_equal_links_need_the_time_of_one(nodes: int) -> None:
    assert _equal(nodes) == pytest.approx(100, rel=1e-4)


def test_few_chunks_make_the_pipeline_long() -> None:
    assert _equal(8, chunks=10) == pytest.approx(130)
    assert _equal(15, chunks=10) == pytest.approx(130)
    assert _equal(16, chunks=10) == pytest.approx(140)


def test_the_slowest_part_rules() -> None:
    fast, slow = Link(100, 100), Link(10, 10)
    assert least_seconds(1000, 10**9, slow, [fast] * 4) == pytest.approx(100)  # each byte leaves the seed once
    assert least_seconds(1000, 10**9, fast, [fast, fast, fast, slow]) == pytest.approx(100)  # each node gets it once
    assert least_seconds(1000, 10**9, Link(20, 20), [Link(5, 100)] * 4) == pytest.approx(100)  # all uplinks together

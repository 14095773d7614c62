"""Quantiles of Prometheus histograms."""

from __future__ import annotations

from math import inf

import pytest

from bench.histogram import merged, quantile


def test_several_are_added_up() -> None:
    one, other = ((1.0, 2), (2.0, 5), (inf, 6)), ((1.0, 0), (2.0, 1), (inf, 1))
    assert merged([one, other]) == ((1.0, 2), (2.0, 6), (inf, 7))
    assert merged([]) == ()


def test_a_quantile_lies_between_two_bounds() -> None:
    buckets = ((1.0, 50), (2.0, 100), (4.0, 200), (inf, 200))
    assert quantile(buckets, 0.25) == pytest.approx(1.0)
    assert quantile(buckets, 0.5) == pytest.approx(2.0)
    assert quantile(buckets, 0.75) == pytest.approx(3.0)
    assert quantile(buckets, 1.0) == pytest.approx(4.0)


def test_what_no_bound_holds_is_infinite() -> None:
    assert quantile(((1.0, 98), (inf, 100)), 0.99) == inf
    assert quantile(((1.0, 99), (inf, 100)), 0.99) == pytest.approx(1.0)


def test_nothing_measured_is_zero() -> None:
    assert quantile((), 0.99) == 0
    assert quantile(((1.0, 0), (inf, 0)), 0.99) == 0

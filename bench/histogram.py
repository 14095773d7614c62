"""Quantiles of Prometheus histograms, of several processes together. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

Buckets = tuple[tuple[float, int], ...]
"""(upper bound, how many were at most that), rising in both; the last bound is infinite."""


def merged(histograms: Iterable[Buckets]) -> Buckets:
    """All of them as one; they have the same bounds."""
    return tuple((same[0][0], sum(count for _, count in same)) for same in zip(*histograms, strict=True))


def quantile(buckets: Buckets, share: float) -> float:
    """What `share` of the values do not exceed, in a straight line between two bounds; 0 for no values.

    Above the last finite bound the answer is infinite: no goal is met by values that were not measured.
    """
    total = buckets[-1][1] if buckets else 0
    if not total:
        return 0.0
    rank = share * total
    for (lower, below), (upper, count) in pairwise(((0.0, 0), *buckets)):
        if count >= rank and count > below:
            return lower + (upper - lower) * (rank - below) / (count - below)
    raise ValueError(f"histogram: expected counts that rise to {total}, got {buckets}")

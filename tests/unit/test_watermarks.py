"""When a disk is too full, and by how much."""

from __future__ import annotations

from imgdist.space import Disk, Watermarks


def test_below_the_high_watermark_nothing_goes() -> None:
    marks = Watermarks(0.8, 0.7)
    assert marks.excess_bytes(Disk(1000, 200), 10_000) == 0
    assert marks.excess_bytes(Disk(1000, 199), 0) == 101, "down to the low one"


def test_a_limit_of_ones_own_counts_whatever_the_disk_has() -> None:
    marks = Watermarks(0.8, 0.7, max_bytes=30)
    assert marks.excess_bytes(Disk(1000, 999), 50) == 20
    assert marks.excess_bytes(Disk(1000, 999), 30) == 0
    assert marks.excess_bytes(Disk(1000, 100), 50) == 200

"""One line of a kind in a while; the next one says how many were left out."""

from __future__ import annotations

from imgdist.loglimit import LogLimit, left_out


def test_one_line_of_a_kind_in_a_period() -> None:
    limit = LogLimit(10.0)
    assert [limit.admit("a", now) for now in (0.0, 1.0, 9.9, 10.0, 10.1, 30.0)] == [0, None, None, 2, None, 1]
    assert limit.admit("b", 30.0) == 0


def test_kinds_are_bounded() -> None:
    limit = LogLimit(10.0)
    for kind in range(5000):
        limit.admit(kind, 0.0)
    assert limit.admit(4999, 1.0) is None
    assert limit.admit(0, 1.0) == 0, "forgotten long ago"


def test_what_a_line_says_of_those_before_it() -> None:
    assert (left_out(0), left_out(3)) == ("", " (3 more like this were not logged)")

"""What is remembered of tries that failed, until their chunk comes."""

from __future__ import annotations

from agent.transfer.attempts import Attempts


def test_failures_are_told_by_source_the_latest_first() -> None:
    attempts = Attempts()
    attempts.failed(2, (7, 8), "supernode a", "refused", 10.0)
    attempts.failed(2, (7,), "supernode a", "silent", 12.0)
    attempts.failed(2, (7,), "peer b", "wrong bytes", 11.0)
    assert attempts.tell(2, 7, 13.0) == [
        "supernode a failed 2 times, 1.0 s ago: silent",
        "peer b failed 1 times, 2.0 s ago: wrong bytes",
    ]
    assert attempts.tell(2, 8, 13.0) == ["supernode a failed 1 times, 3.0 s ago: refused"]
    assert attempts.tell(3, 7, 13.0) == []


def test_what_came_went_or_is_long_ago_is_forgotten() -> None:
    attempts = Attempts()
    attempts.failed(2, (1, 2), "a", "x", 0.0)
    attempts.failed(3, (1,), "a", "x", 0.0)
    attempts.came(2, 1)
    attempts.removed(3)
    assert not attempts.tell(2, 1, 1.0) and not attempts.tell(3, 1, 1.0)
    assert attempts.tell(2, 2, 1.0) and not attempts.tell(2, 2, 200.0)
    attempts.failed(2, (2,), "a", "x", 300.0)
    assert attempts.tell(2, 2, 300.0) == ["a failed 1 times, 0.0 s ago: x"]


def test_memory_is_bounded() -> None:
    attempts = Attempts()
    attempts.failed(2, range(10_000), "a", "x", 0.0)
    assert not attempts.tell(2, 0, 0.0) and attempts.tell(2, 9_999, 0.0)

"""Whom a node stays with in a crowd."""

from __future__ import annotations

from agent.transfer.line import KEPT_S, LACKED_S, SHUNNED_S, Line


def test_the_one_that_served_is_asked_first_until_it_does_not() -> None:
    line = Line()
    assert line.before(0.0) is None
    line.served("a", 0.0)
    line.left("b")
    assert line.before(1.0) == "a"
    line.left("a")
    assert line.before(1.0) is None


def test_a_line_is_forgotten_after_a_pause() -> None:
    line = Line()
    line.served("a", 0.0)
    line.served("a", 3.0)
    assert line.before(3.0 + KEPT_S / 2) == "a"
    assert line.before(3.0 + KEPT_S) is None


def test_one_that_lacks_something_now_and_then_is_stayed_with() -> None:
    line = Line()
    line.served("a", 0.0)
    for start in (0.0, 2 * LACKED_S):
        line.lacked("a", start)
        line.lacked("a", start + LACKED_S / 2)
        line.served("a", start + LACKED_S / 2)
    line.lacked("a", 10.0)
    line.lacked("b", 10.0 + LACKED_S)
    assert line.before(4.0) == "a"
    line.lacked("a", 10.0 + LACKED_S)
    assert line.before(4.0) is None


def test_one_that_served_late_is_not_stayed_with_for_a_while() -> None:
    line = Line()
    line.served("a", 0.0)
    line.shun("a", 1.0)
    line.served("a", 2.0)
    assert line.before(2.0) is None
    line.served("b", 2.0)
    assert line.before(2.0) == "b"
    line.served("a", 1.0 + SHUNNED_S)
    assert line.before(1.0 + SHUNNED_S) == "a"

"""Whom a node stays with in a crowd."""

from __future__ import annotations

from agent.transfer.line import CROWD_S, KEPT_S, LACKED_S, SHUNNED_S, Line


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


def test_who_has_nobody_before_it_asks_from_the_end_of_the_line_on() -> None:
    line = Line(lambda: "n4")
    turns = line.turns(["n6", "n1", "n5", "n3"], 0.0)
    assert sorted(turns, key=turns.__getitem__) == ["n6", "n5", "n3", "n1"]
    line.shun("n6", 0.0)
    turns = line.turns(["n6", "n1", "n5", "n3"], 1.0)
    assert sorted(turns, key=turns.__getitem__) == ["n5", "n3", "n1", "n6"]
    nobody = Line(lambda: "").turns(["n6", "n1"], 0.0)
    assert nobody == {"n6": 0, "n1": 1}, "it stands at the end itself"


def test_the_next_one_before_this_node_of_several() -> None:
    line = Line(lambda: "n4")
    assert line.next_to("n1", ["n2", "n6", "n3"], 0.0) == "n3"
    assert line.next_to("n3", ["n6"], 0.0) == "n3", "it may be on its way there"
    assert Line(lambda: "").next_to("n2", ["n6"], 0.0) == "n6", "whom nobody reaches stands at the end"
    line.shun("n3", 0.0)
    assert line.next_to("n1", ["n2", "n6", "n3"], 1.0) == "n2"
    assert line.next_to("n1", ["n2", "n6", "n3"], SHUNNED_S) == "n3"


def test_one_that_is_ahead_is_stayed_with_while_it_has_what_is_missed() -> None:
    line = Line(lambda: "n4")
    assert not line.stands_before("n6") and line.stands_before("n3")
    assert line.next_to("n6", ["n3", "n6"], 0.0) == "n6"
    assert line.next_to("n6", ["n3"], 0.0) == "n3"
    assert line.next_to("n6", ["n7"], 0.0) is None


def test_a_crowd_is_remembered_for_longer_than_the_one_before() -> None:
    line = Line()
    assert not line.is_crowd(0.0)
    line.served("a", 0.0)
    line.left("a")
    assert line.is_crowd(KEPT_S) and not line.is_crowd(CROWD_S)

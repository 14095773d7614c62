"""When sources in trouble are looked at, and what counts as a return."""

from __future__ import annotations

from agent.transfer.probing import AGAIN_S, CONTENT_S, SOURCES_MAX, Probing


def test_a_source_is_looked_at_once_at_a_time_until_it_answers() -> None:
    probing = Probing()
    assert probing.due(["a"], 0.0) == ["a"]
    assert probing.due(["a"], 5.0) == [] and list(probing.wake_times()) == []
    assert not probing.ended("a", False, 5.0)
    assert list(probing.wake_times()) == [5.0 + AGAIN_S]
    assert probing.due(["a"], 5.0) == [] and probing.due(["a"], 5.0 + AGAIN_S) == ["a"]
    assert probing.ended("a", True, 6.0), "it is back"
    assert probing.due(["a"], 6.0 + AGAIN_S) == [] and probing.due(["a"], 6.0 + CONTENT_S) == ["a"]
    assert not probing.ended("a", True, 9.0), "it was not away since"


def test_a_source_out_of_trouble_is_forgotten() -> None:
    probing = Probing()
    probing.due(["a", "b"], 0.0)
    probing.ended("a", False, 1.0)
    assert probing.due([], 5.0) == [] and list(probing.wake_times()) == []
    assert probing.due(["a"], 5.0) == ["a"] and not probing.ended("a", True, 5.0)
    assert not probing.ended("b", True, 6.0)


def test_not_everybody_is_looked_at() -> None:
    probing = Probing()
    assert probing.due(range(100), 0.0) == list(range(SOURCES_MAX))

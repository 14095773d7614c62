"""Which children hang, by the looks that are taken at them."""

from __future__ import annotations

import math

from agent.watchdog import LOOKS, Watchdog


def looks(dog: Watchdog, count: int, now: float) -> tuple[list[int], float]:
    """Who is found in so many looks, each a little late, and when that was."""
    found: list[int] = []
    for _ in range(count):
        now = dog.due + 0.01
        found += dog.look(now)
    return found, now


def test_who_never_gave_a_sign_of_life_need_not() -> None:
    assert Watchdog(20).due == math.inf
    assert Watchdog(20).look(1e9) == []


def test_who_gave_one_has_to_go_on() -> None:
    dog = Watchdog(20)
    dog.heard(7, 100.0)
    assert (dog.due, dog.look(104.0)) == (105.0, [])
    found, now = looks(dog, LOOKS, 100.0)
    assert (found, round(now)) == ([], 120)
    dog.heard(7, now)
    found, now = looks(dog, LOOKS + 1, now)
    assert (found, round(now), dog.due) == ([7], 145, math.inf)


def test_a_machine_that_stood_still_is_no_silence() -> None:
    dog = Watchdog(20)
    dog.heard(7, 0.0)
    assert dog.look(10_000.0) == []
    assert dog.due == 10_005.0


def test_who_has_ended_is_not_waited_for() -> None:
    dog = Watchdog(20)
    dog.heard(7, 0.0)
    dog.heard(8, 0.0)
    dog.forget(7)
    assert looks(dog, LOOKS + 1, 0.0)[0] == [8]


def test_without_patience_nobody_is_looked_at() -> None:
    dog = Watchdog(0)
    dog.heard(7, 0.0)
    assert dog.due == math.inf

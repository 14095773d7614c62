"""Events in the order of their times, whenever they are put in."""

from __future__ import annotations

import random
from typing import Any

from agent.swarm.simulation.agenda import Agenda


def _nothing(now: float, what: Any) -> None:
    """An event without a consequence."""


def test_events_come_by_time_and_those_of_one_time_as_they_were_put_in() -> None:
    agenda = Agenda()
    for number, time in enumerate((0.3, 0.00012, 0.3, 5.0, 0.00011, 0.3)):
        agenda.put(time, _nothing, number)
    assert [what for _, _, what in agenda] == [4, 1, 0, 2, 5, 3]


def test_what_is_put_in_meanwhile_takes_its_place() -> None:
    chance = random.Random(3)
    agenda = Agenda()
    seen: list[tuple[float, int]] = []
    put: list[tuple[float, int]] = []

    def put_in(time: float) -> None:
        put.append((time, len(put)))
        agenda.put(time, _nothing, put[-1])

    for _ in range(300):
        put_in(round(chance.random() / 100, 5))
    for now, _, what in agenda:
        assert isinstance(what, tuple) and what[0] == now
        seen.append(what)
        if len(put) < 2000:
            put_in(now + chance.choice((0.0, 0.00003, 0.0002, 0.004)))
    assert seen == sorted(put)


def test_without_events_there_is_nothing() -> None:
    assert list(Agenda()) == []

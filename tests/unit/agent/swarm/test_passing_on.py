"""Who asked an agent for a chunk lately passes it on to whoever asks next."""

from __future__ import annotations

import pytest
from clock import Clock

from agent.swarm import relay as relay_module
from agent.swarm.relay import AHEAD_S, FRESH_S, Relay

ME = "10.0.0.2:7651"
A, C, D, E = (f"10.0.0.{i}:7651" for i in (1, 3, 4, 5))


@pytest.fixture
def here() -> set[int]:
    """Chunks that the agent has."""
    return set()


@pytest.fixture
def relay(clock: Clock, here: set[int]) -> Relay:
    return Relay(lambda: ME, lambda name, numbers: here.issuperset(numbers), clock)


def ask(
    relay: Relay, node: str, *chunks: int, name: str = "p", foretold: bool = False, waits: bool = True
) -> list[str]:
    return list(relay.elsewhere(name, chunks or (3,), node, waits=waits, foretold=foretold))


def test_for_what_is_on_its_way_they_stand_in_a_line_by_address(relay: Relay) -> None:
    assert [ask(relay, node) for node in (D, C, E, A)] == [[], [], [D, C], []]
    assert [ask(relay, node) for node in (E, D, C, A)] == [[D, C], [C], [], []], "nobody is sent behind this agent"
    assert ask(relay, C, 4) == [] == ask(relay, C, name="q")
    assert not relay.gives("p", (3,))


def test_what_is_foretold_and_here_goes_from_one_to_the_next_in_the_order_of_asking(
    relay: Relay, here: set[int]
) -> None:
    here.add(3)
    asked = [ask(relay, node, foretold=True) for node in (D, A, E, C)]
    assert asked == [[], [D], [A, D], [E, A]]
    assert relay.gives("p", (3,)) and not relay.gives("p", (3, 4))


def test_what_readers_wait_for_goes_along_the_line_from_whoever_has_it(relay: Relay, here: set[int]) -> None:
    here.add(3)
    assert [ask(relay, node) for node in (D, A, E, C)] == [[], [], [D, A], [A]]


def test_who_is_ahead_passes_on_what_it_has_by_now_to_whoever_has_nobody_before_it(
    relay: Relay, here: set[int], clock: Clock
) -> None:
    here.update((3, 4))
    least_s, most_s = AHEAD_S
    ask(relay, E, 3, 4)
    clock.now += least_s / 2
    ask(relay, D, 3)
    clock.now += least_s / 2
    assert ask(relay, C, 3, 4, waits=False) == [E]
    assert ask(relay, A, 3, waits=False) == [E], "what was asked for lately may be on its way"
    assert ask(relay, A, 3, waits=False) == [], "who comes back is served"
    assert ask(relay, D, 3, waits=False) == [C, A], "those before it come first"
    clock.now += FRESH_S
    other = "10.0.0.0:7651"
    assert ask(relay, other, 3, waits=True) == [], "who insists is served"
    clock.now += most_s
    assert ask(relay, "10.0.0.0:1", 3, waits=False) == [], "they may have left"
    here.clear()
    assert ask(relay, "10.0.0.0:2", 3, waits=False) == [], "nobody waits for who waits for it"


def test_whoever_passes_on_a_run_of_chunks_asked_for_all_of_it(relay: Relay, here: set[int]) -> None:
    here.update(range(8))
    assert ask(relay, A, 3, 4, 5) == ask(relay, C, 5, 6) == []
    assert ask(relay, D, 4, 5) == [A]
    assert ask(relay, E, 5) == [D, C]
    assert ask(relay, E, 5, 6) == [C]
    assert ask(relay, E, 5, 6, 7) == []


def test_nobody_is_sent_to_who_cannot_be_reached(relay: Relay) -> None:
    assert [ask(relay, node) for node in ("", C, "", D)] == [[], [], [C], [C]]


def test_who_asked_long_ago_is_left_alone(relay: Relay, clock: Clock) -> None:
    ask(relay, C)
    clock.now += FRESH_S / 2
    ask(relay, D)
    clock.now += FRESH_S / 2
    assert ask(relay, E) == [D]
    clock.now += 2 * FRESH_S
    assert ask(relay, E) == []


def test_memory_is_bounded(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "CHUNKS_MAX", 2)
    for chunk in (1, 2, 1, 3):
        ask(relay, C, chunk)
    assert [ask(relay, D, chunk) for chunk in (1, 3, 2)] == [[C], [C], []]

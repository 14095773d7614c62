"""Who asked an agent for a chunk lately passes it on to whoever asks next, in a line by address."""

from __future__ import annotations

import pytest
from clock import Clock

from agent.swarm import relay as relay_module
from agent.swarm.relay import FRESH_S, Relay

ME = "10.0.0.0:7651"
A, B, C, D = (f"10.0.0.{i}:7651" for i in range(1, 5))


@pytest.fixture
def relay(clock: Clock) -> Relay:
    return Relay(lambda: ME, clock)


def ask(relay: Relay, node: str, chunk: int = 3, name: str = "p") -> list[str]:
    return list(relay.elsewhere(name, [chunk], node, waits=True))


def test_each_is_sent_to_the_one_before_it_in_the_line(relay: Relay) -> None:
    assert [ask(relay, node) for node in (C, B, D, A)] == [[], [], [C, B], []]
    assert [ask(relay, node) for node in (D, C, B, A)] == [[C, B], [B, A], [A], []], "the line is whole now"
    assert ask(relay, B, chunk=4) == [] == ask(relay, B, name="q")


def test_nobody_is_sent_back_behind_this_agent(clock: Clock) -> None:
    relay = Relay(lambda: B, clock)
    assert [ask(relay, node) for node in (A, C, D)] == [[], [], [C]]


def test_nobody_is_sent_to_who_cannot_be_reached(relay: Relay) -> None:
    assert [ask(relay, node) for node in ("", A, "", B)] == [[], [], [A], [A]]


def test_who_asked_long_ago_is_left_alone(relay: Relay, clock: Clock) -> None:
    ask(relay, A)
    clock.now += FRESH_S / 2
    ask(relay, B)
    clock.now += FRESH_S / 2
    assert ask(relay, C) == [B]
    clock.now += 2 * FRESH_S
    assert ask(relay, D) == []


def test_memory_is_bounded(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "CHUNKS_MAX", 2)
    for chunk in (1, 2, 1, 3):
        ask(relay, A, chunk)
    assert [ask(relay, B, chunk) for chunk in (1, 3, 2)] == [[A], [A], []]

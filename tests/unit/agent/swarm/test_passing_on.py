"""Who asked an agent for a chunk lately passes it on to whoever asks next."""

from __future__ import annotations

import pytest
from clock import Clock

from agent.swarm import relay as relay_module
from agent.swarm.relay import ASKERS, FRESH_S, NAMED, Relay

A, B, C = "10.0.0.1:7651", "10.0.0.2:7651", "10.0.0.3:7651"


@pytest.fixture
def relay(clock: Clock) -> Relay:
    return Relay(clock)


def test_each_is_sent_to_who_asked_before(relay: Relay) -> None:
    assert relay.elsewhere("p", [3], A) == []
    assert relay.elsewhere("p", [3], B) == [A]
    assert relay.elsewhere("p", [3], C) == [B, A]
    assert relay.elsewhere("p", [4], B) == [] == relay.elsewhere("q", [3], B)
    chain = [f"n:{i + 1}" for i in range(2 * ASKERS)]
    for before, node in zip([C, *chain], chain, strict=False):
        named = relay.elsewhere("p", [3], node)
        assert named[0] == before and len(named) == NAMED


def test_who_asks_again_is_served_and_nobody_is_sent_to_who_cannot_be_reached(relay: Relay) -> None:
    for _ in range(2):
        assert relay.elsewhere("p", [3], A) == []
    assert relay.elsewhere("p", [3], B) == [A]
    assert relay.elsewhere("p", [3], B) == []
    assert relay.elsewhere("p", [3], "") == [B, A]
    assert relay.elsewhere("p", [3], C) == [B, A]


def test_who_asked_long_ago_is_left_alone(relay: Relay, clock: Clock) -> None:
    relay.elsewhere("p", [3], A)
    clock.now += FRESH_S / 2
    relay.elsewhere("p", [3], B)
    clock.now += FRESH_S / 2
    assert relay.elsewhere("p", [3], C) == [B]
    clock.now += 2 * FRESH_S
    assert relay.elsewhere("p", [3], B) == []


def test_memory_is_bounded(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "CHUNKS_MAX", 2)
    for chunk in (1, 2, 1, 3):
        relay.elsewhere("p", [chunk], f"n:{chunk}")
    assert [relay.elsewhere("p", [chunk], A) for chunk in (1, 3)] == [["n:1"], ["n:3"]]
    assert relay.elsewhere("p", [2], A) == []

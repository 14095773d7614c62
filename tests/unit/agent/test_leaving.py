"""An agent makes room: who waits for an answer gets it, and others are served as long as that takes."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from agent import leaving
from agent.snapshotter.server import SnapshotsServer
from agent.taking import NodeLayers


class Fake:
    """Server and layers, and what was done in which order."""

    def __init__(self) -> None:
        self.calls = 0
        self.done: list[str] = []
        self.called_in_farewell = 0

    def leave(self) -> None:
        self.done.append(f"left with {self.calls} calls")

    def stop(self) -> None:
        self.done.append("layers are containerd's")

    async def farewell(self) -> None:
        self.done.append("farewell")
        self.calls += self.called_in_farewell

    def leaving(self) -> asyncio.Task[None]:
        server, layers = cast(SnapshotsServer, self), cast(NodeLayers, self)
        return asyncio.create_task(leaving.leave(server, lambda: 0, layers, self.farewell))


async def passed() -> None:
    for _ in range(3):
        await asyncio.sleep(leaving._LOOK_S)


async def test_other_agents_are_served_until_no_call_is_left() -> None:
    fake = Fake()
    fake.calls, fake.called_in_farewell = 1, 1
    task = fake.leaving()
    await passed()
    assert fake.done == []
    fake.calls = 0
    await passed()
    assert fake.done == ["farewell"], "a call that came meanwhile is waited for"
    fake.calls = 0
    await task
    assert fake.done == ["farewell", "left with 0 calls"]


async def test_a_connection_that_is_just_being_accepted_is_no_obstacle() -> None:
    server = SnapshotsServer([])
    accepted = server._protocol_factory()
    server.leave()
    assert not hasattr(accepted, "connection")


async def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "PATIENCE_S", 0.02)
    monkeypatch.setattr(leaving, "CUT_S", 0.02)
    fake = Fake()
    fake.calls = 1
    await fake.leaving()
    assert fake.done == ["farewell", "layers are containerd's", "left with 1 calls"]

"""Traces are told to the supernode, and nothing depends on it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent import tracekeeper
from agent.tracekeeper import TraceKeeper
from agent.tracing import TraceUpdate, unpack
from imgdist.errors import ProtocolError, TemporaryError
from imgdist.wire.control import Trace

UPDATE = TraceUpdate("sha256:m", (("sha256:a", 3), ("sha256:b", 1)))


class FakeRecorder:
    def __init__(self, *updates: list[TraceUpdate]) -> None:
        self.updates = list(updates)
        self.touches: list[Any] = []
        self.everything: list[bool] = []

    def touched(self, touches: Any, now: float) -> None:
        self.touches += touches

    def due(self, now: float, *, everything: bool = False) -> list[TraceUpdate]:
        self.everything.append(everything)
        return self.updates.pop(0) if self.updates else []


class FakeSupernodes:
    def __init__(self, *errors: Exception | None, hangs: bool = False) -> None:
        self.told: list[tuple[str, Trace]] = []
        self.changed = asyncio.Event()
        self._errors = list(errors)
        self._hangs = hangs

    async def put_trace(self, manifest_digest: str, trace: Trace) -> None:
        if self._hangs:
            await asyncio.Event().wait()
        error = self._errors.pop(0) if self._errors else None
        if error is not None:
            raise error
        self.told.append((manifest_digest, trace))
        self.changed.set()


def keeper(recorder: FakeRecorder, supernodes: FakeSupernodes) -> TraceKeeper:
    return TraceKeeper(recorder, supernodes, lambda: 7.0)  # type: ignore[arg-type]


async def test_the_views_report_goes_to_the_recorder() -> None:
    recorder = FakeRecorder()
    keeper(recorder, FakeSupernodes()).touched([(2, 0, 4)])
    assert recorder.touches == [(2, 0, 4)]


@pytest.mark.parametrize("error", [TemporaryError("gone"), ProtocolError("odd")])
async def test_what_is_due_is_told_round_by_round_and_a_refusal_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(tracekeeper, "_ROUND_S", 0.001)
    supernodes = FakeSupernodes(error)
    running = asyncio.ensure_future(keeper(FakeRecorder([UPDATE], [UPDATE]), supernodes).run())
    async with asyncio.timeout(10):
        await supernodes.changed.wait()
    running.cancel()
    ((manifest, trace),) = supernodes.told
    assert manifest == "sha256:m" and unpack(trace) == list(UPDATE.entries)


async def test_a_stop_tells_what_is_left() -> None:
    recorder, supernodes = FakeRecorder([UPDATE, UPDATE]), FakeSupernodes()
    await keeper(recorder, supernodes).flush()
    assert len(supernodes.told) == 2 and recorder.everything == [True]


async def test_a_stop_does_not_wait_for_a_supernode_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracekeeper, "_FLUSH_S", 0.01)
    async with asyncio.timeout(10):
        await keeper(FakeRecorder([UPDATE]), FakeSupernodes(hangs=True)).flush()

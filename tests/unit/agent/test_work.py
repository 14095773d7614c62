"""Shared work: one run, many waiters."""

from __future__ import annotations

import asyncio

import pytest

from agent.work import SharedWork
from imgdist.errors import NotFoundError, TemporaryError


async def test_every_waiter_gets_the_one_result() -> None:
    runs = 0

    async def work() -> int:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0)
        return 7

    async with asyncio.TaskGroup() as tasks:
        shared = SharedWork(tasks, work())
        assert shared.result is None
        assert await asyncio.gather(shared.wait(), shared.wait()) == [7, 7]
    assert (runs, shared.result, shared.failed) == (1, 7, False)


async def test_an_error_is_the_waiters_and_not_the_daemons() -> None:
    async def work() -> int:
        raise NotFoundError("gone")

    async with asyncio.TaskGroup() as tasks:
        shared = SharedWork(tasks, work())
        for _ in range(2):
            with pytest.raises(NotFoundError):
                await shared.wait()
    assert shared.failed and shared.result is None


async def test_a_waiter_that_leaves_does_not_stop_the_work() -> None:
    go = asyncio.Event()

    async def work() -> str:
        await go.wait()
        return "done"

    async with asyncio.TaskGroup() as tasks:
        shared = SharedWork(tasks, work())
        waiter = asyncio.create_task(shared.wait())
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        go.set()
        assert await shared.wait() == "done"


async def test_the_daemon_s_stop_cancels_who_waits() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    task = None
    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            shared = SharedWork(tasks, work())
            task = asyncio.get_running_loop().create_task(shared.wait())
            await asyncio.sleep(0)
            raise NotFoundError("stop")
    assert task is not None
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_daemon_that_is_stopping_takes_no_new_work() -> None:
    async def work() -> int:
        raise AssertionError("never begun")

    async with asyncio.TaskGroup() as tasks:
        pass
    with pytest.raises(TemporaryError, match="stopping"):
        SharedWork(tasks, work())

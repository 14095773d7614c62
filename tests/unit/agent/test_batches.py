"""Batches: what waits while a thread works is done in its next round, in order, each with an outcome of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent.batches import Batches, each
from imgdist.errors import NotFoundError


async def test_what_waits_is_done_together_in_order_and_not_more_at_once_than_allowed() -> None:
    go, rounds = threading.Event(), []

    def work(items: Sequence[int]) -> list[int | BaseException]:
        assert go.wait(10)
        rounds.append(list(items))
        return [10 * item for item in items]

    with ThreadPoolExecutor(1) as threads:
        batches: Batches[int, int] = Batches(threads, work, 3)
        asked = [asyncio.create_task(batches.do(number)) for number in range(8)]
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(*asked) == [0, 10, 20, 30, 40, 50, 60, 70]
        assert rounds == [[0], [1, 2], [3, 4, 5], [6, 7]], "what comes first does not wait for many others"
        assert await asyncio.gather(*map(batches.do, (8, 9))) == [80, 90]
        assert rounds[4:] == [[8], [9]]


async def test_an_error_is_that_items_alone_and_a_caller_that_leaves_stops_nobody() -> None:
    go, done = threading.Event(), []

    def act(item: int) -> int:
        assert go.wait(10)
        done.append(item)
        if item == 2:
            raise NotFoundError("gone")
        return item

    with ThreadPoolExecutor(1) as threads:
        batches: Batches[int, int] = Batches(threads, lambda items: each(act, items), 8)
        first, second, third = (asyncio.create_task(batches.do(number)) for number in (1, 2, 3))
        await asyncio.sleep(0)
        first.cancel()
        go.set()
        with pytest.raises(NotFoundError):
            await second
        assert (await third, done) == (3, [1, 2, 3])
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_work_that_fails_as_a_whole_fails_for_all_of_its_round() -> None:
    def work(items: Sequence[int]) -> list[int | BaseException]:
        raise OSError("the disk is gone")

    with ThreadPoolExecutor(1) as threads:
        batches: Batches[int, int] = Batches(threads, work, 8)
        outcomes = await asyncio.gather(*map(batches.do, (1, 2)), return_exceptions=True)
        assert [str(error) for error in outcomes] == ["the disk is gone"] * 2


async def test_whoever_waits_when_the_threads_end_is_told_so() -> None:
    go, began = threading.Event(), threading.Event()

    def hold() -> bool:
        began.set()
        return go.wait(10)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(hold)
        assert began.wait(10)
        batches: Batches[int, int] = Batches(threads, lambda items: list(items), 1)
        asked = [asyncio.create_task(batches.do(number)) for number in range(2)]
        await asyncio.sleep(0)
        threads.shutdown(wait=False, cancel_futures=True)
        outcomes = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
        go.set()
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2

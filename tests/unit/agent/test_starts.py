"""Starts of images: traces are fetched, and recorded."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from images_rig import MANIFEST, REFERENCE, digest, resolution, world

from agent.tracing import TraceUpdate, pack
from imgdist.errors import (
    ImgdistError,
    ProtocolError,
    TemporaryError,
)
from imgdist.wire.control import Trace


async def test_the_trace_is_fetched_in_its_order_of_shown_layers_alone(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6, declined=(6,), trace=True)
        made.supernodes.traces = pack(
            TraceUpdate(digest(1), ((digest(5), 1), (digest(6), 0), (digest(5), 0), (digest(8), 3)))
        )
        await made.images.layer(REFERENCE, digest(5), None)
    assert made.node.transfers.traced == [(5, 1), (5, 0)]
    assert made.recorded == [("open", MANIFEST)]


@pytest.mark.parametrize(("first", "told"), [(((5, 1),), [(5, 1)]), ((), [])], ids=["a layer that it names", "another"])
async def test_a_trace_does_not_wait_for_the_last_layer(
    tmp_path: Path, first: tuple[tuple[int, int], ...], told: list[tuple[int, int]]
) -> None:
    named = ((6, 1), *first, (6, 0))
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6, trace=True)
        made.supernodes.traces = pack(TraceUpdate(digest(1), tuple((digest(layer), chunk) for layer, chunk in named)))
        converted, follow_index = asyncio.Event(), made.supernodes.follow_index

        async def late(layer_digest: str, on_progress: Any) -> Any:
            if layer_digest == digest(6):
                await converted.wait()
            return await follow_index(layer_digest, on_progress)

        made.supernodes.follow_index = late
        opened = asyncio.ensure_future(made.images.layer(REFERENCE, digest(6), None))
        transfers = made.node.transfers
        await transfers.told_trace.wait()
        assert transfers.traced == told and not made.recorded
        converted.set()
        await opened
    assert transfers.traced == list(named)
    assert transfers.trace_goes_on == [False, bool(told)], "what begins with the second telling does not go on"
    assert made.recorded == [("open", MANIFEST)]


@pytest.mark.parametrize(
    "answer", [TemporaryError("busy"), ProtocolError("nonsense"), ImgdistError("odd"), Trace(9, (), b""), None]
)
async def test_a_trace_that_cannot_be_had_is_recorded_all_the_same(tmp_path: Path, answer: Any) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, trace=True)
        made.supernodes.traces = answer
        await made.images.layer(REFERENCE, digest(5), None)
    assert made.node.transfers.traced == [] and made.recorded == [("open", MANIFEST)]


async def test_switched_off_traces_are_neither_asked_for_nor_recorded(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, trace=True)
        made.supernodes.traces = AssertionError("not asked for")
        images = made.make(traces=False)
        await images.layer(REFERENCE, digest(5), None)
        images.starts.began(made.node.catalog.all()[0].pack_id)
    assert made.recorded == [("started", MANIFEST)]


async def test_a_node_that_prefetches_nothing_records_starts(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, trace=True)
        made.supernodes.traces = AssertionError("not asked for")
        await made.make(prefetch=False).layer(REFERENCE, digest(5), None)
    assert made.recorded == [("open", MANIFEST)]


async def test_a_container_starts_the_images_that_end_with_its_top_layer(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6)
        for opening in (await made.images.open(REFERENCE)).layers.values():
            await opening.wait()
        made.recorded.clear()
        made.images.starts.began((await made.images.layer(REFERENCE, digest(5), None)).pack_id)
        assert made.recorded == []
        made.images.starts.began((await made.images.layer(REFERENCE, digest(6), None)).pack_id)
        assert made.recorded == [("open", MANIFEST), ("started", MANIFEST)]

"""Layers that nobody came to use are unmounted; those in use, and those just mounted, are not."""

from __future__ import annotations

import asyncio
import sqlite3

from fake_node import FakeNode, FakeStore

from agent.layers.mount import BusyError
from agent.snapshotter.packs import Sharing
from agent.unused import Unused


class FakeSharing(Sharing):
    """Knows what is used; asks for it under the pack's lock."""

    def __init__(self, *used: str) -> None:
        super().__init__()
        self.used = set(used)

    async def is_used(self, pack_id: str) -> bool:
        return pack_id in self.used


async def test_only_what_no_snapshot_uses_goes_and_only_after_a_while() -> None:
    async with asyncio.TaskGroup() as tasks:
        node = FakeNode(tasks, FakeStore(5), FakeStore(6), FakeStore(7))
        used, unused, unmounted = [await node.catalog.adopt(bytes([number])) for number in (5, 6, 7)]
        janitor = Unused(node.catalog, FakeSharing(used.pack_id))
        for layer in (used, unused):
            await node.catalog.mount(layer)
        await janitor.release(60.0)
        assert used.mounted and unused.mounted
        await janitor.release(0.0)
        assert (used.mounted, unused.mounted, unmounted.mounted) == (True, False, False)
        assert [node for step, node in node.steps.done if step == "unmount"] == [6]


async def test_one_that_somebody_holds_does_not_keep_the_others() -> None:
    async with asyncio.TaskGroup() as tasks:
        node = FakeNode(tasks, FakeStore(5), FakeStore(6))
        layers = [await node.catalog.adopt(bytes([number])) for number in (5, 6)]
        for layer in layers:
            await node.catalog.mount(layer)
        node.steps.fail["unmount"] = BusyError("in use by cat (7)")
        await Unused(node.catalog, FakeSharing()).release(0.0)
        assert [node for step, node in node.steps.done if step == "unmount"] == [5, 6]
        assert all(layer.mounted for layer in layers)


async def test_a_database_that_fails_once_ends_nothing() -> None:
    """Not knowing who uses a layer, it stays; the rest of the round goes on, and so does the agent."""

    class Failing(FakeSharing):
        async def is_used(self, pack_id: str) -> bool:
            if pack_id == (b"\5" * 32).hex():
                raise sqlite3.OperationalError("disk I/O error")
            return False

    async with asyncio.TaskGroup() as tasks:
        node = FakeNode(tasks, FakeStore(5), FakeStore(6))
        unsure, unused = [await node.catalog.adopt(bytes([number])) for number in (5, 6)]
        for layer in (unsure, unused):
            await node.catalog.mount(layer)
        await Unused(node.catalog, Failing()).release(0.0)
        assert (unsure.mounted, unused.mounted) == (True, False)


async def test_a_start_unmounts_what_was_left_and_not_what_was_mounted_since() -> None:
    async with asyncio.TaskGroup() as tasks:
        node = FakeNode(tasks, FakeStore(5), FakeStore(6))
        left, fresh = [await node.catalog.adopt(bytes([number])) for number in (5, 6)]
        await node.catalog.mount(left)
        janitor = Unused(node.catalog, FakeSharing())
        await node.catalog.mount(fresh)
        running = tasks.create_task(janitor.run())
        async with asyncio.timeout(10):
            while left.mounted:  # noqa: ASYNC110 - the fakes work in threads
                await asyncio.sleep(0.002)
        await asyncio.sleep(0.05)
        assert fresh.mounted
        running.cancel()


async def test_what_was_busy_at_the_start_is_tried_again_before_its_time() -> None:
    async with asyncio.TaskGroup() as tasks:
        node = FakeNode(tasks, FakeStore(5))
        left = await node.catalog.adopt(b"\5")
        await node.catalog.mount(left)
        janitor = Unused(node.catalog, FakeSharing())
        node.steps.fail["unmount"] = BusyError("in use by cat (7)")
        await janitor.release(60.0)
        assert left.mounted
        del node.steps.fail["unmount"]
        await janitor.release(60.0)
        assert not left.mounted


async def test_a_snapshot_that_comes_first_keeps_its_layer() -> None:
    """The interleaving: a Prepare records its snapshot under the pack's lock while the layer looks unused."""
    async with asyncio.TaskGroup() as tasks:
        node = FakeNode(tasks, FakeStore(5))
        layer = await node.catalog.adopt(b"\5")
        await node.catalog.mount(layer)
        sharing = FakeSharing()
        async with sharing.lock(layer.pack_id):
            releasing = tasks.create_task(Unused(node.catalog, sharing).release(0.0))
            await asyncio.sleep(0)
            sharing.used.add(layer.pack_id)
        await releasing
        assert layer.mounted

"""The layers of a node: states, one mount each, switches at the right moment, and what failure and restarts leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_node import FakeNode, FakeStore

from agent.catalog import SMALL_BYTES, Layer, State
from agent.layers.mount import BusyError
from agent.mounter import Found
from imgdist.errors import ImgdistError, NotFoundError, TemporaryError


@asynccontextmanager
async def node(*stores: FakeStore, **settings: Any) -> AsyncIterator[FakeNode]:
    """A fake node in a task group that is ended like the daemon's."""
    async with asyncio.TaskGroup() as tasks:
        made = FakeNode(tasks, *stores, **settings)
        yield made
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in threads of the fakes
            await asyncio.sleep(0.002)


async def test_a_large_layer_is_shown_once_its_metadata_is_here_and_then_filled() -> None:
    async with node(FakeStore(5)) as made:
        layer = await made.catalog.adopt(b"\5")
        assert (layer.state, layer.mounted, layer.shown) == (State.FILLING, False, False)
        assert await made.catalog.mount(layer) == "/l/n5"
        assert made.steps.names() == ["add", "fetch_now", "announce", "show", "mount_shown"]
        assert layer.store.missing_chunks() == [0, 1]
        assert (layer.state, layer.mounted, layer.shown) == (State.FILLING, True, True)
        assert made.transfers.filled == [5] and made.transfers.starts == 1


async def test_layers_are_settled_together_once_and_never_without_their_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[list[Any]] = []

    def settle(stores: list[Any]) -> None:
        settled.append(stores)
        for store in stores:
            store.is_settled = True

    monkeypatch.setattr("agent.catalog.LayerStore.settle", settle)
    async with node(FakeStore(5), FakeStore(6)) as made:
        layers = [await made.catalog.adopt(bytes([number])) for number in (5, 6)]
        packs = [layer.pack_id for layer in layers]
        await made.catalog.mount(layers[0])
        assert made.catalog.mounted_at(packs[0]) is None, "nobody builds on it before"
        await made.catalog.settle(packs)
        await made.catalog.settle(packs)
        assert settled == [[layer.store for layer in layers]]
        assert made.catalog.mounted_at(packs[0]) == "/l/n5"
        with pytest.raises(NotFoundError, match="not on this node"):
            await made.catalog.settle([packs[0], "ff" * 32])


async def test_without_fill_only_what_is_read_is_fetched() -> None:
    async with node(FakeStore(5), fill=False) as made:
        await made.catalog.mount(await made.catalog.adopt(b"\5"))
        assert made.transfers.filled == []


async def test_a_small_layer_is_fetched_whole_and_mounted_without_the_view() -> None:
    async with node(FakeStore(5, small=True)) as made:
        layer = await made.catalog.adopt(b"\5")
        await made.catalog.mount(layer)
        assert made.steps.names() == ["add", "fetch_now", "remove", "mount_local"]
        assert (layer.state, layer.mounted, layer.shown) == (State.COMPLETE, True, False)
        assert layer.store.durable  # type: ignore[attr-defined]


async def test_small_layers_beyond_so_many_bytes_on_their_way_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.catalog.COMING_BYTES", SMALL_BYTES // 2)  # one
    async with node(*(FakeStore(number, small=True) for number in (5, 6, 7))) as made:
        layers = [await made.catalog.adopt(bytes([number])) for number in (5, 6, 7)]
        held = made.steps.hold("add")
        first = asyncio.ensure_future(made.catalog.mount(layers[0]))
        await until(made.steps.reached.is_set)
        await made.catalog.mount(layers[1])
        held.set()
        await first
        await made.catalog.mount(layers[2])
        assert [layer.shown for layer in layers] == [False, True, False]


async def test_one_mount_however_many_ask_and_it_is_the_same_layer_for_all() -> None:
    async with node(FakeStore(5)) as made:
        first, second = [await made.catalog.adopt(b"\5") for _ in range(2)]
        assert first is second
        held = made.steps.hold("mount_shown")
        asking = asyncio.gather(*(made.catalog.ensure_mounted(first.pack_id) for _ in range(3)))
        await until(made.steps.reached.is_set)
        held.set()
        assert await asking == ["/l/n5"] * 3
        assert made.steps.names().count("mount_shown") == 1


async def test_who_is_cancelled_does_not_leave_a_mount_that_nobody_knows() -> None:
    """The interleaving: a thread mounts, its caller goes, the next one would mount on top."""
    async with node(FakeStore(5)) as made:
        layer = await made.catalog.adopt(b"\5")
        held = made.steps.hold("mount_shown")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await made.catalog.mount(layer)
        assert made.steps.reached.is_set()
        held.set()
        await made.catalog.mount(layer)
        assert layer.mounted and made.steps.names().count("mount_shown") == 1


@pytest.mark.parametrize("step", ["fetch_now", "show", "mount_shown"])
async def test_a_mount_that_fails_leaves_neither_view_nor_transfers_and_can_be_tried_again(step: str) -> None:
    async with node(FakeStore(5)) as made:
        layer = await made.catalog.adopt(b"\5")
        made.steps.fail[step] = TemporaryError("not now")
        with pytest.raises(TemporaryError):
            await made.catalog.mount(layer)
        assert made.steps.names()[-2:] == ["remove", "hide"]
        assert not layer.mounted and not layer.shown and made.transfers.layers == set()
        made.steps.fail.clear()
        assert await made.catalog.mount(layer) == "/l/n5"


async def test_a_fetch_that_fails_after_the_view_was_told_takes_the_layer_back() -> None:
    async with node(FakeStore(5)) as made:
        layer = await made.catalog.adopt(b"\5")
        made.transfers.stuck = TemporaryError("no source")
        with pytest.raises(TemporaryError):
            await made.catalog.mount(layer)
        assert made.steps.names() == ["add", "fetch_now", "announce", "show", "remove", "hide"]


async def test_a_small_layer_that_cannot_be_fetched_is_not_mounted() -> None:
    async with node(FakeStore(5, small=True)) as made:
        layer = await made.catalog.adopt(b"\5")
        made.transfers.stuck = TemporaryError("no source")
        with pytest.raises(TemporaryError):
            await made.catalog.mount(layer)
        assert made.steps.names() == ["add", "fetch_now", "remove"] and not layer.mounted


async def test_unmounting_takes_the_layer_out_of_the_view_after_the_mount_is_gone() -> None:
    async with node(FakeStore(5)) as made:
        layer = await made.catalog.adopt(b"\5")
        await made.catalog.mount(layer)
        made.steps.done.clear()
        await made.catalog.unmount(layer.pack_id)
        assert made.steps.names() == ["unmount", "remove", "hide"]
        assert not layer.mounted and not layer.shown
        await made.catalog.unmount(layer.pack_id)
        await made.catalog.unmount("ff" * 32)
        assert made.steps.names() == ["unmount", "remove", "hide"]


async def test_a_layer_in_use_stays_as_it_is() -> None:
    async with node(FakeStore(5)) as made:
        layer = await made.catalog.adopt(b"\5")
        await made.catalog.mount(layer)
        made.steps.fail["unmount"] = BusyError("in use by cat (7)")
        with pytest.raises(BusyError):
            await made.catalog.unmount(layer.pack_id)
        assert layer.mounted and layer.shown and "hide" not in made.steps.names()


async def test_a_mount_waits_for_the_unmount_that_is_under_way() -> None:
    async with node(FakeStore(5)) as made:
        layer = await made.catalog.adopt(b"\5")
        await made.catalog.mount(layer)
        held = made.steps.hold("unmount")
        leaving = asyncio.ensure_future(made.catalog.unmount(layer.pack_id))
        await until(made.steps.reached.is_set)
        coming = asyncio.ensure_future(made.catalog.ensure_mounted(layer.pack_id))
        held.set()
        await leaving
        assert await coming == "/l/n5"
        assert layer.mounted and made.steps.names()[-5:] == ["add", "fetch_now", "announce", "show", "mount_shown"]


async def test_a_pack_that_is_gone_is_named() -> None:
    async with node() as made:
        with pytest.raises(NotFoundError, match="pull the image again"):
            await made.catalog.ensure_mounted("ff" * 32)


async def shown(made: FakeNode, number: int = 5) -> Layer:
    layer = await made.catalog.adopt(bytes([number]))
    await made.catalog.mount(layer)
    return layer


def complete(made: FakeNode, layer: Layer) -> None:
    """What the transfers say when the last chunk is in."""
    layer.store.missing.clear()  # type: ignore[attr-defined]
    made.catalog.completed(layer.pack_id)


async def test_a_complete_layer_is_switched_when_it_is_idle_and_nobody_waits() -> None:
    async with node(FakeStore(5), idle_s=0.1) as made, asyncio.TaskGroup() as tasks:
        switching = tasks.create_task(made.catalog.switch_forever())
        layer = await shown(made)
        layer.store.present.parked = 1
        complete(made, layer)
        assert layer.state is State.COMPLETE
        await asyncio.sleep(0.3)
        assert layer.shown
        layer.store.present.parked = 0
        layer.store.present.touch()  # type: ignore[attr-defined]
        begun = layer.store.present.last_read_ns
        await until(lambda: layer.state is State.SWITCHED)
        assert asyncio.get_running_loop().time() - begun / 1e9 >= 0.1
        assert made.steps.names()[-3:] == ["switch", "remove", "hide"]
        assert layer.store.durable and not layer.shown and layer.mounted  # type: ignore[attr-defined]
        switching.cancel()


async def test_a_layer_that_became_whole_while_it_was_mounted_is_switched_too() -> None:
    async with node(FakeStore(5)) as made, asyncio.TaskGroup() as tasks:
        switching = tasks.create_task(made.catalog.switch_forever())
        layer = await made.catalog.adopt(b"\5")
        held = made.steps.hold("mount_shown")
        mounting = asyncio.ensure_future(made.catalog.mount(layer))
        await until(made.steps.reached.is_set)
        complete(made, layer)
        await asyncio.sleep(0)
        held.set()
        await mounting
        await until(lambda: layer.state is State.SWITCHED)
        switching.cancel()


async def test_a_switch_that_fails_leaves_the_layer_behind_the_view_and_the_others_go_on() -> None:
    async with node(FakeStore(5), FakeStore(6)) as made, asyncio.TaskGroup() as tasks:
        made.steps.fail["switch"] = ImgdistError("the kernel refuses")
        bad = await shown(made)
        complete(made, bad)
        switching = tasks.create_task(made.catalog.switch_forever())
        await until(lambda: bad.state is State.FAILED)
        assert bad.shown and bad.mounted
        made.steps.fail.clear()
        good = await shown(made, 6)
        complete(made, good)
        await until(lambda: good.state is State.SWITCHED)
        switching.cancel()


async def test_a_stop_drains_and_switches_and_names_what_is_left() -> None:
    async with node(FakeStore(5), FakeStore(6), FakeStore(7, small=True)) as made:
        first, second, _ = [await shown(made, number) for number in (5, 6, 7)]
        made.transfers.drained = first.store.missing.clear  # type: ignore[attr-defined]
        assert await made.catalog.finish(1) == [second]
        assert first.state is State.SWITCHED and first.store.durable  # type: ignore[attr-defined]
        assert second.shown


async def test_a_stop_survives_a_disk_that_cannot_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(FakeStore(5), FakeStore(6)) as made:
        first, second = [await shown(made, number) for number in (5, 6)]
        for layer in (first, second):
            layer.store.missing.clear()  # type: ignore[attr-defined]

        def broken() -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(first.store, "complete", broken)
        assert await made.catalog.finish(1) == [first]
        assert second.state is State.SWITCHED


async def test_a_start_takes_up_what_earlier_agents_left() -> None:
    stores = [FakeStore(number) for number in (4, 5, 6, 7, 8)]
    _, local, live, stranded, whole = stores
    for store in (local, whole):
        store.missing.clear()
    async with node() as made:
        made.chunks.on_disk = stores
        made.mounter.left = {
            local.node: Found(local=True, live=False),
            live.node: Found(local=False, live=True),
            stranded.node: Found(local=False, live=False),
            whole.node: Found(local=False, live=False),
        }
        await made.catalog.recover()
        states = {layer.store.node: (layer.state, layer.mounted, layer.shown) for layer in made.catalog.all()}
        assert states == {
            4: (State.FILLING, False, False),
            5: (State.SWITCHED, True, False),
            6: (State.FILLING, True, True),
            7: (State.FILLING, True, True),
            8: (State.COMPLETE, True, True),
        }
        assert [node for step, node in made.steps.done if step == "announce"] == [6, 7, 8]

        made.steps.done.clear()
        rescuing = asyncio.ensure_future(made.catalog.rescue())
        await until(lambda: states_of(made)[8] is State.SWITCHED)
        # A layer that is whole needs no view any more; another waits until today's view shows it.
        assert made.steps.done == [("switch", 8), ("remove", 8), ("hide", 8)]
        assert sorted(made.transfers.filled) == [6, 7, 8]
        made.mounter.live.set()
        await rescuing
        assert made.steps.done[3:] == [("rescue", 7)]


def states_of(made: FakeNode) -> dict[int, State]:
    return {layer.store.node: layer.state for layer in made.catalog.all()}


async def test_a_rescue_that_fails_is_tried_again() -> None:
    async with node() as made:
        made.chunks.on_disk = [FakeStore(5), FakeStore(6)]
        made.mounter.left = {number: Found(local=False, live=False) for number in (5, 6)}
        made.mounter.live.set()
        made.steps.fail["rescue"] = ImgdistError("the kernel refuses")
        await made.catalog.recover()
        rescuing = asyncio.ensure_future(made.catalog.rescue())
        await until(lambda: set(states_of(made).values()) == {State.FAILED})
        made.steps.fail.clear()
        await rescuing
        assert set(states_of(made).values()) == {State.FILLING}
        assert made.steps.done[-1] in (("rescue", 5), ("rescue", 6))


async def test_another_layer_at_its_place_is_left_alone() -> None:
    async with node() as made:
        made.chunks.on_disk = [FakeStore(5)]
        made.mounter.left = {5: Found(local=False, live=True, ours=False)}
        await made.catalog.recover()
        (layer,) = made.catalog.all()
        assert (layer.mounted, layer.shown, layer.store.node) == (False, False, 105)
        assert made.steps.done == []
        assert await made.catalog.mount(layer) == "/l/n105"


async def test_a_layer_that_others_read_on_stays_in_the_view_until_they_have_gone() -> None:
    """Unmounted here; overlayfs and other mount namespaces have copies of the mount that nobody lists."""
    async with node(FakeStore(5)) as made, asyncio.TaskGroup() as tasks:
        layer = await shown(made)
        made.mounter.readers.add(5)
        await made.catalog.unmount(layer.pack_id)
        assert (layer.mounted, layer.shown, layer.lingers) == (False, True, True)
        assert "hide" not in made.steps.names() and made.transfers.layers == {5}
        looking = tasks.create_task(made.catalog.switch_forever())
        await asyncio.sleep(0.3)
        assert layer.shown
        made.mounter.readers.clear()
        await until(lambda: not layer.shown)
        assert made.steps.names()[-2:] == ["remove", "hide"] and not layer.lingers
        looking.cancel()


async def test_what_lingers_is_found_again_by_the_next_agent_and_can_be_mounted_again() -> None:
    async with node() as made:
        made.chunks.on_disk = [FakeStore(5)]
        made.mounter.left = {5: Found(local=False, live=True, mounted=False)}
        await made.catalog.recover()
        (layer,) = made.catalog.all()
        assert (layer.mounted, layer.shown, layer.lingers) == (False, True, True)
        assert made.steps.names() == ["add", "announce"]
        await made.catalog.mount(layer)
        assert (layer.mounted, layer.shown, layer.lingers) == (True, True, False)


async def test_a_pack_is_proven_before_its_first_mount() -> None:
    async with node(FakeStore(5)) as made:
        layer = await made.catalog.adopt(b"\5")
        layer.store.is_proven = False  # type: ignore[misc]
        await made.catalog.mount(layer)
        assert layer.store.is_proven


async def test_a_switch_that_failed_is_tried_again() -> None:
    async with node(FakeStore(5)) as made, asyncio.TaskGroup() as tasks:
        made.steps.fail["switch"] = ImgdistError("the kernel refuses")
        layer = await shown(made)
        complete(made, layer)
        switching = tasks.create_task(made.catalog.switch_forever())
        await until(lambda: layer.state is State.FAILED)
        made.steps.fail.clear()
        await until(lambda: layer.state is State.SWITCHED)
        switching.cancel()


async def test_bytes_that_the_disk_lost_are_fetched_again_and_nobody_finds_the_layer_unknown_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with node(FakeStore(5)) as made, asyncio.TaskGroup() as tasks:
        layer = await shown(made)

        def lost() -> None:
            layer.store.missing.add(1)  # type: ignore[attr-defined]
            raise ImgdistError("lost bytes")

        monkeypatch.setattr(layer.store, "complete", lost)
        made.steps.done.clear()
        made.transfers.filled.clear()
        switching = tasks.create_task(made.catalog.switch_forever())
        complete(made, layer)
        await until(lambda: layer.state is State.FILLING)
        assert made.steps.names() == ["add"] and made.transfers.filled == [5]
        assert layer.shown and made.transfers.layers == {5}
        switching.cancel()


async def test_a_stop_switches_what_is_whole_first_and_ends_when_no_bytes_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.switching._SILENCE_S", 0.0)
    async with node(FakeStore(5), FakeStore(6)) as made:
        whole, partly = [await shown(made, number) for number in (5, 6)]
        whole.store.missing.clear()  # type: ignore[attr-defined]
        asked: list[float] = []
        monkeypatch.setattr(made.transfers, "drain", lambda wait_s: asked.append(wait_s) or [6])
        assert await made.catalog.finish(60) == [partly]
        assert whole.state is State.SWITCHED and asked == []


async def test_a_stop_ends_at_its_deadline_whatever_hangs() -> None:
    async with node(FakeStore(5)) as made:
        layer = await shown(made)
        layer.store.missing.clear()  # type: ignore[attr-defined]
        held = made.steps.hold("switch")
        begun = asyncio.get_running_loop().time()
        assert await made.catalog.finish(0.1) == [layer]
        assert asyncio.get_running_loop().time() - begun < 5
        held.set()


async def test_one_broken_leftover_does_not_keep_the_agent_from_starting() -> None:
    stores = [FakeStore(5), FakeStore(6), FakeStore(7)]
    async with node() as made:
        made.chunks.on_disk = stores
        made.mounter.left = {5: OSError(2, "No such file or directory"), 6: Found(local=False, live=True)}
        await made.catalog.recover()
        await made.catalog.rescue()
        assert states_of(made) == {5: State.FAILED, 6: State.FILLING, 7: State.FILLING}


async def test_a_removed_layer_is_gone_everywhere_and_comes_anew() -> None:
    async with node(FakeStore(5)) as made:
        layer = await made.catalog.adopt(b"\5")
        assert await made.catalog.remove(layer.pack_id)
        assert made.catalog.all() == [] and made.catalog.get(layer.pack_id) is None
        assert made.chunks.removed == [5] and made.steps.names() == ["remove", "forget"]
        assert not await made.catalog.remove(layer.pack_id)
        with pytest.raises(NotFoundError, match="pull the image again"):
            await made.catalog.mount(layer)
        again = await made.catalog.adopt(b"\5")
        assert again is not layer
        await made.catalog.mount(again)
        assert not await made.catalog.remove(again.pack_id), "it is mounted"


async def test_a_layer_adopted_while_it_goes_is_made_anew() -> None:
    """The pack was found on the disk just before it went: who adopts it gets another one, not that."""
    async with node(FakeStore(5)) as made:
        layer = await made.catalog.adopt(b"\5")
        goes_on = made.steps.hold("forget")
        removing = asyncio.ensure_future(made.catalog.remove(layer.pack_id))
        await asyncio.to_thread(made.steps.reached.wait, 10)
        adopting = asyncio.ensure_future(made.catalog.adopt(b"\5"))
        await asyncio.sleep(0.05)
        assert not adopting.done()
        made.chunks.stores[b"\5"] = FakeStore(5)
        goes_on.set()
        assert await removing
        again = await adopting
        assert again is not layer and again.store is made.chunks.stores[b"\5"]
        assert made.catalog.get(again.pack_id) is again

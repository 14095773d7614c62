"""Openings of layers: indexes, turns, what fails is tried anew, what is declined stays plain, trust in packs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fake_node import FakeStore
from images_rig import DIFF_ID, MANIFEST, REFERENCE, World, digest, resolution, sealed_index, world

from agent.agreement import DisagreementError
from agent.openings import INDEXES_FIRST, WHOLE_BYTES
from imgdist.errors import (
    CorruptError,
    DeclinedError,
    ImgdistError,
    NotFoundError,
    TemporaryError,
    UsageError,
)


async def test_indexes_that_are_ready_are_asked_for_together(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6, 7, state="ready")
        made.supernodes.ready = {digest(5): sealed_index(5)}
        made.node.chunks.stores[sealed_index(5)] = made.node.chunks.stores[bytes([5])]
        layers = await asyncio.gather(*(made.images.layer(REFERENCE, digest(number), MANIFEST) for number in (5, 6, 7)))
        assert [layer.store.node for layer in layers] == [5, 6, 7]
        assert sorted(made.supernodes.asked)[:3] == ["index 6", "index 7", "indexes 3"]


@asynccontextmanager
async def many_layers(tmp_path: Path) -> AsyncIterator[tuple[World, list[int]]]:
    """An image with one layer more than two answers of `INDEXES_FIRST`, all sealed at the supernode."""
    numbers = list(range(5, 5 + 2 * INDEXES_FIRST + 1))
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(*numbers, state="ready")
        made.supernodes.ready = {digest(number): sealed_index(number) for number in numbers}
        stores = {number: FakeStore(number) for number in numbers}
        made.node.chunks.stores = {bytes([number]): store for number, store in stores.items()}
        made.node.chunks.stores |= {sealed_index(number): store for number, store in stores.items()}
        yield made, numbers


async def test_of_many_layers_the_first_ones_indexes_come_first(tmp_path: Path) -> None:
    """The others' are not asked for before: a supernode that prepares both answers gives the first one later."""
    async with many_layers(tmp_path) as (made, numbers):
        answering = made.supernodes.answering = asyncio.Semaphore(0)
        first = [made.images.layer(REFERENCE, digest(number), MANIFEST) for number in numbers[:INDEXES_FIRST]]
        opening = asyncio.gather(*first)
        await made.supernodes.called.wait()
        for _ in range(10):  # turns of the loop, in which the other would be asked for
            await asyncio.sleep(0)
        assert made.supernodes.asked[1:] == [f"indexes {INDEXES_FIRST}"]
        answering.release()
        assert [layer.store.node for layer in await opening] == numbers[:INDEXES_FIRST], "while the others' are awaited"
        asked = made.supernodes.asked[1:]
        assert asked == [f"indexes {INDEXES_FIRST}", f"indexes {INDEXES_FIRST + 1}"]
        answering.release()
        assert (await made.images.layer(REFERENCE, digest(numbers[-1]), MANIFEST)).mounted
        assert made.supernodes.asked[1:] == asked


async def test_a_supernode_that_gave_none_of_the_first_indexes_is_not_asked_for_the_others(tmp_path: Path) -> None:
    async with many_layers(tmp_path) as (made, numbers):
        made.supernodes.ready = TemporaryError("it is away")
        assert (await made.images.layer(REFERENCE, digest(numbers[-1]), MANIFEST)).mounted
        assert [what for what in made.supernodes.asked if what.startswith("indexes")] == [f"indexes {INDEXES_FIRST}"]


@pytest.mark.parametrize("refusal", [UsageError("status 404"), TemporaryError("it is away")])
async def test_a_supernode_without_such_an_answer_is_asked_one_by_one(tmp_path: Path, refusal: ImgdistError) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6, state="ready")
        made.supernodes.ready = refusal
        assert (await made.images.layer(REFERENCE, digest(6), MANIFEST)).mounted
        assert sorted(made.supernodes.asked)[:3] == ["index 5", "index 6", "indexes 2"]


async def test_an_index_that_is_ready_but_wrong_is_not_taken(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6, state="ready")
        made.supernodes.ready = {digest(5): sealed_index(5, "e"), digest(6): sealed_index(6)[:-1]}
        for number, what in ((5, "expected diff ID"), (6, "cut short")):
            with pytest.raises(CorruptError, match=what):
                await made.images.layer(REFERENCE, digest(number), MANIFEST)


async def test_layers_of_an_image_take_turns_from_the_base_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.openings.OPENING_AT_ONCE", 1)
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6, 7)
        await asyncio.gather(*(made.images.layer(REFERENCE, digest(number), MANIFEST) for number in (7, 6, 5)))
        assert [node for step, node in made.node.steps.done if step in ("add", "mount_shown")] == [5, 5, 6, 6, 7, 7]


async def test_of_an_images_small_layers_only_so_many_come_whole_before_it_starts_the_top_ones(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6, 7, size_bytes=WHOLE_BYTES // 2)
        made.node.chunks.stores = {bytes([number]): FakeStore(number, small=True) for number in (5, 6, 7)}
        await asyncio.gather(*(made.images.layer(REFERENCE, digest(number), MANIFEST) for number in (5, 6, 7)))
        mounts = [step for step in made.node.steps.done if step[0].startswith("mount_")]
        assert sorted(mounts) == [("mount_local", 6), ("mount_local", 7), ("mount_shown", 5)]


@pytest.mark.parametrize("error", [TemporaryError("cut"), OSError(28, "No space left on device")])
async def test_a_failed_layer_is_tried_anew_and_the_others_are_kept(tmp_path: Path, error: Exception) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6)
        made.supernodes.answers[digest(6)] = [error, DIFF_ID]
        with pytest.raises(type(error)):
            await made.images.layer(REFERENCE, digest(6), None)
        assert made.images.openings.plain[digest(6)].reason == str(error)
        assert (await made.images.layer(REFERENCE, digest(6), None)).mounted
        assert made.images.openings.plain == {}
        assert [asked for asked in made.supernodes.asked if asked == "index 5"] == ["index 5"]


async def test_a_declined_layer_stays_plain_without_asking_again(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6, declined=(6,))
        for _ in range(3):
            with pytest.raises(DeclinedError, match="hard link"):
                await made.images.layer(REFERENCE, digest(6), MANIFEST)
            assert (await made.images.layer(REFERENCE, digest(5), MANIFEST)).mounted
        assert made.resolved() == 1
        assert "index 6" not in made.supernodes.asked
        assert made.images.openings.plain[digest(6)].layer.diff_id == DIFF_ID


async def test_an_index_of_another_diff_id_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.answers[digest(5)] = ["sha256:" + "e" * 64]
        with pytest.raises(CorruptError, match="expected diff ID sha256:ddd"):
            await made.images.layer(REFERENCE, digest(5), None)
        assert made.node.catalog.all() == [] and made.images.openings.indexing == {}


async def test_a_supernode_that_does_not_know_the_layer_is_told_of_the_image(tmp_path: Path) -> None:
    """The one that resolved it has died, and another follows."""
    async with world(tmp_path) as made:
        made.supernodes.answers[digest(5)] = [NotFoundError("no such layer"), DIFF_ID]
        assert (await made.images.layer(REFERENCE, digest(5), None)).mounted
        assert made.supernodes.asked == [
            f"resolve {REFERENCE} None",
            "index 5",
            f"resolve {REFERENCE} {MANIFEST}",
            "index 5",
        ]


async def test_a_layer_that_was_unmounted_is_mounted_again_from_what_is_here(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        layer = await made.images.layer(REFERENCE, digest(5), None)
        await made.node.catalog.unmount(layer.pack_id)
        again = await made.images.layer(REFERENCE, digest(5), None)
        assert again is layer and layer.mounted
        assert made.supernodes.asked.count("index 5") == 1


async def test_a_revoked_pack_is_no_layer_until_another_comes(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        layer = await made.images.layer(REFERENCE, digest(5), MANIFEST)
        made.revoked[layer.pack_id] = "it lies"
        made.images.give_up(layer.pack_id)
        for _ in range(2):
            with pytest.raises(TemporaryError, match="is revoked: it lies"):
                await made.images.layer(REFERENCE, digest(5), MANIFEST)
        made.node.chunks.stores[bytes([5])] = FakeStore(6)
        made.supernodes.packs[5] = 6
        assert (await made.images.layer(REFERENCE, digest(5), MANIFEST)).store.node == 6
        assert made.images.known.pack_of(digest(5)) == (bytes([6]) * 32).hex()


async def test_a_pack_that_is_revoked_while_it_is_opened_is_not_taken(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        held = made.node.steps.hold("mount_shown")
        opening = asyncio.create_task(made.images.layer(REFERENCE, digest(5), MANIFEST))
        assert await asyncio.to_thread(made.node.steps.reached.wait, 10)
        made.revoked[(bytes([5]) * 32).hex()] = "it lies"
        held.set()
        with pytest.raises(TemporaryError, match="is revoked"):
            await opening


async def test_a_pack_of_another_layer_is_told_to_the_supernodes(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.answers[digest(5)] = ["sha256:" + "0" * 64]
        with pytest.raises(CorruptError, match="expected diff ID"):
            await made.images.layer(REFERENCE, digest(5), MANIFEST)
        assert made.suspects == [(bytes([5]) * 32).hex()]


async def test_a_pack_is_taken_only_if_supernodes_agree_on_it(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        images = made.make(agreement=2)
        made.supernodes.agreed = DisagreementError("a names this, b names that", ["1" * 64, "2" * 64])
        with pytest.raises(DisagreementError):
            await images.layer(REFERENCE, digest(5), MANIFEST)
        assert made.suspects == ["1" * 64, "2" * 64]
        assert not any(asked.startswith("index") for asked in made.supernodes.asked), "nothing is fetched before"
        made.supernodes.agreed = "3" * 64
        with pytest.raises(CorruptError, match="expected pack 333"):
            await images.layer(REFERENCE, digest(5), MANIFEST)
        made.supernodes.agreed = (bytes([5]) * 32).hex()
        assert (await images.layer(REFERENCE, digest(5), MANIFEST)).store.node == 5
        assert "agree 2" in made.supernodes.asked

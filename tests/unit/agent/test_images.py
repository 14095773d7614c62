"""Jobs of images: single flight, what is known without a supernode, chain IDs, documents."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from images_rig import DIFF_ID, MANIFEST, REFERENCE, chain, digest, resolution, world

from agent import rooted
from imgdist.errors import (
    DeclinedError,
    NotFoundError,
    TemporaryError,
)
from imgdist.wire.control import Chain


async def test_the_first_layer_asked_for_starts_them_all_once(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6, 7)
        wanted = [made.images.layer(REFERENCE, digest(number), MANIFEST) for number in (5, 6, 7, 5)]
        layers = await asyncio.gather(*wanted)
        assert [layer.store.node for layer in layers] == [5, 6, 7, 5]
        assert all(layer.mounted for layer in layers)
        assert sorted(made.supernodes.asked) == ["index 5", "index 6", "index 7", f"resolve {REFERENCE} {MANIFEST}"]
        await made.images.layer(REFERENCE, digest(6), MANIFEST)
        assert made.resolved() == 1


async def test_an_image_under_way_is_not_forgotten_with_its_old_packs(tmp_path: Path) -> None:
    """Its base layer is known from before, and its pack went; another's chunks are on their way."""
    async with world(tmp_path) as made:
        await made.images.layer(REFERENCE, digest(5), MANIFEST)
        made.images.forget_without([])
        assert made.images.known.all() == []

        other = "sha256:" + "b" * 64
        made.supernodes.resolution = resolution(5, 6, manifest=other)
        held = made.node.steps.hold("show")
        wanted = asyncio.ensure_future(made.images.layer(REFERENCE, digest(6), other))
        await asyncio.to_thread(made.node.steps.reached.wait, 10)
        made.images.forget_without([])
        held.set()
        await wanted
        assert [image.manifest_digest for image in made.images.known.all()] == [other]
        made.images.forget_without([])
        assert made.images.known.all() == []


async def test_a_caller_that_goes_leaves_the_job_to_the_others(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.going.clear()
        first = asyncio.ensure_future(made.images.layer(REFERENCE, digest(5), None))
        second = asyncio.ensure_future(made.images.layer(REFERENCE, digest(5), None))
        await asyncio.sleep(0)
        first.cancel()
        made.supernodes.going.set()
        assert (await second).mounted
        assert made.resolved() == 1


async def test_a_resolution_that_failed_is_every_waiters_error_and_the_next_caller_tries_anew(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = TemporaryError("the registry is away")
        wanted = [made.images.layer(REFERENCE, digest(5), None) for _ in range(2)]
        assert [type(error) for error in await asyncio.gather(*wanted, return_exceptions=True)] == [TemporaryError] * 2
        assert made.resolved() == 1
        made.supernodes.resolution = resolution(5)
        assert (await made.images.layer(REFERENCE, digest(5), None)).mounted


async def test_a_layer_that_the_manifest_does_not_have_is_declined(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        with pytest.raises(DeclinedError, match="has no layer"):
            await made.images.layer(REFERENCE, digest(8), MANIFEST)


async def test_a_tag_that_moved_is_found_by_the_layers_it_brings_and_when_asked_for_anew(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await made.images.layer(REFERENCE, digest(5), None)
        made.supernodes.resolution = resolution(6, manifest="sha256:" + "b" * 64)
        assert (await made.images.open(REFERENCE)).image.manifest_digest == MANIFEST
        assert (await made.images.layer(REFERENCE, digest(6), None)).store.node == 6
        made.supernodes.resolution = resolution(7, manifest="sha256:" + "c" * 64)
        assert (await made.images.open(REFERENCE, anew=True)).image.manifest_digest == "sha256:" + "c" * 64


async def test_jobs_that_ended_are_forgotten_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6)
        await made.images.layer(REFERENCE, digest(5), None)
        await made.images.layer(REFERENCE, digest(6), None)
        made.supernodes.going.clear()
        under_way = asyncio.ensure_future(made.images.open("reg.test/other:1"))
        await asyncio.sleep(0)
        monkeypatch.setattr("agent.images.KEEP_S", -1.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await made.images.open("reg.test/third:1")
        assert {key[0] for key in made.images._jobs} == {"reg.test/other:1", "reg.test/third:1"}
        assert made.images.openings._opening == {}
        made.supernodes.going.set()
        assert len((await under_way).layers) == 2
        assert (await made.images.layer(REFERENCE, digest(5), None)).mounted


async def test_by_chain_id_first_what_this_node_knows_then_the_supernodes_table(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        with pytest.raises(NotFoundError, match="no image with chain ID"):
            await made.images.layer_by_chain(chain(5))
        made.supernodes.chains[chain(5)] = Chain(chain(5), digest(5), DIFF_ID, "reg.test/app", MANIFEST, "linux/amd64")
        layer = await made.images.layer_by_chain(chain(5))
        assert layer.store.node == 5
        made.supernodes.chains.clear()
        made.supernodes.resolution = TemporaryError("gone")
        await made.node.catalog.unmount(layer.pack_id)
        assert (await made.images.layer_by_chain(chain(5))).mounted


async def test_without_a_supernode_an_image_is_taken_as_this_node_knows_it(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6)
        for opening in (await made.images.open(REFERENCE)).layers.values():
            await opening.wait()
        made.supernodes.resolution = TemporaryError("gone")
        later = made.make()
        for reference, manifest in ((REFERENCE, None), ("reg.test/app@" + MANIFEST, MANIFEST)):
            job = await later.open(reference, manifest)
            assert [(await opening.wait()).store.node for opening in job.layers.values()] == [5, 6]
        with pytest.raises(TemporaryError, match="gone"):
            await later.open("reg.test/other:1")


async def test_without_a_supernode_an_image_that_is_not_all_here_is_not_guessed(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6, declined=(6,))
        await made.images.layer(REFERENCE, digest(5), None)
        made.supernodes.resolution = TemporaryError("gone")
        with pytest.raises(TemporaryError, match="gone"):
            await made.make().open(REFERENCE)


async def test_a_pack_that_a_supernode_lost_has_its_image_resolved_again_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.images.RENEW_S", 0.01)
    async with world(tmp_path) as made:
        layer = await made.images.layer(REFERENCE, digest(5), None)
        made.supernodes.asked.clear()
        for _ in range(5):
            made.images.lost(layer.pack_id)
        made.images.lost("ff" * 32)
        await asyncio.sleep(0)
        assert made.supernodes.asked == [f"resolve {REFERENCE} {MANIFEST}"]
        made.supernodes.resolution = TemporaryError("the registry is away")
        await asyncio.sleep(0.05)
        made.images.lost(layer.pack_id)
        await asyncio.sleep(0)
        assert made.resolved() == 2


async def test_an_image_is_held_against_its_documents_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(rooted, "check", lambda reference, image, documents: checked.append(str(reference)))
    pinned = f"reg.test/app@{digest(9)}"
    async with world(tmp_path) as made:
        image = (await made.images.open(REFERENCE, MANIFEST)).image
        made.supernodes.traces = TemporaryError("no supernode")
        await made.images.check_rooted(REFERENCE, image)
        with pytest.raises(TemporaryError):
            await made.images.check_rooted(pinned, image)
        made.supernodes.traces = None
        for _ in range(2):
            await made.images.check_rooted(pinned, image)
            await made.images.check_rooted(REFERENCE, image)
        assert checked == [pinned, REFERENCE]
        await made.images.open(REFERENCE, MANIFEST, anew=True)
        await made.make().check_rooted(pinned, image)
        assert checked == [pinned, REFERENCE], "nor after another pull, or a restart"
        asked = [words for words in made.supernodes.asked if words.startswith("documents")]
        assert asked[-2:] == [f"documents {pinned} None", f"documents {REFERENCE} {MANIFEST}"]

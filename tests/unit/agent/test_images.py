"""Image jobs: single flight, what fails is tried anew, what is declined stays plain, trust in diff IDs, traces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_node import FakeNode, FakeStore

from agent import rooted
from agent.agreement import DisagreementError
from agent.early import EarlyLayers
from agent.images import Images
from agent.known_images import KnownImages
from agent.layerindexes import LayerIndexes
from agent.openings import WHOLE_BYTES, LayerOpenings
from agent.starts import ImageStarts
from agent.tracing import TraceUpdate, pack
from imgdist.errors import (
    CorruptError,
    DeclinedError,
    ImgdistError,
    NotFoundError,
    ProtocolError,
    TemporaryError,
    UsageError,
)
from imgdist.pack import records
from imgdist.pack.index import IndexBuilder
from imgdist.wire.control import Chain, Layer, LayerState, Resolution, Trace

REFERENCE, MANIFEST = "reg.test/app:1", "sha256:" + "a" * 64
DIFF_ID = "sha256:" + "d" * 64


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def chain(number: int) -> str:
    return f"sha256:c{number:063x}"


def resolution(
    *numbers: int,
    declined: tuple[int, ...] = (),
    trace: bool = False,
    manifest: str = MANIFEST,
    state: LayerState = "converting",
) -> Any:
    layers = tuple(
        Layer(
            digest(number),
            "application/vnd.oci.image.layer.v1.tar+gzip",
            100,
            DIFF_ID,
            chain(number),
            "declined" if number in declined else state,
            reason="hard link to a lower layer" if number in declined else None,
        )
        for number in numbers
    )
    kind = "application/vnd.oci.image.manifest.v1+json"
    return Resolution(REFERENCE, "reg.test/app", manifest, kind, digest(0), "linux/amd64", 1, None, 0, trace, layers)


def sealed_index(number: int, diff_id: str = "d") -> bytes:
    builder = IndexBuilder(digest(number))
    body = builder.header + builder.add(records.Chunk(1, bytes([number]) * 32, metadata=True))
    body += builder.add(records.Metadata(1, 1)) + builder.add(records.Superblock(b"s" * 128))
    body += builder.add(records.DiffId(bytes.fromhex(diff_id * 64))) + builder.add(records.TarSplit(b"t" * 32, 9))
    return body + records.encode(records.Seal(builder.pack_id()))


class FakeSupernodes:
    """Answers from what the test lays out; an exception in its place is raised."""

    def __init__(self) -> None:
        self.resolution: Any = resolution(5)
        self.answers: dict[str, Any] = {}
        self.chains: dict[str, Chain] = {}
        self.traces: Any = None
        self.ready: dict[str, bytes] | Exception = {}
        self.packs: dict[int, int] = {}
        self.agreed: str | Exception = (bytes([5]) * 32).hex()
        self.asked: list[str] = []
        self.going = asyncio.Event()
        self.going.set()

    async def resolve(self, reference: str, *, platform: str, manifest_digest: str | None) -> Resolution:
        self.asked.append(f"resolve {reference} {manifest_digest}")
        await self.going.wait()
        if isinstance(self.resolution, Exception):
            raise self.resolution
        return self.resolution  # type: ignore[no-any-return]

    async def follow_index(self, layer_digest: str, on_progress: Any) -> tuple[Any, bytes]:
        self.asked.append(f"index {int(layer_digest.removeprefix('sha256:'), 16)}")
        number = int(layer_digest.removeprefix("sha256:"), 16)
        answers = self.answers.get(layer_digest, [DIFF_ID])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(diff_id=answer, pack_id=bytes([self.packs.get(number, number)]) * 32), bytes([number])

    async def indexes(self, layer_digests: Sequence[str]) -> dict[str, bytes]:
        self.asked.append(f"indexes {len(layer_digests)}")
        if isinstance(self.ready, Exception):
            raise self.ready
        return self.ready

    async def agree(self, layer_digest: str, reference: str, *, platform: str, manifest_digest: str, count: int) -> str:
        self.asked.append(f"agree {count}")
        if isinstance(self.agreed, Exception):
            raise self.agreed
        return self.agreed

    async def documents(self, reference: str, *, platform: str, manifest_digest: str | None) -> Any:
        self.asked.append(f"documents {reference} {manifest_digest}")
        if isinstance(self.traces, Exception):
            raise self.traces
        return ()

    async def chain(self, chain_id: str) -> Chain | None:
        return self.chains.get(chain_id)

    async def trace(self, manifest_digest: str) -> Trace | None:
        if isinstance(self.traces, Exception):
            raise self.traces
        return self.traces  # type: ignore[no-any-return]


class World:
    def __init__(self, tasks: asyncio.TaskGroup, directory: Path) -> None:
        self.node = FakeNode(tasks, *(FakeStore(number) for number in range(4, 9)))
        self.supernodes: Any = FakeSupernodes()
        self.recorded: list[tuple[str, str]] = []
        self.recorder: Any = SimpleNamespace(
            open=lambda manifest, shown, now: self.recorded.append(("open", manifest)),
            started=lambda manifest, now: self.recorded.append(("started", manifest)),
        )
        self._tasks, self._directory = tasks, directory
        self.revoked: dict[str, str] = {}
        self.suspects: list[str] = []
        self.images = self.make()

    def make(self, traces: bool = True, prefetch: bool = True, agreement: int = 1) -> Images:
        known, catalog, transfers = KnownImages(self._directory / "images"), self.node.catalog, self.node.transfers
        revoked: Any = self.revoked.get
        indexes = LayerIndexes(
            self.supernodes,
            platform="linux/amd64",
            agreement=agreement,
            revoked=revoked,
            suspect=self.suspects.append,
        )
        early = EarlyLayers(self.node.chunks, transfers, self._tasks, enabled=False)
        openings = LayerOpenings(catalog, known, indexes, early, self._tasks, revoked=revoked)
        starts = ImageStarts(
            self.supernodes, catalog, known, transfers, self.recorder, traces=traces, prefetch=prefetch
        )
        return Images(self.supernodes, catalog, known, openings, starts, self._tasks, platform="linux/amd64")

    def resolved(self) -> int:
        return sum(asked.startswith("resolve") for asked in self.supernodes.asked)


@asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    async with asyncio.TaskGroup() as tasks:
        yield World(tasks, directory)


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


async def test_indexes_that_are_ready_are_asked_for_together(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6, 7, state="ready")
        made.supernodes.ready = {digest(5): sealed_index(5)}
        made.node.chunks.stores[sealed_index(5)] = made.node.chunks.stores[bytes([5])]
        layers = await asyncio.gather(*(made.images.layer(REFERENCE, digest(number), MANIFEST) for number in (5, 6, 7)))
        assert [layer.store.node for layer in layers] == [5, 6, 7]
        assert sorted(made.supernodes.asked)[:3] == ["index 6", "index 7", "indexes 3"]


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


async def test_of_an_images_small_layers_only_so_many_come_whole_before_it_starts(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6, 7)
        made.node.chunks.stores = {bytes([number]): FakeStore(number, small=True) for number in (5, 6, 7)}
        assert made.node.chunks.stores[bytes([5])].index.image_size * 2 == WHOLE_BYTES
        await asyncio.gather(*(made.images.layer(REFERENCE, digest(number), MANIFEST) for number in (5, 6, 7)))
        mounts = [step for step in made.node.steps.done if step[0].startswith("mount_")]
        assert sorted(mounts) == [("mount_local", 5), ("mount_local", 6), ("mount_shown", 7)]


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


async def test_a_layer_that_the_manifest_does_not_have_is_declined(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        with pytest.raises(DeclinedError, match="has no layer"):
            await made.images.layer(REFERENCE, digest(8), MANIFEST)


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


async def test_the_trace_is_fetched_in_its_order_of_shown_layers_alone(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.supernodes.resolution = resolution(5, 6, declined=(6,), trace=True)
        made.supernodes.traces = pack(
            TraceUpdate(digest(1), ((digest(5), 1), (digest(6), 0), (digest(5), 0), (digest(8), 3)))
        )
        await made.images.layer(REFERENCE, digest(5), None)
    assert made.node.transfers.traced == [(5, 1), (5, 0)]
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

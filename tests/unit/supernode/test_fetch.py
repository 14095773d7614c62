"""Fetching: one download per layer whoever asks, in order, with errors told and retried, never kept as success."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from fake_registry import FakeRegistry, answer, serving

from imgdist.errors import CorruptError, DeclinedError, ImgdistError, NotFoundError, TemporaryError
from imgdist.limits import Limits
from imgdist.oci import transport
from imgdist.oci.manifest import Descriptor
from imgdist.oci.settings import RegistrySettings
from supernode.catalog import Catalog
from supernode.database import Database
from supernode.fetch import HOLD_OFF_S, Fetcher, Origin
from supernode.metrics import Metrics
from supernode.registries import Registries

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


class FakeStore:
    """Sealed layers in memory."""

    def __init__(self) -> None:
        self.packs: dict[str, bytes] = {}
        self.damaged: set[str] = set()

    def is_damaged(self, digest: str) -> bool:
        return digest in self.damaged

    def find(self, digest: str) -> str | None:
        return "pack-" + digest if digest in self.packs else None

    def used(self, pack_id: str) -> None:
        pass

    def index_bytes(self, pack_id: str, start: int = 0) -> bytes:
        return self.packs[pack_id.removeprefix("pack-")][start:]


class FakeConversion:
    """A "conversion" whose index is the layer's own bytes, a record being one byte; `open` lets `finish` through."""

    def __init__(self, world: World, digest: str) -> None:
        self.world = world
        self.digest = digest
        self.data = b""
        self.ended = False
        self.error: BaseException | None = None
        self.changed = asyncio.Event()
        self.open = asyncio.Event()
        self.fed = asyncio.Event()
        self.chunks = 0
        self.pack_id = "pack-" + digest

    @property
    def progress(self) -> FakeConversion:
        return self

    async def __aenter__(self) -> FakeConversion:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended, self.error = True, error
        self._move()

    async def feed(self, data: bytes) -> None:
        self.data += data
        self.chunks = len(self.data)
        self.fed.set()
        self._move()

    async def finish(self) -> FakeConversion:
        await self.open.wait()
        if self.world.verdict is not None:
            raise self.world.verdict
        self.world.store.packs[self.digest] = self.data
        return self

    async def follow(self, start: int = 0) -> AsyncIterator[bytes]:
        while True:
            changed, ended = self.changed, self.ended
            if self.error is not None:
                raise self.error
            if start < len(self.data):
                piece, start = self.data[start:], len(self.data)
                yield piece
            elif ended:
                return
            else:
                await changed.wait()

    def _move(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class World:
    """A fetcher with a registry of its own and a clock that stands still."""

    def __init__(self, registry: FakeRegistry, http: Any, database: Database, parallel: int) -> None:
        self.registry = registry
        self.store = FakeStore()
        self.now = 0.0
        self.verdict: ImgdistError | None = None
        self.conversions: list[FakeConversion] = []
        self.started: asyncio.Queue[FakeConversion] = asyncio.Queue()
        registries = Registries(http, Metrics(), RegistrySettings(plain_http=[registry.host]))
        store: Any = self.store

        def read(origin: Origin) -> AsyncGenerator[bytes, None]:
            return registries.client(origin.host).blob(origin.repository, origin.layer)

        self.fetcher = Fetcher(
            store, Catalog(database), read, self._convert, parallel, lambda seconds: None, lambda: self.now
        )

    def _convert(self, origin: Origin) -> Any:
        conversion = FakeConversion(self, origin.layer.digest)
        self.conversions.append(conversion)
        self.started.put_nowait(conversion)
        return conversion

    def layer(self, raw: bytes, media_type: str = GZIP) -> Origin:
        descriptor = Descriptor(media_type, self.registry.add_blob(raw), len(raw))
        return Origin(self.registry.host, "a/b", descriptor, "sha256:" + "d" * 64)

    def start(self, *origins: Origin) -> None:
        self.fetcher.learn(origins)
        self.fetcher.start(origins)

    async def index(self, origin: Origin, start: int = 0) -> bytes:
        return b"".join([piece async for piece in self.fetcher.index(origin.layer.digest, start)])


@pytest.fixture
def parallel() -> int:
    return 2


@pytest.fixture
async def world(tmp_path: Path, parallel: int) -> AsyncIterator[World]:
    database = Database(tmp_path / "db")
    try:
        async with serving(FakeRegistry()) as registry, transport.session() as http:
            made = World(registry, http, database, parallel)
            running = asyncio.create_task(made.fetcher.run())
            yield made
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    finally:
        database.close()


async def test_who_asks_at_once_shares_one_download_and_follows_it(world: World) -> None:
    origin = world.layer(b"layer")
    for _ in range(5):
        world.start(origin)
    followers = [asyncio.create_task(world.index(origin, start)) for start in (0, 0, 3)]
    conversion = await world.started.get()
    await conversion.fed.wait()
    status = world.fetcher.status(origin.layer.digest)
    assert (status.state, status.received_bytes, status.size_bytes, status.chunks) == ("converting", 5, 5, 5)
    conversion.open.set()
    assert await asyncio.gather(*followers) == [b"layer", b"layer", b"er"]
    world.start(origin)
    assert await world.index(origin, 1) == b"ayer"
    assert world.fetcher.status(origin.layer.digest).state == "ready"
    assert len(world.registry.paths(part="/blobs/")) == len(world.conversions) == 1


@pytest.mark.parametrize("parallel", [1])
async def test_oldest_image_first_in_it_the_biggest_layers_then_the_small_ones_from_the_base_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supernode.fetch.SMALL_BYTES", 12)
    sizes = [(10, 30, 5, 20, 11), (40, 6)]
    for image in sizes:
        world.start(*(world.layer(bytes([size]) * size) for size in image))
    order = []
    for _ in range(7):
        conversion = await world.started.get()
        conversion.open.set()
        order.append(world.fetcher.jobs[conversion.digest].origin.layer.size)
    assert order == [30, 20, 10, 5, 11, 40, 6]


@pytest.mark.parametrize("parallel", [3])
async def test_as_many_at_a_time_as_allowed(world: World) -> None:
    world.start(*(world.layer(b"x" * size) for size in range(1, 6)))
    running = [await world.started.get() for _ in range(3)]
    for conversion in running:
        await conversion.fed.wait()
    assert world.started.empty()
    running[0].open.set()
    await world.started.get()


async def test_declined_is_remembered_over_a_restart_with_its_reason(world: World, tmp_path: Path) -> None:
    origin = world.layer(b"odd")
    world.verdict = DeclinedError("hard link to another layer")
    world.start(origin)
    (await world.started.get()).open.set()
    with pytest.raises(DeclinedError, match="hard link"):
        await world.index(origin)
    world.start(origin)
    assert world.fetcher.status(origin.layer.digest).reason == "hard link to another layer"
    with pytest.raises(DeclinedError, match="hard link"):
        await world.index(origin)
    assert len(world.conversions) == 1
    database = Database(tmp_path / "db")
    try:
        assert await Catalog(database).declined() == {origin.layer.digest: "hard link to another layer"}
        assert await Catalog(database, Limits(members=5)).declined() == {}, "other limits may allow it"
    finally:
        database.close()


async def test_failure_is_told_held_off_and_tried_again(world: World) -> None:
    origin = world.layer(b"layer")
    world.verdict = CorruptError("not a tar")
    for attempt in range(3):
        world.start(origin)
        (await world.started.get()).open.set()
        with pytest.raises(CorruptError, match="not a tar"):
            await world.index(origin)
        status = world.fetcher.status(origin.layer.digest)
        assert (status.state, status.reason) == ("absent", "not a tar")
        world.now += HOLD_OFF_S * 2**attempt - 0.01
        world.start(origin)
        assert world.fetcher.status(origin.layer.digest).state == "absent"
        world.now += 0.02
    world.verdict = None
    world.start(origin)
    (await world.started.get()).open.set()
    assert await world.index(origin) == b"layer"
    assert world.fetcher.status(origin.layer.digest).reason is None


async def test_a_damaged_layer_is_converted_again_when_its_image_is_resolved(world: World) -> None:
    """Its link stands, so it counts as ready; a supernode that was started since does not know where it is from."""
    origin = world.layer(b"layer")
    digest = origin.layer.digest
    world.store.packs[digest] = b"damaged"
    world.store.damaged.add(digest)
    world.fetcher.again([digest])
    assert digest not in world.fetcher.jobs
    world.start(origin)
    assert digest in world.fetcher.jobs
    (await world.started.get()).open.set()
    assert await world.index(origin) == b"layer"
    world.store.damaged.clear()
    world.start(origin)
    assert digest not in world.fetcher.jobs


async def test_wrong_bytes_from_the_registry_end_the_conversion(world: World) -> None:
    origin = world.layer(b"layer")
    world.registry.blobs[origin.layer.digest] = b"liars"
    world.start(origin)
    conversion = await world.started.get()
    conversion.open.set()
    with pytest.raises(CorruptError, match="have the digest"):
        await world.index(origin)
    assert isinstance(conversion.error, CorruptError)
    assert world.store.packs == {}


async def test_a_fault_of_ours_does_not_stop_the_others(world: World) -> None:
    origin = world.layer(b"layer")
    world.verdict = RuntimeError("bug")  # type: ignore[assignment]
    world.start(origin)
    (await world.started.get()).open.set()
    with pytest.raises((RuntimeError, TemporaryError)):
        await world.index(origin)
    world.verdict = None
    second = world.layer(b"second")
    world.start(second)
    (await world.started.get()).open.set()
    assert await world.index(second) == b"second"


async def test_registry_out_of_reach(world: World) -> None:
    origin = world.layer(b"layer")
    world.registry.always = answer(503, Retry_After="600")
    world.start(origin)
    with pytest.raises(TemporaryError, match="503"):
        await world.index(origin)


async def test_what_cannot_be_taken_over_is_told_without_a_request(world: World) -> None:
    origin = world.layer(b"x", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted")
    world.start(origin)
    status = world.fetcher.status(origin.layer.digest)
    assert status.state == "declined"
    assert "encrypted" in (status.reason or "")
    with pytest.raises(DeclinedError):
        await world.index(origin)
    assert world.registry.log == []


async def test_indexes_of_what_is_ready_as_many_as_fit(world: World) -> None:
    digests = [f"sha256:{number:064x}" for number in range(5)]
    world.start(Origin(world.registry.host, "a/b", Descriptor(GZIP, digests[2], 1), digests[2]))
    world.store.packs = dict(zip(digests, (b"12", b"12345", b"", b"345"), strict=False))
    found = await world.fetcher.ready_indexes(["sha256:junk", *digests], 5)
    assert found == {digests[0]: b"12", digests[3]: b"345"}


async def test_unknown_layer(world: World) -> None:
    with pytest.raises(NotFoundError, match="resolve"):
        await world.index(Origin("h", "r", Descriptor(GZIP, "sha256:" + "0" * 64, 1), ""))
    assert not world.fetcher.known("sha256:" + "0" * 64)


async def test_a_reader_that_leaves_stops_nothing(world: World) -> None:
    origin = world.layer(b"layer")
    world.start(origin)
    leaving = asyncio.create_task(world.index(origin))
    conversion = await world.started.get()
    await conversion.fed.wait()
    leaving.cancel()
    conversion.open.set()
    assert await world.index(origin) == b"layer"

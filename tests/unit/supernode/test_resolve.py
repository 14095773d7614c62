"""Resolving: what is asked of the registry, what comes from the catalog, what happens without a registry."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_registry import OCI_INDEX, OCI_MANIFEST, FakeRegistry, answer, serving, tar_gz

from imgdist.errors import CorruptError, DeniedError, NotFoundError, ProtocolError, TemporaryError
from imgdist.oci import transport
from imgdist.oci.platform import Platform
from imgdist.oci.reference import Reference, parse
from imgdist.oci.settings import RegistrySettings
from supernode.catalog import Catalog
from supernode.chains import Chains
from supernode.database import Database
from supernode.metrics import Metrics
from supernode.registries import Registries
from supernode.resolve import Resolver
from supernode.singleflight import SingleFlight
from supernode.tags import Tags

AMD64 = Platform.parse("linux/amd64")
LAYERS = [tar_gz({"a": b"1"}), tar_gz({"b": b"2"})]


class World:
    """A registry, and resolvers that share one database file as restarts do."""

    def __init__(self, registry: FakeRegistry, http: object, path: Path) -> None:
        self.registry = registry
        self.database = Database(path)
        self.chains = Chains(self.database)
        metrics = Metrics()
        registries = Registries(http, metrics, RegistrySettings(plain_http=[registry.host]))  # type: ignore[arg-type]
        catalog = Catalog(self.database)
        self.resolver = Resolver(registries, catalog, self.chains, Tags(registries, catalog, lambda outcome: None))

    def reference(self, name: str = "a/b:1") -> Reference:
        return parse(f"{self.registry.host}/{name}")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with serving(FakeRegistry()) as registry, transport.session() as http:
        made = World(registry, http, tmp_path / "db")
        try:
            yield made
        finally:
            made.database.close()


async def test_many_at_once_ask_the_registry_once(world: World) -> None:
    digest = world.registry.add_image(LAYERS, "1")
    images = await asyncio.gather(*(world.resolver.resolve(world.reference(), AMD64) for _ in range(50)))
    assert {image.manifest.digest for image in images} == {digest}
    assert sorted(world.registry.paths()) == sorted(
        ["/v2/a/b/manifests/1", f"/v2/a/b/blobs/{images[0].manifest.config.digest}"]
    )


async def test_a_tag_is_revalidated_by_head_and_followed(world: World) -> None:
    first = world.registry.add_image(LAYERS, "1")
    await world.resolver.resolve(world.reference(), AMD64)
    world.registry.log.clear()
    assert (await world.resolver.resolve(world.reference(), AMD64)).manifest.digest == first
    assert [asked.method for asked in world.registry.log] == ["HEAD"]
    second = world.registry.add_image(LAYERS[:1], "1")
    assert (await world.resolver.resolve(world.reference(), AMD64)).manifest.digest == second


async def test_without_the_registry_what_is_known_stands(world: World, tmp_path: Path) -> None:
    digest = world.registry.add_image(LAYERS, "1")
    await world.resolver.resolve(world.reference(), AMD64)
    world.registry.always = answer(503, Retry_After="3600")
    assert (await world.resolver.resolve(world.reference(), AMD64)).manifest.digest == digest
    world.registry.log.clear()
    by_digest = world.reference(f"a/b@{digest}")
    assert (await world.resolver.resolve(by_digest, AMD64)).manifest.digest == digest
    assert world.registry.log == []
    with pytest.raises(TemporaryError, match="503"):
        await world.resolver.resolve(world.reference("a/b:2"), AMD64)


async def test_a_tag_that_is_gone_or_denied_does_not_stand(world: World) -> None:
    world.registry.add_image(LAYERS, "1")
    await world.resolver.resolve(world.reference(), AMD64)
    world.registry.tags.clear()
    with pytest.raises(NotFoundError):
        await world.resolver.resolve(world.reference(), AMD64)
    world.registry.always = answer(403)
    with pytest.raises(DeniedError):
        await world.resolver.resolve(world.reference(), AMD64)


async def test_index_and_chain_table(world: World) -> None:
    digest = world.registry.add_image(LAYERS)
    entry = {"mediaType": OCI_MANIFEST, "digest": digest, "size": 1}
    manifests = [
        {**entry, "digest": "sha256:" + "0" * 64, "platform": {"os": "linux", "architecture": "arm64"}},
        {**entry, "platform": {"os": "linux", "architecture": "amd64"}},
    ]
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).encode()
    world.registry.add_manifest(raw, OCI_INDEX, "multi")
    image = await world.resolver.resolve(world.reference("a/b:multi"), AMD64)
    assert image.manifest.digest == digest
    for number, chain_id in enumerate(image.chain_ids):
        chain = await world.chains.find(chain_id)
        assert chain is not None
        assert chain.layer_digest == image.manifest.layers[number].digest
        assert chain.manifest_digest == digest
        assert chain.name == f"{world.registry.host}/a/b"
    with pytest.raises(NotFoundError, match="linux/s390x"):
        await world.resolver.resolve(world.reference("a/b:multi"), Platform.parse("linux/s390x"))


async def test_an_index_that_contains_only_indexes_ends(world: World) -> None:
    digest = "sha256:" + "0" * 64
    for depth in range(5):
        entry = {"mediaType": OCI_INDEX, "digest": digest, "size": 1}
        raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
        digest = world.registry.add_manifest(raw, OCI_INDEX, f"t{depth}")
    with pytest.raises(ProtocolError, match="indexes inside"):
        await world.resolver.resolve(world.reference("a/b:t4"), AMD64)


async def test_corrupt_documents_are_not_kept(world: World) -> None:
    digest = world.registry.add_image(LAYERS, "1")
    media_type, raw = world.registry.manifests[digest]
    by_digest = world.reference(f"a/b@{digest}")
    world.registry.manifests[digest] = (media_type, raw + b" ")
    with pytest.raises(CorruptError):
        await world.resolver.resolve(by_digest, AMD64)
    world.registry.manifests[digest] = (media_type, raw)
    assert (await world.resolver.resolve(by_digest, AMD64)).manifest.raw == raw


async def test_single_flight_hands_on_results_and_errors_and_survives_cancellation() -> None:
    flights: SingleFlight[int] = SingleFlight()
    gate = asyncio.Event()
    begun: asyncio.Queue[int] = asyncio.Queue()
    calls = 0

    async def call() -> int:
        nonlocal calls
        calls += 1
        begun.put_nowait(calls)
        await gate.wait()
        return calls

    async with asyncio.TaskGroup() as tasks:
        leader = tasks.create_task(flights.do("k", call))
        others = [tasks.create_task(flights.do("k", call)) for _ in range(3)]
        assert await begun.get() == 1
        others[0].cancel()
        leader.cancel()
        assert await begun.get() == 2
        gate.set()
    assert [task.result() for task in others[1:]] == [2, 2]

    async def fail() -> int:
        await asyncio.sleep(0)
        raise NotFoundError("x")

    results = await asyncio.gather(*(flights.do("k", fail) for _ in range(2)), return_exceptions=True)
    assert [type(result) for result in results] == [NotFoundError] * 2

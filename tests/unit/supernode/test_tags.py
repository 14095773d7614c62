"""What tags name: who is asked when, what stands in for a registry that does not answer, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from fake_registry import FakeRegistry, answer, serving, tar_gz

from imgdist.errors import NotFoundError, TemporaryError
from imgdist.oci import transport
from imgdist.oci.reference import Reference
from imgdist.oci.settings import RegistrySettings
from supernode import tags
from supernode.catalog import Catalog
from supernode.database import Database
from supernode.metrics import Metrics
from supernode.registries import Registries
from supernode.tags import Tagged, Tags

LAYERS = [tar_gz({"a": b"1"}), tar_gz({"b": b"2"})]


class World:
    """A registry with tag 1, and tags with a clock and an account of their own."""

    def __init__(self, registry: FakeRegistry, http: object, path: Path) -> None:
        self.registry, self.now, self.counted = registry, 1000.0, list[str]()
        self.database = Database(path)
        registries = Registries(http, Metrics(), RegistrySettings(plain_http=[registry.host]))  # type: ignore[arg-type]
        self.tags = Tags(registries, Catalog(self.database), self.counted.append, lambda: self.now)
        self.first, self.second = registry.add_image(LAYERS[:1], "1"), registry.add_image(LAYERS)
        self.reference = Reference(registry.host, "a/b", tag="1")

    def methods(self) -> list[str]:
        return [asked.method for asked in self.registry.log]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(tags, "PATIENCE_S", 0.2)
    async with serving(FakeRegistry()) as registry, transport.session() as http:
        made = World(registry, http, tmp_path / "db")
        try:
            yield made
        finally:
            made.database.close()


async def test_many_at_once_ask_once(world: World) -> None:
    found = await asyncio.gather(*(world.tags.digest(world.reference) for _ in range(20)))
    assert found == [Tagged(world.first)] * 20
    assert (world.methods(), world.counted) == (["GET"], ["moved"])
    await asyncio.gather(*(world.tags.digest(world.reference) for _ in range(20)))
    assert (world.methods(), world.counted) == (["GET", "HEAD"], ["moved", "confirmed"])


async def test_a_silent_registry_costs_its_patience_once(world: World) -> None:
    await world.tags.digest(world.reference)

    async def silent(request: web.Request) -> web.StreamResponse | None:
        await asyncio.sleep(30)
        return None

    world.registry.always = silent
    world.now += 100
    for _ in range(3):
        assert await world.tags.digest(world.reference, 60, 600) == Tagged(world.first, 100, is_stale=True)
    assert world.methods() == ["GET", "HEAD"], "it rests"
    world.registry.always = None
    world.registry.tags["a/b:1"] = world.second
    world.now += tags.REST_S + 1
    assert await world.tags.digest(world.reference, 60, 600) == Tagged(world.second)
    assert world.counted == ["moved", "stale", "stale", "stale", "moved"]


async def test_nothing_stands_in_beyond_the_limit_nor_for_a_tag_that_was_removed(world: World) -> None:
    await world.tags.digest(world.reference)
    world.registry.always = answer(503)
    world.now += 601
    with pytest.raises(TemporaryError):
        await world.tags.digest(world.reference, 60, 600)
    world.registry.always = None
    world.now += 100
    del world.registry.tags["a/b:1"]
    with pytest.raises(NotFoundError):
        await world.tags.digest(world.reference, 60, 10_000)


async def test_the_age_outlives_a_restart(world: World) -> None:
    await world.tags.digest(world.reference)
    world.registry.always = answer(503)
    world.now += 30
    again = Tags(world.tags._registries, Catalog(world.database), world.counted.append, lambda: world.now)
    assert await again.digest(world.reference, 60, 600) == Tagged(world.first, 30)

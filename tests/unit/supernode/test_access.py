"""Who may have what: the registry is asked for each client, and a digest alone opens nothing."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from fake_registry import FakeRegistry, serving
from private_registry import PrivateRegistry

from agent.proof import proving
from imgdist.config import RegistryConfig
from imgdist.errors import TemporaryError
from imgdist.oci import transport
from imgdist.oci.manifest import Descriptor
from imgdist.oci.patterns import Patterns
from imgdist.oci.reference import Reference
from imgdist.oci.seen import SeenCredentials
from imgdist.oci.settings import RegistrySettings
from imgdist.wire.clusterkey import FIELD, ClusterKey, control
from supernode.access import provenance
from supernode.access.access import Access
from supernode.access.grants import Grants
from supernode.access.guard import guard
from supernode.access.proofs import HOST_MAX, Proofs
from supernode.access.provenance import Provenance
from supernode.database import Database
from supernode.metrics import Metrics
from supernode.registries import Registries

A, B = "a/private", "b/own"


class Site:
    """A registry with two tenants, one of the second tenant's own, and what a supernode has of both."""

    def __init__(self, registry: PrivateRegistry, lying: FakeRegistry, registries: Registries, database: Database):
        self.registry = registry
        self.lying = lying
        self.registries = registries
        self.provenance = Provenance(database)
        registries._witness = self.provenance
        self.here: set[str] = set()
        self.now = 1000.0
        self.answers: list[str] = []
        self.access = self.made()

    def made(self, shared: tuple[str, ...] = ()) -> Access:
        grants = Grants(60, 600)
        return Access(
            self.registries,
            grants,
            self.provenance,
            Patterns(shared, "x"),
            self._holds,
            self.answers.append,
            lambda: self.now,
        )

    async def _holds(self, digest: str) -> bool:
        return digest in self.here

    async def status(self, repository: str, reference: str, shown: str | None = None, host: str = "") -> int:
        return (await self.access.allowed(f"{host or self.registry.host}/{repository}", reference, shown)).status

    async def pull(self, repository: str, digest: str, host: str = "") -> bytes:
        """As a supernode reads a blob, by its own means."""
        host = host or self.registry.host
        size = len(self.registry.blobs[digest])
        client = self.registries.client(host)
        async with aclosing(client.blob(repository, Descriptor("x/y", digest, size))) as pieces:
            raw = b"".join([piece async for piece in pieces])
        self.here.add(digest)
        return raw


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        registry = PrivateRegistry(users={"a": ("pass-of-a", {A}), "b": ("pass-of-b", {B})}, public={"open/x"})
        await stack.enter_async_context(serving(registry))
        lying = await stack.enter_async_context(serving(FakeRegistry()))
        http = await stack.enter_async_context(transport.session())
        database = Database(tmp_path / "db")
        stack.callback(database.close)
        settings = RegistrySettings(RegistryConfig(deny=("*/forbidden/*",)), [registry.host, lying.host])
        yield Site(registry, lying, Registries(http, Metrics(), settings), database)


async def eventually(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await true():  # noqa: ASYNC110 - of somebody who sets no event
            await asyncio.sleep(0.01)


async def test_a_private_repository_is_its_tenants_alone(site: Site) -> None:
    registry = site.registry
    layer, manifest = registry.add_blob(b"layer" * 100), registry.add_image([], "1", repository=A)
    for reference in ("manifests/1", f"manifests/{manifest}", f"blobs/{layer}", "tags/list", f"referrers/{manifest}"):
        assert await site.status(A, reference, registry.bearer("a", A)) == 200
        assert await site.status(A, reference, registry.bearer("b", B)) == 401
        assert await site.status(A, reference, registry.bearer("b", A)) == 401
        assert await site.status(A, reference) == 401
    verdict = await site.access.allowed(f"{registry.host}/{A}", "manifests/1", None)
    assert verdict.challenges[0].startswith("Bearer realm=") and f"repository:{A}:pull" in verdict.challenges[0]


async def test_being_sent_to_a_sign_on_page_is_a_no(site: Site) -> None:
    registry = site.registry
    registry.signs_on = True
    layer, manifest = registry.add_blob(b"layer" * 100), registry.add_image([], "1", repository=A)
    site.registries.seen.note(f"{registry.host}/{A}", registry.bearer("a", A))
    await site.pull(A, layer)
    for reference in ("manifests/1", f"manifests/{manifest}", f"blobs/{layer}", "tags/list", f"referrers/{manifest}"):
        for shown in (None, registry.bearer("b", B), "Basic eDp5"):
            assert await site.status(A, reference, shown) == 403
        assert await site.status(A, reference, registry.bearer("a", A)) == 200
    assert not await site.registries.client(registry.host).has(B, f"blobs/{layer}")


async def test_a_blob_in_storage_is_told_from_a_page(site: Site) -> None:
    registry = site.registry
    registry.url_s, registry.expired = 60.0, 2  # addresses there are signed for GET alone
    layer, shown = registry.add_blob(b"layer" * 100), registry.bearer("a", A)
    site.registries.seen.note(f"{registry.host}/{A}", shown)
    assert await site.status(A, f"blobs/{layer}", registry.bearer("b", B)) == 401
    assert await site.status(A, f"blobs/{layer}", shown) == 200
    assert await site.registries.client(registry.host).has(A, f"blobs/{layer}")
    site.access, registry.storage_page = site.made(), True
    assert await site.status(A, f"blobs/{layer}", shown) == 403
    assert not await site.registries.client(registry.host).has(A, f"blobs/{layer}")


async def test_a_manifest_that_is_kept_elsewhere_is_followed_without_the_clients_secret(site: Site) -> None:
    registry, storage = site.registry, site.lying
    manifest = registry.add_image([], "1", repository="open/x")
    storage.manifests[manifest] = registry.manifests[manifest]

    async def elsewhere(request: web.Request) -> web.Response | None:
        away = {"Location": f"http://{storage.host}{request.path}"}
        return web.Response(status=307, headers=away) if "/manifests/" in request.path else None

    async def challenge(request: web.Request) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})

    registry.always = elsewhere
    assert await site.status("open/x", f"manifests/{manifest}") == 200
    assert all("Authorization" not in asked.headers for asked in storage.log)
    site.access, storage.always = site.made(), challenge
    verdict = await site.access.allowed(f"{registry.host}/open/x", f"manifests/{manifest}", None)
    assert verdict.status == 401 and all(challenge.startswith("Bearer") for challenge in verdict.challenges)


async def test_a_yes_is_remembered_for_a_moment(site: Site) -> None:
    site.registry.add_image([], "1", repository=A)
    shown = site.registry.bearer("a", A)
    assert await site.status(A, "manifests/1", shown) == 200
    asked = len(site.registry.statuses)
    assert await site.status(A, "manifests/1", shown) == 200
    assert len(site.registry.statuses) == asked
    site.registry.users["a"] = ("pass-of-a", set())
    site.now += 61
    assert await site.status(A, "manifests/1", shown) == 401
    assert site.answers.count("remembered") == 1


async def test_everybody_reads_what_is_open_and_one_question_serves_all(site: Site) -> None:
    site.registry.add_image([], "1", repository="open/x")
    asked = [
        site.status("open/x", "manifests/1", shown)
        for shown in (None, "Bearer nonsense", site.registry.bearer("b", B), None)
    ]
    assert await asyncio.gather(*asked) == [200] * 4
    assert [status for path, status in site.registry.statuses if "manifests" in path] == [401, 200]


async def test_a_digest_of_another_repository_opens_nothing(site: Site) -> None:
    registry = site.registry
    site.registries.seen.note(f"{registry.host}/{A}", registry.bearer("a", A))
    layer = registry.add_blob(b"secret" * 1000)
    assert await site.pull(A, layer) == registry.blobs[layer]

    async def none_of_it(request: object) -> object:
        assert isinstance(request, web.Request)
        return web.Response(status=404) if f"/{B}/blobs/" in request.path else None

    registry.always = none_of_it  # type: ignore[assignment]
    assert await site.status(B, f"blobs/{layer}", registry.bearer("b", B)) == 404
    assert await site.status(A, f"blobs/{layer}", registry.bearer("a", A)) == 200
    registry.always = None  # the registry says that it has it there, too: mounted from the other
    site.access = site.made()
    assert await site.status(B, f"blobs/{layer}", registry.bearer("b", B)) == 200


async def test_a_registry_that_says_it_has_it_must_show_it(site: Site) -> None:
    registry, lying = site.registry, site.lying
    site.registries.seen.note(f"{registry.host}/{A}", registry.bearer("a", A))
    layer = registry.add_blob(b"secret" * 1000)
    await site.pull(A, layer)

    async def yes(request: object) -> object:
        assert isinstance(request, web.Request)
        return web.Response(headers={"Content-Length": "6000"}) if request.method == "HEAD" else None

    lying.always = yes  # type: ignore[assignment]

    async def asked_for() -> bool:
        return any(asked.method == "GET" and "/blobs/" in asked.path for asked in lying.log)

    async def allowed() -> bool:
        return await site.status("evil/x", f"blobs/{layer}", host=lying.host) == 200

    running = asyncio.create_task(site.access.run())
    try:
        assert await site.status("evil/x", f"blobs/{layer}", host=lying.host) == 404
        await eventually(asked_for)
        assert await site.status("evil/x", f"blobs/{layer}", host=lying.host) == 404
        assert not await site.access.is_proven(f"{lying.host}/evil/x", layer, 6000)
        lying.add_blob(registry.blobs[layer])  # now it has it
        await eventually(allowed)
    finally:
        running.cancel()
    assert await site.access.is_proven(f"{lying.host}/evil/x", layer, 6000)


async def test_a_blob_on_its_way_from_one_registry_is_not_anothers(site: Site) -> None:
    with site.provenance.reading(f"{site.registry.host}/{A}", "sha256:" + "1" * 64):
        assert site.provenance.readers("sha256:" + "1" * 64) == {site.registry.host}
        site.here.add("sha256:" + "1" * 64)
        assert not await site.access.is_proven(f"{site.lying.host}/evil/x", "sha256:" + "1" * 64, 1)
        assert await site.access.is_proven(f"{site.registry.host}/{A}", "sha256:" + "1" * 64, 1)
    assert not site.provenance.readers("sha256:" + "1" * 64)
    assert not await site.access.is_proven(f"{site.registry.host}/{A}", "sha256:" + "1" * 64, 1)


async def test_what_was_delivered_is_known_after_a_restart(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    first = Provenance(database)
    running = asyncio.create_task(first.run())
    first.delivered("h:1/a", "sha256:x")
    await eventually(lambda: Provenance(database).has("h:1/a", "sha256:x"))
    running.cancel()
    assert await Provenance(database).hosts("sha256:x") == {"h:1"}
    assert not await Provenance(database).has("h:1/b", "sha256:x")
    database.close()


async def test_a_full_disk_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "AGAIN_S", 0.0)
    database, reader = Database(tmp_path / "db"), Database(tmp_path / "db")
    witness = Provenance(database)
    call, failures = database.call, iter((True, True, False))

    async def full(work: Callable[[sqlite3.Connection], object]) -> object:
        if next(failures, False):
            raise TemporaryError("database or disk is full")
        return await call(work)

    monkeypatch.setattr(database, "call", full)
    running = asyncio.create_task(witness.run())
    try:
        witness.delivered("h:1/a", "sha256:x")
        await eventually(lambda: Provenance(reader).has("h:1/a", "sha256:x"))
    finally:
        running.cancel()
    database.close()
    reader.close()


async def test_a_registry_that_dawdles_or_breaks_keeps_no_other_from_its_proof(site: Site) -> None:
    host, layer = site.lying.host, site.lying.add_blob(b"layer" * 1000)
    proofs = Proofs(site.registries)
    stays, broken = asyncio.Event(), site.registries.client("broken.example")

    async def dawdle(request: web.Request) -> web.Response:
        await stays.wait()
        return web.Response()

    async def breaks(repository: str, digest: str) -> int:
        raise RuntimeError("a fault of ours")

    broken.blob_size = breaks  # type: ignore[method-assign]
    site.registry.always = dawdle
    running = asyncio.create_task(proofs.run())
    try:
        proofs.begin(Reference("broken.example", "x", digest=layer), None)
        proofs.begin(Reference(site.registry.host, "open/x", digest=layer), None)
        proofs.begin(Reference(host, "x", digest=layer), None)
        async with asyncio.timeout(10):
            await proofs.settled(host, layer)
            await proofs.settled("broken.example", layer)
        assert await site.provenance.has(f"{host}/x", layer)
        assert proofs.hosts(layer) == {site.registry.host}
    finally:
        stays.set()
        running.cancel()


async def test_a_registry_that_claims_much_leaves_room_for_the_proofs_of_others(site: Site) -> None:
    proofs, digests = Proofs(site.registries), [f"sha256:{number:064x}" for number in range(HOST_MAX + 1)]
    for digest in digests:
        proofs.begin(Reference("slow.example", "x", digest=digest), 1)
    proofs.begin(Reference("other.example", "x", digest=digests[-1]), 1)
    assert proofs.hosts(digests[0]) == {"slow.example"} and proofs.hosts(digests[-1]) == {"other.example"}


async def test_when_nobody_can_be_asked_nobody_new_gets_in(site: Site) -> None:
    registry = site.registry
    registry.add_image([], "1", repository=A)
    shown = registry.bearer("a", A)
    assert await site.status(A, "manifests/1", shown) == 200
    registry.add_image([], "1", repository="open/x")
    assert await site.status("open/x", "manifests/1") == 200
    registry.is_down = True
    site.now += 61
    began = time.monotonic()
    assert await site.status(A, "manifests/1", shown) == 200
    assert await site.status(A, "manifests/1", registry.bearer("b", B)) == 503
    assert await site.status(A, "manifests/1") == 503
    assert time.monotonic() - began < 5
    assert "outage" in site.answers
    assert await site.status("open/x", "manifests/1") == 200, "everybody could read it"
    site.now += 600
    assert await site.status(A, "manifests/1", shown) == 503


async def test_shared_repositories_and_forbidden_ones(site: Site) -> None:
    site.access = site.made(shared=("*/a/*",))
    site.registry.add_image([], "1", repository=A)
    assert await site.status(A, "manifests/1") == 200
    assert await site.status("forbidden/x", "manifests/1") == 403


async def test_what_a_client_showed_is_used_for_its_repository_until_it_expires(site: Site) -> None:
    registry = site.registry
    layer = registry.add_blob(b"mine" * 1000)
    shown = registry.bearer("a", A)
    assert await site.status(A, f"blobs/{layer}", shown) == 200
    assert site.registries.seen.find(f"{registry.host}/{A}") == shown
    assert site.registries.seen.find(f"{registry.host}/{B}") is None
    assert await site.pull(A, layer) == registry.blobs[layer]


def jwt(ends: float) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": ends}).encode()).decode().rstrip("=")
    return f"Bearer e30.{claims}.c2ln"


def test_secrets_are_gone_when_they_expire() -> None:
    now = [1000.0]
    seen = SeenCredentials(lambda: now[0])
    seen.note("h/a", jwt(1300))
    seen.note("h/a", "Bearer opaque")
    seen.note("h/b", "Basic eDp5")
    assert seen.find("h/a") == "Bearer opaque"
    seen.refused("h/a", "Bearer opaque")
    assert seen.find("h/a") == jwt(1300)
    now[0] = 1300
    assert seen.find("h/a") is None
    assert seen.find("h/b") == "Basic eDp5"
    now[0] = 1600
    seen.sweep()
    assert not seen._headers


async def test_the_control_api_is_for_nodes_where_there_is_a_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef" * 2)
    (tmp_path / "key").chmod(0o600)
    key = ClusterKey(str(tmp_path / "key"))

    async def answer(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(middlewares=guard(key))
    app.router.add_route("*", "/{tail:.*}", answer)
    assert guard(None) == ()
    async with AsyncExitStack() as stack:
        runner = web.AppRunner(app)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await web.UnixSite(runner, str(tmp_path / "s")).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        node = await stack.enter_async_context(aiohttp.ClientSession(url, middlewares=proving(key)))
        tenant = await stack.enter_async_context(aiohttp.ClientSession(url))
        root = await stack.enter_async_context(
            aiohttp.ClientSession("http://x", connector=aiohttp.UnixConnector(str(tmp_path / "s")))
        )

        async def seen(http: aiohttp.ClientSession, path: str, **headers: str) -> str:
            try:
                async with http.get(path, headers=headers) as response:
                    return str(response.status)
            except aiohttp.ClientError:
                return "cut"

        path = "/v1/layers/sha256:ab%2Fc/index?from=3&x=%20"
        assert await seen(node, path) == "200" and await seen(root, path) == "200"
        assert await seen(tenant, path) == "500"  # a DeniedError, which the API's own middleware makes a 403
        stolen = key.token(control("GET", "/v1/status"))
        assert await seen(tenant, "/v1/status", **{FIELD: stolen}) == "200"
        assert await seen(tenant, path, **{FIELD: stolen}) == "500"
        for public in ("/v2/a/manifests/1", "/healthz", "/readyz", "/metrics"):
            assert await seen(tenant, public) == "200"

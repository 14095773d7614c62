"""The control API over HTTP, with the agent's client: documents, streams, errors and their kinds."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fake_registry import FakeRegistry, answer, serving, tar_gz

from agent.supernode_client import SupernodeClient
from agent.supernode_http import Interrupted
from imgdist.errors import (
    CorruptError,
    DeclinedError,
    DeniedError,
    NotFoundError,
    ProtocolError,
    TemporaryError,
    UsageError,
)
from imgdist.oci import transport
from imgdist.oci.manifest import Descriptor, digest_of
from imgdist.oci.patterns import Patterns
from imgdist.oci.settings import RegistrySettings
from imgdist.pack import records
from imgdist.pack.index import IndexBuilder, zero_digest
from imgdist.proving.process import When
from imgdist.proving.verdict import Verdict
from imgdist.space import Watermarks
from imgdist.wire.address import Address
from imgdist.wire.clusterkey import ClusterKey
from imgdist.wire.control import Body, LayerStatus, Trace
from supernode.access.access import Access
from supernode.access.grants import Grants
from supernode.access.provenance import Provenance
from supernode.api import CROWD_BYTES, Parts, application, metrics_application
from supernode.blobs.source import Blobs
from supernode.catalog import Catalog
from supernode.chains import Chains
from supernode.convert.pipeline import Options, convert
from supernode.database import Database
from supernode.fetch import Origin
from supernode.metrics import Metrics
from supernode.outgoing import ANSWER_BYTES
from supernode.proving.prover import Prover
from supernode.registries import Registries
from supernode.resolve import Resolver
from supernode.space.keeper import SpaceKeeper
from supernode.store import LocalStore
from supernode.store.writer import PackWriter
from supernode.tags import Tags
from supernode.traces import Traces
from supernode.tracker.session import Tracker

DIGEST = "sha256:" + "1" * 64


def sealed_stream() -> bytes:
    builder = IndexBuilder(DIGEST)
    body = builder.header
    for number in range(5):
        body += builder.add(records.Chunk(number + 1, zero_digest(4096 * (number + 1)), zero=True))
    body += builder.add(records.Metadata(1, 1))
    body += builder.add(records.Superblock(b"s" * 128))
    body += builder.add(records.DiffId(b"d" * 32))
    body += builder.add(records.TarSplit(b"t" * 32, 9))
    return body + records.encode(records.Seal(builder.pack_id()))


class FakeFetcher:
    """Plays back what an index stream is to do: bytes, or an error."""

    def __init__(self) -> None:
        self.plays: list[list[bytes | Exception]] = []
        self.asked: list[int] = []
        self.started: list[Origin] = []
        self.statuses: dict[str, LayerStatus] = {}
        self.jobs: dict[str, Any] = {}
        self.declined: dict[str, str] = {}
        self.streams: dict[str, bytes] = {}
        self.unasked: dict[str, bytes] = {}

    def learn(self, origins: list[Origin]) -> None:
        pass

    def start(self, origins: list[Origin]) -> None:
        self.started += origins

    def known(self, digest: str) -> bool:
        return digest in self.statuses

    def status(self, digest: str) -> LayerStatus:
        return self.statuses.get(digest, LayerStatus(digest, "absent"))

    async def ready_indexes(self, digests: Sequence[str], most_bytes: int) -> dict[str, bytes]:
        return {digest: self.streams[digest] for digest in digests if digest in self.streams} | self.unasked

    async def metadata(self, streams: Mapping[str, bytes], most_bytes: int) -> dict[str, tuple[Body, ...]]:
        return {digest: (Body(7, 0, b"body"),) for digest in streams}

    async def index(self, digest: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        self.asked.append(start)
        for step in self.plays.pop(0):
            if isinstance(step, Exception):
                raise step
            yield step
            await asyncio.sleep(0)


class World:
    """A control API on a unix socket and on TCP, with a registry behind it."""

    def __init__(self, registry: FakeRegistry, http: Any, root: Path, database: Database) -> None:
        self.registry = registry
        self.fetcher = FakeFetcher()
        self.chunks: Address | None = Address("127.0.0.1", 7601)
        metrics = Metrics()
        registries = Registries(http, metrics, RegistrySettings(plain_http=[registry.host]))
        catalog, chains = Catalog(database), Chains(database)
        store = LocalStore(root)
        store.recover()
        (root / "traces").mkdir()
        fetcher: Any = self.fetcher
        self.parts = Parts(
            root=root,
            resolver=Resolver(registries, catalog, chains, Tags(registries, catalog, metrics.tag_asked)),
            fetcher=fetcher,
            blobs=Blobs(store, registries),
            store=store,
            chains=chains,
            traces=Traces(root / "traces"),
            metrics=metrics,
            tracker=Tracker(metrics),
            space=SpaceKeeper(
                store,
                root,
                Watermarks(0.99, 0.9),
                metrics,
                retention_s=0,
                wanted=lambda: (),
                under_way=lambda: (),
                joining_s=0,
            ),
            prover=Prover(
                store, metrics, every_s=0, revoked=self._revoked, again=lambda digests: None, prove=self._prove
            ),
            access=Access(registries, Grants(60, 600), Provenance(database), Patterns((), "shared"), self._holds),
            key=None,
            chunks=lambda: self.chunks,
        )
        self.verdict = Verdict("proven")
        self.socket = Address(path=str(root / "s"))
        self.tcp = ""

    async def _holds(self, digest: str) -> bool:
        return False

    async def _revoked(self, pack_id: str, reason: str) -> None:
        pass

    async def _prove(self, directory: Path, when: When) -> Verdict:
        return self.verdict

    def client(self) -> SupernodeClient:
        return SupernodeClient(self.socket.url)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = Database(tmp_path / "db")
    try:
        async with serving(FakeRegistry()) as registry, transport.session() as http:
            made = World(registry, http, tmp_path, database)
            runner = web.AppRunner(application(made.parts), shutdown_timeout=0.1)
            await runner.setup()
            await web.SockSite(runner, made.socket.listen()).start()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            made.tcp = f"http://127.0.0.1:{runner.addresses[-1][1]}"
            yield made
            await runner.cleanup()
    finally:
        database.close()


async def test_resolve_names_everything_and_starts_the_conversion(world: World) -> None:
    layers = [tar_gz({"a": b"1"}), tar_gz({"b": b"22"})]
    digest = world.registry.add_image(layers, "1")
    reference = f"{world.registry.host}/a/b:1"
    async with world.client() as client:
        resolved = await client.resolve(reference, platform="linux/amd64", convert=False)
        assert world.fetcher.started == []
        assert resolved.documents == ()
        asked = await client.resolve(reference, platform="linux/amd64", convert=False, documents=True)
        assert digest_of(asked.documents[0].raw) == digest
        assert [digest_of(document.raw) for document in asked.documents[-2:]] == [
            resolved.manifest_digest, resolved.config_digest,
        ]  # fmt: skip
        again = await client.resolve(reference, platform="linux/amd64", manifest_digest=digest)
    assert again.layers == resolved.layers
    assert [origin.layer.size for origin in world.fetcher.started] == [len(layer) for layer in layers]
    assert resolved.reference == reference
    assert resolved.name == f"{world.registry.host}/a/b"
    assert (resolved.manifest_digest, resolved.platform) == (digest, "linux/amd64")
    assert resolved.size_bytes == sum(map(len, layers))
    assert (resolved.chunks, resolved.format_version, resolved.trace) == ("http://127.0.0.1:7601", 0, False)
    assert [layer.state for layer in resolved.layers] == ["absent", "absent"]
    assert resolved.layers[0].chain_id == resolved.layers[0].diff_id
    async with world.client() as client:
        chain = await client.chain(resolved.layers[1].chain_id)
        assert chain is not None
        assert chain.layer_digest == resolved.layers[1].digest
        assert await client.chain(DIGEST) is None


@pytest.fixture
async def among_tenants(world: World, tmp_path: Path) -> AsyncIterator[SupernodeClient]:
    """A client of the same supernode in a cluster with a key."""
    (tmp_path / "key").write_text("k" * 64)
    (tmp_path / "key").chmod(0o600)
    parts = replace(world.parts, key=ClusterKey(str(tmp_path / "key")))
    runner = web.AppRunner(application(parts), shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "c")).start()
    async with SupernodeClient(f"unix://{tmp_path}/c") as client:
        yield client
    await runner.cleanup()


@pytest.mark.parametrize(
    ("host", "repository", "is_theirs"),
    [("", "a/b", True), ("", "c/d", True), ("", "e/f", False), ("other.example", "a/b", False)],
)
async def test_a_layer_that_waits_to_be_read_is_its_registrys(
    world: World, among_tenants: SupernodeClient, host: str, repository: str, is_theirs: bool
) -> None:
    """Another repository of the same registry has it if the registry says so."""
    layer = tar_gz({"a": b"1"})
    world.registry.add_image([layer], "1")
    if not is_theirs:
        del world.registry.blobs[digest_of(layer)]
    descriptor = Descriptor("x/y", digest_of(layer), len(layer))
    origin = Origin(host or world.registry.host, repository, descriptor, "sha256:" + "0" * 64)
    world.fetcher.jobs[digest_of(layer)] = SimpleNamespace(origin=origin)
    resolved = await among_tenants.resolve(f"{world.registry.host}/a/b:1", platform="linux/amd64")
    assert (resolved.layers[0].state == "declined") == (not is_theirs)
    assert [one.layer.digest for one in world.fetcher.started] == [digest_of(layer)] * is_theirs


async def test_wildcard_chunk_address_becomes_the_host_that_was_reached(world: World) -> None:
    world.registry.add_image([], "1")
    world.chunks = Address.parse(":7777")
    async with SupernodeClient(world.tcp) as client:
        assert (await client.resolve(f"{world.registry.host}/a/b:1")).chunks == "http://127.0.0.1:7777"
        world.chunks = None
        assert (await client.resolve(f"{world.registry.host}/a/b:1")).chunks is None


@pytest.mark.parametrize(
    ("fault", "error", "status", "kind"),
    [
        (404, NotFoundError, 404, "not_found"),
        (403, DeniedError, 403, "denied"),
        (418, ProtocolError, 502, "protocol"),
    ],
)
async def test_errors_keep_their_kind(world: World, fault: int, error: type[Exception], status: int, kind: str) -> None:
    world.registry.always = answer(fault, "/manifests/")
    reference = f"{world.registry.host}/a/b:1"
    async with world.client() as client, aiohttp.ClientSession() as http:
        with pytest.raises(error, match="a/b"):
            await client.resolve(reference)
        async with http.post(world.tcp + "/v1/resolve", json={"reference": reference}) as response:
            assert response.status == status
            assert (await response.json())["kind"] == kind


async def test_misuse_is_told(world: World) -> None:
    async with world.client() as client:
        for call in (
            client.resolve("Not A Reference"),
            client.resolve("a", platform="x"),
            client.resolve("a", manifest_digest="sha256:1"),
            client.layer("sha256:1"),
        ):
            with pytest.raises(UsageError, match="expected"):
                await call
    async with aiohttp.ClientSession() as http:
        for method, path, body in (
            ("POST", "/v1/resolve", b"{"),
            ("POST", "/v1/resolve", b"{}"),
            ("POST", "/v1/indexes", b"{}"),
            ("POST", "/v1/indexes", json.dumps({"layers": [DIGEST] * 1025}).encode()),
            ("GET", f"/v1/layers/{DIGEST}/index?from=-1", None),
        ):
            async with http.request(method, world.tcp + path, data=body) as response:
                assert (response.status, (await response.json())["kind"]) == (400, "usage")
        async with http.get(world.tcp + "/v2/") as response:
            assert response.status == 404
        async with http.put(world.tcp + f"/v1/traces/{DIGEST}", data=bytes(1 << 20)) as response:
            assert response.status == 413


async def test_layer_status(world: World) -> None:
    async with world.client() as client:
        with pytest.raises(NotFoundError):
            await client.layer(DIGEST)
        world.fetcher.statuses[DIGEST] = LayerStatus(DIGEST, "converting", None, 5, 9, 3)
        assert await client.layer(DIGEST) == world.fetcher.statuses[DIGEST]


async def test_index_is_followed_to_its_seal(world: World) -> None:
    stream = sealed_stream()
    world.fetcher.plays = [[stream[at : at + 7] for at in range(0, len(stream), 7)]]
    counts = []
    async with world.client() as client:
        index, data = await client.follow_index(DIGEST, lambda follower: counts.append(follower.chunk_count))
    assert index.chunk_count == 5
    assert data == stream
    assert counts == sorted(counts)
    assert counts[-1] == 5


async def test_indexes_of_many_layers_in_one_answer(world: World) -> None:
    world.fetcher.streams = {DIGEST: sealed_stream()}
    async with world.client() as client:
        found = await client.indexes([DIGEST, "sha256:" + "2" * 64])
        assert (found.indexes, found.metadata) == (world.fetcher.streams, {DIGEST: (Body(7, 0, b"body"),)})
        world.fetcher.unasked = {"sha256:" + "3" * 64: b""}
        with pytest.raises(ProtocolError, match="not asked for"):
            await client.indexes([DIGEST])


async def test_indexes_go_without_metadata_while_many_bytes_are_on_their_way(world: World) -> None:
    """To whoever comes then: nodes that start together have it from one another."""
    great = {DIGEST: bytes(32 << 20)}
    small = {"sha256:" + "2" * 64: sealed_stream()}
    world.fetcher.streams = great | small
    async with aiohttp.ClientSession() as slow, world.client() as client:
        with_metadata = (await client.indexes(list(small))).metadata
        asked = {"layers": list(great), "metadata": True}
        unread = []
        while (found := await client.indexes(list(small))).metadata and len(unread) < 8:
            unread.append(await slow.post(f"{world.tcp}/v1/indexes", json=asked))  # no socket takes all of it
        without = found
        for one in unread:
            assert len(await one.read()) > len(great[DIGEST])
        async with asyncio.timeout(10):  # the last of it is acknowledged in a moment
            while not (found := await client.indexes(list(small))).metadata:
                pass
    assert len(unread) == CROWD_BYTES // ANSWER_BYTES, "one reader that has stalled is no crowd"
    assert with_metadata == found.metadata != {}
    assert (without.indexes, without.metadata) == (small, {})


async def test_a_broken_stream_is_resumed_by_record_number(world: World) -> None:
    stream = sealed_stream()
    third = records.offset_of(stream, 3)
    world.fetcher.plays = [
        [stream[: third + 5], TemporaryError("cut")],  # three records and a piece of the fourth
        [TemporaryError("not yet")],
        [stream[third:]],
    ]
    async with world.client() as client:
        with pytest.raises(TemporaryError, match="not yet"):
            await client.follow_index(DIGEST)
        world.fetcher.plays.insert(0, [stream[: third + 5], TemporaryError("cut")])
        index, data = await client.follow_index(DIGEST)
    assert (index.chunk_count, data) == (5, stream)
    assert world.fetcher.asked == [0, 3, 0, 3]


async def test_a_conversion_that_fails_in_the_middle_never_looks_whole(world: World) -> None:
    stream = sealed_stream()
    world.fetcher.plays = [[stream[:100], CorruptError("x")], [CorruptError("layer is not a tar")]]
    async with world.client() as client:
        with pytest.raises(Interrupted):
            async for _ in client.index_stream(DIGEST):
                pass
        with pytest.raises(CorruptError, match="not a tar"):
            await client.follow_index(DIGEST)
        world.fetcher.plays = [[DeclinedError("hard link")]]
        with pytest.raises(DeclinedError, match="hard link"):
            await client.follow_index(DIGEST)


async def test_traces(world: World) -> None:
    trace = Trace(0, (DIGEST,), struct.pack("<HIHI", 0, 7, 0, 3))
    world.registry.add_image([], "1")
    async with world.client() as client:
        resolved = await client.resolve(f"{world.registry.host}/a/b:1")
        assert await client.trace(resolved.manifest_digest) is None
        await client.put_trace(resolved.manifest_digest, trace)
        await client.put_trace(resolved.manifest_digest, trace)
        assert await client.trace(resolved.manifest_digest) == trace
        assert (await client.resolve(f"{world.registry.host}/a/b:1")).trace
        with pytest.raises(ProtocolError, match="trace"):
            await client.put_trace(resolved.manifest_digest, Trace(0, (), b"123456"))


async def test_health_status_and_figures(world: World) -> None:
    world.registry.add_image([], "1")
    async with world.client() as client, aiohttp.ClientSession() as http:
        await client.resolve(f"{world.registry.host}/a/b:1")
        status = await client.status()
        assert status["swarm"] == {"members": 0, "reachable": 0, "swarms": 0}
        assert status["layers"] == {"ready": 0, "converting": 0, "declined": 0}
        for path, code in (("/healthz", 200), ("/readyz", 200)):
            async with http.get(world.tcp + path) as response:
                assert response.status == code
        async with http.get(world.tcp + "/v1/chunks") as response:
            assert await response.json() == {"chunks": status["chunks"]}
        world.chunks = None
        async with http.get(world.tcp + "/v1/chunks") as response:
            assert await response.json() == {"chunks": None}
        async with http.get(world.tcp + "/readyz") as response:
            assert response.status == 503
        async with http.get(world.tcp + "/metrics") as response:
            text = await response.text()
    host = world.registry.host
    assert f'imgdist_registry_requests_total{{registry="{host}",status="200"}} 2.0' in text
    for name in (
        "imgdist_registry_bytes_total",
        "imgdist_convert_seconds_count",
        "imgdist_build_info",
        "imgdist_layers",
        "imgdist_swarm_members",
    ):
        assert f"\n{name}" in text
    assert 'imgdist_store_bytes{what="packs"} 0.0' in text
    assert len(metrics_application(world.parts).router.routes()) == 2  # GET and HEAD


async def test_supernode_out_of_reach(tmp_path: Path) -> None:
    async with SupernodeClient(f"unix://{tmp_path}/none") as client:
        with pytest.raises(TemporaryError, match="does not answer"):
            await client.resolve("a")
        with pytest.raises(TemporaryError):
            async for _ in client.index_stream(DIGEST):
                pass


async def test_gc_is_for_this_machine_and_says_what_went(world: World) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{world.tcp}/v1/gc", json={"dry_run": True}) as response:
            report = await response.json(content_type=None)
            assert response.status == 200
            assert (report["dry_run"], report["removed"], report["freed_bytes"]) == (True, [], 0)
        async with http.post(f"{world.tcp}/v1/gc", data=b"[]") as response:
            assert response.status == 400


async def test_a_pack_that_is_found_false_is_told_to_who_asks(world: World) -> None:
    pack_id = write_pack(world.parts.store)
    async with world.client() as client:
        assert await client.prove(pack_id) == Verdict("proven")
        with pytest.raises(NotFoundError):
            await client.prove("0" * 64)
        world.verdict = Verdict("false", "its layer is another one")
        assert await client.prove(pack_id) == Verdict("proven"), "a recent verdict counts"
        await world.parts.prover.look(pack_id)
        assert await client.prove(pack_id) == world.verdict
    async with aiohttp.ClientSession() as http, http.get(f"{world.tcp}/v1/revoked") as response:
        assert await response.json() == {pack_id: "its layer is another one"}
    async with aiohttp.ClientSession() as http, http.get(f"{world.tcp}/metrics") as response:
        figures = await response.text()
    assert "imgdist_packs_revoked 1.0" in figures
    assert 'imgdist_packs_proved_total{outcome="false"} 1.0' in figures


async def test_the_tar_split_of_a_pack(world: World, tmp_path: Path) -> None:
    pack_id = write_pack(world.parts.store)
    with open(tmp_path / "out", "w+b") as out:  # noqa: ASYNC230 - a file of a few bytes
        async with world.client() as client:
            await client.tar_split(pack_id, out, 1 << 20)
            with pytest.raises(NotFoundError):
                await client.tar_split("0" * 64, out, 1 << 20)
            with pytest.raises(ProtocolError, match="more than 10 bytes"):
                await client.tar_split(pack_id, out, 10)
    stored = (tmp_path / "packs" / pack_id / "tar-split").read_bytes()
    assert (tmp_path / "out").read_bytes()[: len(stored)] == stored


def write_pack(store: LocalStore) -> str:
    """Of no layer that there is: only its name counts here."""
    digest = "sha256:" + "aa" * 32
    sink = PackWriter(store.begin(digest), digest)
    pack_id = convert(io.BytesIO(bytes(1024)), sink, Options(threads=1)).pack_id
    store.seal(digest, pack_id)
    return pack_id.hex()

"""A node's blobs: taken through a real supernode, read while they come, kept as packs, let go with the last reader."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from fake_node import FakeMounter, Steps
from fake_registry import FakeRegistry, answer, held_back, serving
from made_layers import FakeView
from prometheus_client import CollectorRegistry

import agent.blobs.source
import agent.early
from agent.blobs.source import Blobs
from agent.catalog import Catalog
from agent.chunkstore import ChunkStore
from agent.database import Database
from agent.supernode_chunks import SupernodeChunks
from agent.supernode_client import SupernodeClient
from agent.supernodes import Supernodes
from agent.transfer.transfers import Transfers
from imgdist.errors import DeclinedError, DeniedError, ImgdistError, NotFoundError, TemporaryError
from imgdist.oci import transport
from imgdist.oci.access import Verdict
from imgdist.oci.reference import Reference
from imgdist.oci.settings import RegistrySettings
from imgdist.pack import CHUNK_MAX
from imgdist.pack.kinds import Kind
from imgdist.wire.control import failure
from imgdist.wire.server import ChunkServer
from supernode.blobs import endpoint
from supernode.blobs.source import Blobs as SupernodeBlobs
from supernode.metrics import Metrics
from supernode.registries import Registries
from supernode.store import LocalStore

BLOB = random.Random(1).randbytes(20 * CHUNK_MAX + 12_345)


class Supernode:
    """The parts of one that have to do with blobs, in this process."""

    def __init__(self, root: Path, registries: Registries) -> None:
        self.store = LocalStore(root)
        self.store.recover()
        self.blobs = SupernodeBlobs(self.store, registries)
        listener = socket.create_server(("127.0.0.1", 0))
        self.chunks = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = ChunkServer(self.store, [listener], lambda priority, size_bytes: None)
        self.server.start()
        self.shown: list[tuple[str, str, str | None]] = []
        self.verdict = Verdict()

    async def allowed(self, name: str, reference: str, authorization: str | None) -> Verdict:
        self.shown.append((name, reference, authorization))
        return self.verdict

    def application(self) -> web.Application:
        @web.middleware
        async def errors(request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
            try:
                response: web.StreamResponse = await handler(request)
            except ImgdistError as error:
                status, document = failure(error)
                return web.json_response(body=msgspec.json.encode(document), status=status)
            return response

        async def where(request: web.Request) -> web.Response:
            return web.json_response({"chunks": self.chunks})

        app = web.Application(middlewares=[errors])
        app.add_routes([*endpoint.routes(self.blobs, self), web.get("/v1/chunks", where)])
        return app

    def forget(self, digest: str) -> None:
        pack = self.store.find(digest, Kind.RAW)
        assert pack is not None and self.store.remove(pack)


class Node:
    """An agent's parts over a supernode at `url`."""

    def __init__(self, root: Path, url: str, tasks: asyncio.TaskGroup) -> None:
        self.packs = root / "packs"
        self.database = Database(root / "agent.db")
        self.chunks = ChunkStore(self.packs, self.database)
        loop = asyncio.get_running_loop()
        self.transfers = Transfers(
            FakeView(),
            [SupernodeChunks(url)],
            twins=self.chunks.twins,
            on_layer_complete=lambda store: loop.call_soon_threadsafe(self.catalog.completed, store.pack_id.hex()),
            on_pack_lost=lambda pack: loop.call_soon_threadsafe(self.blobs.lost, pack),
            registry=CollectorRegistry(),
        )
        mounter: Any = FakeMounter(Steps())
        self.catalog = Catalog(self.chunks, mounter, self.transfers, tasks, fill=True, switch_idle_s=1)
        self.supernodes = Supernodes([SupernodeClient(url)])
        self.blobs = Blobs(self.supernodes, self.catalog, self.chunks, self.transfers, tasks)

    async def whole(self, blob: Reference) -> bytes:
        async with await self.blobs.open(blob) as opened:
            return b"".join([piece async for piece in opened.stream()])

    async def stop(self) -> None:
        await asyncio.to_thread(self.transfers.stop)
        await self.supernodes.close()
        await asyncio.to_thread(self.chunks.close)
        self.database.close()


class Site:
    """Registry, supernode and one node."""

    def __init__(self, registry: FakeRegistry, supernode: Supernode, url: str, root: Path) -> None:
        self.registry = registry
        self.supernode = supernode
        self.root = root
        self.url = url

    def blob(self, raw: bytes) -> Reference:
        return Reference(self.registry.host, "a/b", digest=self.registry.add_blob(raw))

    @asynccontextmanager
    async def node(self) -> AsyncIterator[Node]:
        async with asyncio.TaskGroup() as tasks:
            node = Node(self.root, self.url, tasks)
            await node.catalog.recover()
            try:
                yield node
            finally:
                for task in asyncio.all_tasks() - {asyncio.current_task()} - self.others:
                    task.cancel()
                await node.stop()

    others: set[asyncio.Task[Any]]


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(agent.early, "BEGIN_S", 0.0)
    (tmp_path / "node").mkdir()
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(serving(FakeRegistry()))
        http = await stack.enter_async_context(transport.session())
        settings = RegistrySettings(plain_http=[registry.host])
        supernode = Supernode(tmp_path / "supernode", Registries(http, Metrics(), settings))
        stack.callback(supernode.server.stop)
        running = asyncio.create_task(supernode.blobs.run())
        runner = web.AppRunner(supernode.application(), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made = Site(registry, supernode, f"http://127.0.0.1:{runner.addresses[0][1]}", tmp_path / "node")
        made.others = asyncio.all_tasks()
        yield made
        running.cancel()
        await asyncio.wait([running])
        await runner.cleanup()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in threads
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("raw", [BLOB, b"{}", bytes(CHUNK_MAX + 1), b"text " * 200_000])
async def test_a_blob_is_taken_once_kept_and_read_from_the_disk(site: Site, raw: bytes) -> None:
    blob = site.blob(raw)
    async with site.node() as node:
        assert await asyncio.gather(*(node.whole(blob) for _ in range(3))) == [raw] * 3
        (layer,) = node.catalog.all()
        await until(lambda: layer.state.value == "complete" and not layer.readers)
        async with await node.blobs.open(blob) as opened:
            assert opened.size == len(raw) and opened.file is not None
            assert os.pread(opened.file.fd, opened.file.size, opened.file.offset) == raw
    async with site.node() as again:
        site.supernode.server.stop()
        assert await again.whole(blob) == raw
    assert len(site.registry.paths("GET", "/blobs/")) == 1


async def test_bytes_are_read_while_the_registry_still_sends(site: Site) -> None:
    blob = site.blob(BLOB)
    fault, going_on = held_back(BLOB, 4 * CHUNK_MAX)
    site.registry.faults.append(fault)
    async with site.node() as node:
        async with await node.blobs.open(blob, authorization="Bearer t") as opened, aclosing(opened.stream()) as pieces:
            got = b""
            while len(got) < 3 * CHUNK_MAX:
                got += await anext(pieces)
            assert opened.file is None
            going_on.set()
            async for piece in pieces:
                got += piece
        assert got == BLOB
        assert set(site.supernode.shown) == {(blob.name, f"blobs/{blob.digest}", "Bearer t")}


async def test_who_leaves_in_the_middle_leaves_nothing_behind(site: Site) -> None:
    blob = site.blob(BLOB)
    fault, going_on = held_back(BLOB, 4 * CHUNK_MAX)
    site.registry.faults.append(fault)
    async with site.node() as node:
        async with await node.blobs.open(blob) as opened:
            assert await opened.read(0, 10) == BLOB[:10]
        await until(lambda: not list(node.packs.iterdir()))
        assert node.catalog.all() == []
        going_on.set()
        assert await node.whole(blob) == BLOB
    assert len(site.registry.paths("GET", "/blobs/")) == 1


async def test_a_reader_keeps_its_pack_from_being_removed(site: Site) -> None:
    blob = site.blob(BLOB)
    async with site.node() as node:
        async with await node.blobs.open(blob) as opened:
            assert await opened.read(len(BLOB) - 1, 10) == BLOB[-1:]
            (layer,) = node.catalog.all()
            assert not await node.catalog.remove(layer.pack_id)
        await until(lambda: not layer.readers)
        assert await node.catalog.remove(layer.pack_id)
        assert await node.whole(blob) == BLOB


async def test_a_pack_that_the_supernode_lost_is_fetched_there_again(site: Site) -> None:
    blob = site.blob(BLOB)
    async with site.node() as node:
        index = b"".join([piece async for piece in site.supernode.blobs.index(blob)])
        layer = await node.catalog.adopt(index)
        site.supernode.forget(blob.digest or "")
        assert await node.whole(blob) == BLOB
        assert layer.store.is_complete
    assert len(site.registry.paths("GET", "/blobs/")) == 2


async def test_a_stop_does_not_wait_for_a_blob_that_is_fetched_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.blobs.source, "RENEW_S", 3600.0)
    blob = site.blob(BLOB)
    fault, going_on = held_back(BLOB, 0)
    async with asyncio.timeout(30), site.node() as node:
        await node.catalog.adopt(b"".join([piece async for piece in site.supernode.blobs.index(blob)]))
        site.supernode.forget(blob.digest or "")
        site.registry.faults.append(fault)
        reading = asyncio.create_task(node.whole(blob))
        await until(lambda: len(site.registry.paths("GET", "/blobs/")) == 2)
    assert reading.done()
    going_on.set()


async def test_what_the_registry_says_is_passed_on(site: Site) -> None:
    missing = Reference(site.registry.host, "a/b", digest="sha256:" + "0" * 64)
    async with site.node() as node:
        for ask in (node.blobs.open, node.blobs.size):
            with pytest.raises(NotFoundError):
                await ask(missing)
            with pytest.raises(DeclinedError):
                await ask(Reference(missing.host, "a/b", digest="sha512:" + "0" * 128))
        assert await node.blobs.size(site.blob(BLOB)) == len(BLOB)


async def test_who_may_not_read_gets_neither_size_nor_index(site: Site) -> None:
    blob = site.blob(BLOB)
    async with site.node() as node:
        site.supernode.verdict = Verdict(401, ("Basic realm=x",), "show who you are")
        for ask in (node.blobs.open, node.blobs.size):
            with pytest.raises(DeniedError, match="show who you are") as refused:
                await ask(blob)
            assert refused.value.challenges == ("Basic realm=x",)
    assert site.registry.log == []


async def test_who_joined_one_that_was_refused_tries_once_more(site: Site) -> None:
    blob = site.blob(BLOB)
    site.registry.faults += [answer(404, "/blobs/")]
    async with site.node() as node:
        first, second = await asyncio.gather(node.whole(blob), node.whole(blob), return_exceptions=True)
    assert isinstance(first, NotFoundError) and second == BLOB


async def test_a_blob_that_turns_out_wrong_is_not_kept_and_its_reader_is_told(site: Site) -> None:
    blob = site.blob(BLOB)
    site.registry.blobs[blob.digest or ""] = BLOB[:-1] + bytes([BLOB[-1] ^ 1])
    async with site.node() as node:
        with pytest.raises((ImgdistError,)):
            await node.whole(blob)
        await until(lambda: not list(node.packs.iterdir()))


async def test_a_disk_that_is_gone_is_no_crash(site: Site) -> None:
    async with site.node() as node:
        shutil.rmtree(node.packs)
        with pytest.raises(TemporaryError, match="disk"):
            await node.whole(site.blob(BLOB))
        node.packs.mkdir()

"""The control API: HTTP/1.1 and JSON unless said; `imgdist.wire.control` has the documents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import msgspec
from aiohttp import web

import imgdist
from imgdist.errors import DeniedError, NotFoundError, UsageError
from imgdist.oci.reference import is_digest
from imgdist.pack import FORMAT_VERSION
from imgdist.wire.address import Address
from imgdist.wire.answers import answer, decoded, errors_answered
from imgdist.wire.clusterkey import ClusterKey
from imgdist.wire.control import (
    INDEXES_BYTES,
    INDEXES_MAX,
    METADATA_BYTES,
    Chain,
    Indexes,
    IndexesRequest,
    ResolveRequest,
)
from imgdist.wire.tracker import PATH as TRACKER_PATH
from supernode.access.access import Access
from supernode.access.guard import guard
from supernode.blobs import endpoint as blobs
from supernode.blobs.source import Blobs
from supernode.chains import Chains
from supernode.fetch import Fetcher
from supernode.metrics import Metrics
from supernode.outgoing import Outgoing
from supernode.proving.prover import Prover
from supernode.resolution import Resolutions
from supernode.resolve import Resolver
from supernode.space.keeper import SpaceKeeper
from supernode.store import LocalStore
from supernode.store.layout import TAR_SPLIT, disk_bytes
from supernode.streaming import send_stream
from supernode.traces import TRACE_MAX, Traces
from supernode.tracker.session import Tracker

MSGPACK = "application/msgpack"
CROWD_BYTES = 1 << 20
"""While so much of such answers is on its way, indexes go without metadata: nodes that start together have that from
one another, as all chunks (a guess: four answers, 8 ms at 1 Gbit/s)."""


class GcRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/gc."""

    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Parts:
    """What the API speaks for. `key` is the cluster's, None where the network knows its nodes; `chunks` tells where
    chunk bodies are served, None while they are not."""

    root: Path
    resolver: Resolver
    fetcher: Fetcher
    blobs: Blobs
    store: LocalStore
    chains: Chains
    traces: Traces
    metrics: Metrics
    tracker: Tracker
    space: SpaceKeeper
    prover: Prover
    access: Access
    key: ClusterKey | None
    chunks: Callable[[], Address | None]


def application(parts: Parts) -> web.Application:
    """The control API."""
    api = _Api(parts)
    app = web.Application(middlewares=[errors_answered, *guard(parts.key)], client_max_size=TRACE_MAX)
    app.add_routes(
        [
            *blobs.routes(parts.blobs, parts.access),
            web.post("/v1/resolve", api.resolve),
            web.get("/v1/layers/{digest}", api.layer),
            web.get("/v1/layers/{digest}/index", api.index),
            web.post("/v1/indexes", api.indexes),
            web.get("/v1/chains/{chain_id}", api.chain),
            web.get("/v1/traces/{manifest_digest}", api.trace),
            web.put("/v1/traces/{manifest_digest}", api.put_trace),
            web.get("/v1/chunks", api.chunks),
            web.get(TRACKER_PATH, parts.tracker.connect),
            web.get("/v1/status", api.status),
            web.post("/v1/gc", api.gc),
            web.get("/v1/packs/{pack_id}/tar-split", api.tar_split),
            web.post("/v1/packs/{pack_id}/proof", api.prove),
            web.get("/v1/revoked", api.revoked),
            web.get("/metrics", api.metrics),
            web.get("/healthz", api.healthy),
            web.get("/readyz", api.ready),
        ]
    )
    return app


def metrics_application(parts: Parts) -> web.Application:
    """/metrics alone, for `--metrics-listen`."""
    app = web.Application()
    app.add_routes([web.get("/metrics", _Api(parts).metrics)])
    return app


class _Api:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._resolutions = Resolutions(
            parts.resolver, parts.fetcher, parts.store, parts.traces, parts.access, has_tenants=parts.key is not None
        )
        self._outgoing = Outgoing()

    async def resolve(self, request: web.Request) -> web.Response:
        """POST /v1/resolve"""
        asked = await decoded(request, ResolveRequest)
        return answer(await self._resolutions.of(asked, partial(self._chunks, request)))

    async def layer(self, request: web.Request) -> web.Response:
        """GET /v1/layers/DIGEST"""
        digest = _digest(request)
        if not self._parts.fetcher.known(digest):
            raise NotFoundError(f"layer {digest}: nobody has resolved an image that has it")
        return answer(self._parts.fetcher.status(digest))

    async def index(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/layers/DIGEST/index?from=RECORD"""
        start = request.query.get("from", "0")
        if not start.isdecimal():
            raise UsageError(f"from={start!r}: expected the number of a record")
        async with aclosing(self._parts.fetcher.index(_digest(request), int(start))) as stream:
            return await send_stream(request, stream)

    async def indexes(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/indexes (the answer is msgpack)"""
        asked = await decoded(request, IndexesRequest)
        if len(asked.layers) > INDEXES_MAX:
            raise UsageError(f"indexes request: expected at most {INDEXES_MAX} layers, found {len(asked.layers)}")
        found = await self._parts.fetcher.ready_indexes(asked.layers, INDEXES_BYTES)
        wants_metadata = asked.metadata and self._outgoing.size_bytes < CROWD_BYTES
        with self._outgoing.answering(request):
            metadata = await self._parts.fetcher.metadata(found, METADATA_BYTES) if wants_metadata else {}
            response = web.Response(body=msgspec.msgpack.encode(Indexes(found, metadata)), content_type=MSGPACK)
            await response.prepare(request)
            await response.write_eof()
        return response

    async def chain(self, request: web.Request) -> web.Response:
        """GET /v1/chains/CHAIN_ID"""
        chain_id = request.match_info["chain_id"]
        chain = await self._parts.chains.find(chain_id)
        if chain is None or not await self._may_be_asked_for(chain, request):
            raise NotFoundError(f"chain ID {chain_id}: no image with it was resolved here")
        return answer(chain)

    async def _may_be_asked_for(self, chain: Chain, request: web.Request) -> bool:
        """A chain ID does not tell which image a node has in hand: among tenants it is one that its clients have pulled
        from this repository, or that everybody may."""
        if self._parts.key is None or chain.name in request.query.getall("for", []):
            return True
        return await self._parts.access.is_public(chain.name)

    async def trace(self, request: web.Request) -> web.Response:
        """GET /v1/traces/MANIFEST_DIGEST (msgpack)"""
        digest = request.match_info["manifest_digest"]
        raw = await self._parts.traces.get(digest)
        if raw is None:
            raise NotFoundError(f"image {digest}: no start was recorded")
        return web.Response(body=raw, content_type=MSGPACK)

    async def put_trace(self, request: web.Request) -> web.Response:
        """PUT /v1/traces/MANIFEST_DIGEST (msgpack)"""
        merged = await self._parts.traces.put(request.match_info["manifest_digest"], await request.read())
        return answer({"entries": len(merged.entries) // 6})

    async def chunks(self, request: web.Request) -> web.Response:
        """GET /v1/chunks: where chunk bodies are served; in constant time, for every agent asks after a restart."""
        return answer({"chunks": self._chunks(request)})

    async def status(self, request: web.Request) -> web.Response:
        """GET /v1/status"""
        fetcher = self._parts.fetcher
        return answer(
            {
                "version": imgdist.__version__,
                "format_version": FORMAT_VERSION,
                "root": str(self._parts.root),
                "chunks": self._chunks(request),
                "layers": await asyncio.to_thread(self._layers),
                "store_bytes": await asyncio.to_thread(self._store_bytes),
                "converting": [fetcher.status(digest) for digest in fetcher.jobs],
                "swarm": asdict(self._parts.tracker.census()),
            }
        )

    async def gc(self, request: web.Request) -> web.Response:
        """POST /v1/gc: for this machine's users only."""
        asked = await decoded(request, GcRequest)
        if request.remote and not Address(request.remote, 0).is_local:
            raise DeniedError(f"gc: asked from {request.remote}; ask on the supernode's own machine")
        return answer(await self._parts.space.collect(dry_run=asked.dry_run))

    async def tar_split(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/packs/PACK/tar-split: the stream as it lies on the disk, one zstd frame."""
        path = self._parts.store.directory(request.match_info["pack_id"]) / TAR_SPLIT
        if not await asyncio.to_thread(path.exists):
            raise NotFoundError(f"pack {path.parent.name} is not in this store")
        return web.FileResponse(path, headers={"Content-Type": "application/zstd"})

    async def prove(self, request: web.Request) -> web.Response:
        """POST /v1/packs/PACK/proof: the verdict, when it is there; a recent one counts."""
        by = request.remote or "this machine"
        return answer(await self._parts.prover.look(request.match_info["pack_id"], fresh=False, by=by))

    async def revoked(self, request: web.Request) -> web.Response:
        """GET /v1/revoked: reasons by pack id."""
        return answer(self._parts.store.revoked.all())

    async def metrics(self, request: web.Request) -> web.Response:
        """GET /metrics"""
        layers = await asyncio.to_thread(self._layers)
        sizes = await asyncio.to_thread(self._store_bytes)
        self._parts.metrics.revoked(len(self._parts.store.revoked.all()))
        body = self._parts.metrics.exposition(layers, sizes, self._parts.tracker.census())
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def healthy(self, request: web.Request) -> web.Response:
        """GET /healthz: the event loop runs."""
        return web.Response(text="ok\n")

    async def ready(self, request: web.Request) -> web.Response:
        """GET /readyz: chunk bodies are served, too."""
        if self._parts.chunks():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="chunk bodies are not served at the moment\n")

    def _chunks(self, request: web.Request) -> str | None:
        """Where the caller finds chunk bodies: a wildcard listener is reached by the host that reached us."""
        address = self._parts.chunks()
        if address is None:
            return None
        return Address(request.url.host or "", address.port).url if address.is_wildcard else address.url

    def _layers(self) -> dict[str, int]:
        fetcher = self._parts.fetcher
        ready = sum(1 for _ in self._parts.store.layers())
        return {"ready": ready, "converting": len(fetcher.jobs), "declined": len(fetcher.declined)}

    def _store_bytes(self) -> dict[str, int]:
        return {what: disk_bytes(self._parts.root / what) for what in ("packs", "traces")}


def _digest(request: web.Request) -> str:
    digest = request.match_info["digest"]
    if not is_digest(digest):
        raise UsageError(f"layer {digest[:80]!r}: expected sha256: and 64 hex digits")
    return digest

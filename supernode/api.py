"""The control API: HTTP/1.1 and JSON unless said; `imgdist.wire.control` has the documents."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
from aiohttp import web

import imgdist
from imgdist.errors import DeniedError, ImgdistError, NotFoundError, UsageError
from imgdist.oci.platform import Platform
from imgdist.oci.reference import Reference, is_digest, parse
from imgdist.pack import FORMAT_VERSION
from imgdist.wire.address import Address
from imgdist.wire.clusterkey import ClusterKey
from imgdist.wire.control import (
    INDEXES_BYTES,
    INDEXES_MAX,
    Chain,
    Indexes,
    IndexesRequest,
    Layer,
    LayerStatus,
    Resolution,
    ResolveRequest,
    failure,
)
from imgdist.wire.tracker import PATH as TRACKER_PATH
from supernode.access.access import Access
from supernode.access.guard import guard
from supernode.blobs import endpoint as blobs
from supernode.blobs.source import Blobs
from supernode.chains import Chains
from supernode.fetch import Fetcher, Origin
from supernode.metrics import Metrics
from supernode.proving.prover import Prover
from supernode.resolve import Image, Resolver
from supernode.space.keeper import SpaceKeeper
from supernode.store import LocalStore
from supernode.store.layout import TAR_SPLIT, disk_bytes
from supernode.streaming import send_stream
from supernode.traces import TRACE_MAX, Traces
from supernode.tracker.session import Tracker

log = logging.getLogger("imgdist.api")

MSGPACK = "application/msgpack"

_UNPROVEN = "this image's registry is still to show that it has the layer, which came from another one"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


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
    app = web.Application(middlewares=[_errors, *guard(parts.key)], client_max_size=TRACE_MAX)
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


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ImgdistError as error:
        status, document = failure(error)
        return _json(document, status)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _json({"error": error.text or error.reason, "kind": "usage"}, error.status)


class _Api:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._image_sizes: dict[str, int] = {}

    async def resolve(self, request: web.Request) -> web.Response:
        """POST /v1/resolve"""
        try:
            asked = msgspec.json.decode(await request.read(), type=ResolveRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"resolve request: {error}") from None
        platform = Platform.parse(asked.platform) if asked.platform else Platform.of_this_machine()
        image = await self._parts.resolver.resolve(_reference(asked), platform)
        origins = [
            Origin(image.reference.host, image.reference.repository, layer, diff_id)
            for layer, diff_id in zip(image.manifest.layers, image.config.diff_ids, strict=True)
        ]
        unproven = await self._unproven(origins)
        origins = [origin for origin in origins if origin.layer.digest not in unproven]
        self._parts.fetcher.learn(origins)
        if asked.convert:
            self._parts.fetcher.start(origins)
        resolution = await self._resolution(image, request, unproven)
        return _json(msgspec.structs.replace(resolution, documents=image.documents if asked.documents else ()))

    async def layer(self, request: web.Request) -> web.Response:
        """GET /v1/layers/DIGEST"""
        digest = _digest(request)
        if not self._parts.fetcher.known(digest):
            raise NotFoundError(f"layer {digest}: nobody has resolved an image that has it")
        return _json(self._parts.fetcher.status(digest))

    async def index(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/layers/DIGEST/index?from=RECORD"""
        start = request.query.get("from", "0")
        if not start.isdecimal():
            raise UsageError(f"from={start!r}: expected the number of a record")
        async with aclosing(self._parts.fetcher.index(_digest(request), int(start))) as stream:
            return await send_stream(request, stream)

    async def indexes(self, request: web.Request) -> web.Response:
        """POST /v1/indexes (the answer is msgpack)"""
        try:
            asked = msgspec.json.decode(await request.read(), type=IndexesRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"indexes request: {error}") from None
        if len(asked.layers) > INDEXES_MAX:
            raise UsageError(f"indexes request: expected at most {INDEXES_MAX} layers, found {len(asked.layers)}")
        found = await self._parts.fetcher.ready_indexes(asked.layers, INDEXES_BYTES)
        return web.Response(body=msgspec.msgpack.encode(Indexes(found)), content_type=MSGPACK)

    async def chain(self, request: web.Request) -> web.Response:
        """GET /v1/chains/CHAIN_ID"""
        chain_id = request.match_info["chain_id"]
        chain = await self._parts.chains.find(chain_id)
        if chain is None or not await self._may_be_asked_for(chain, request):
            raise NotFoundError(f"chain ID {chain_id}: no image with it was resolved here")
        return _json(chain)

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
        return _json({"entries": len(merged.entries) // 6})

    async def chunks(self, request: web.Request) -> web.Response:
        """GET /v1/chunks: where chunk bodies are served; in constant time, for every agent asks after a restart."""
        return _json({"chunks": self._chunks(request)})

    async def status(self, request: web.Request) -> web.Response:
        """GET /v1/status"""
        fetcher = self._parts.fetcher
        return _json(
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
        try:
            asked = msgspec.json.decode(await request.read(), type=GcRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"gc request: {error}") from None
        if request.remote and not Address(request.remote, 0).is_local:
            raise DeniedError(f"gc: asked from {request.remote}; ask on the supernode's own machine")
        return _json(await self._parts.space.collect(dry_run=asked.dry_run))

    async def tar_split(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/packs/PACK/tar-split: the stream as it lies on the disk, one zstd frame."""
        path = self._parts.store.directory(request.match_info["pack_id"]) / TAR_SPLIT
        if not await asyncio.to_thread(path.exists):
            raise NotFoundError(f"pack {path.parent.name} is not in this store")
        return web.FileResponse(path, headers={"Content-Type": "application/zstd"})

    async def prove(self, request: web.Request) -> web.Response:
        """POST /v1/packs/PACK/proof: the verdict, when it is there; a recent one counts."""
        by = request.remote or "this machine"
        return _json(await self._parts.prover.look(request.match_info["pack_id"], fresh=False, by=by))

    async def revoked(self, request: web.Request) -> web.Response:
        """GET /v1/revoked: reasons by pack id."""
        return _json(self._parts.store.revoked.all())

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

    async def _unproven(self, origins: Sequence[Origin]) -> set[str]:
        """Digests of the layers that are here from another registry, and that this image's has not shown to have: where
        the network is not the nodes' alone, an image may be made to get at somebody else's layers."""
        if self._parts.key is None:
            return set()
        access, jobs = self._parts.access, self._parts.fetcher.jobs

        async def is_theirs(origin: Origin) -> bool:
            name, layer = f"{origin.host}/{origin.repository}", origin.layer
            job = jobs.get(layer.digest)  # which may wait for its turn, so that nothing is read yet
            if job is None:
                return await access.is_proven(name, layer.digest, layer.size)
            if job.origin.repository == origin.repository or job.origin.host != origin.host:
                return job.origin.host == origin.host
            return await access.claims(name, layer.digest)

        # Twice: while registries were asked the first time, a layer that nobody had may have come from another one.
        theirs = [origin for origin in origins if await is_theirs(origin)]
        theirs = [origin for origin in theirs if await is_theirs(origin)]
        return {origin.layer.digest for origin in origins} - {origin.layer.digest for origin in theirs}

    async def _resolution(self, image: Image, request: web.Request, unproven: Collection[str] = ()) -> Resolution:
        manifest, config = image.manifest, image.config
        layers = []
        for layer, diff_id, chain_id in zip(manifest.layers, config.diff_ids, image.chain_ids, strict=True):
            status = self._parts.fetcher.status(layer.digest)
            if layer.digest in unproven:
                status = LayerStatus(layer.digest, "declined", reason=_UNPROVEN)
            if status.pack_id:
                self._parts.store.used(status.pack_id)
            size = await asyncio.to_thread(self._image_bytes, status.pack_id) if status.pack_id else None
            layers.append(
                Layer(
                    layer.digest,
                    layer.media_type,
                    layer.size,
                    diff_id,
                    chain_id,
                    status.state,
                    status.pack_id,
                    size,
                    status.reason,
                )
            )
        return Resolution(
            reference=str(image.reference),
            name=image.reference.name,
            manifest_digest=manifest.digest,
            manifest_media_type=manifest.media_type,
            config_digest=manifest.config.digest,
            platform=str(config.platform),
            size_bytes=sum(layer.size for layer in manifest.layers),
            chunks=self._chunks(request),
            format_version=FORMAT_VERSION,
            trace=self._parts.traces.exists(manifest.digest),
            layers=tuple(layers),
            age_s=image.age_s if math.isfinite(image.age_s) else 0.0,
        )

    def _chunks(self, request: web.Request) -> str | None:
        """Where the caller finds chunk bodies: a wildcard listener is reached by the host that reached us."""
        address = self._parts.chunks()
        if address is None:
            return None
        return Address(request.url.host or "", address.port).url if address.is_wildcard else address.url

    def _image_bytes(self, pack_id: str) -> int | None:
        """Size of a layer image; reading an index takes some 10 ms, a size is kept (100 bytes a pack)."""
        if pack_id not in self._image_sizes:
            try:
                self._image_sizes[pack_id] = self._parts.store.index(pack_id).image_size
            except NotFoundError:  # removed meanwhile
                return None
        return self._image_sizes[pack_id]

    def _layers(self) -> dict[str, int]:
        fetcher = self._parts.fetcher
        ready = sum(1 for _ in self._parts.store.layers())
        return {"ready": ready, "converting": len(fetcher.jobs), "declined": len(fetcher.declined)}

    def _store_bytes(self) -> dict[str, int]:
        return {what: disk_bytes(self._parts.root / what) for what in ("packs", "traces")}


def _reference(asked: ResolveRequest) -> Reference:
    reference = parse(asked.reference)
    if asked.manifest_digest is None:
        return reference
    if not is_digest(asked.manifest_digest):
        raise UsageError(f"manifest_digest {asked.manifest_digest[:80]!r}: expected sha256: and 64 hex digits")
    return Reference(reference.host, reference.repository, reference.tag, asked.manifest_digest)


def _digest(request: web.Request) -> str:
    digest = request.match_info["digest"]
    if not is_digest(digest):
        raise UsageError(f"layer {digest[:80]!r}: expected sha256: and 64 hex digits")
    return digest


def _json(document: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")

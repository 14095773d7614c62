"""The agent's HTTP API on RUN/api.sock: JSON for the command line, figures for Prometheus."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

import imgdist
from agent.catalog import Catalog, Layer, State
from agent.draining import Draining
from agent.earlystore import EarlyStore
from agent.figures import LayerFigures
from agent.images import Images
from agent.known_images import KnownImage, KnownLayer
from agent.mirror.seen import SeenTag, SeenTags
from agent.mounts import ImageMounts, user_of
from agent.proving.figures import ProofFigures
from agent.proving.prover import Prover
from agent.revocations import Revocations
from agent.space.keeper import SpaceKeeper
from agent.swarm.station import Station
from agent.withdrawal import Withdrawal
from imgdist.errors import ImgdistError, NotFoundError, UnsupportedError, UsageError
from imgdist.pack import BLOCK
from imgdist.pack.kinds import Kind
from imgdist.wire.control import failure

log = logging.getLogger("imgdist.agent")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class MountRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/mounts."""

    reference: str
    directory: str
    writable: bool = False


class UmountRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/umount."""

    directory: str


class DrainRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/drain; seconds."""

    timeout_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)]
    leave_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.0


class GcRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/gc."""

    dry_run: bool = False
    frames: bool = False


class ProofRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/proofs."""

    pack_id: str


@dataclass(frozen=True, slots=True)
class Trust:
    """Who knows which packs are what their layers convert to."""

    prover: Prover
    withdrawal: Withdrawal
    revocations: Revocations

    def of(self, layer: Layer) -> dict[str, Any]:
        """Whether the pack was proved here; why it is revoked, if it is, and who is built on it then."""
        reason = self.revocations.reason(layer.pack_id)
        proven = {"proven": self.prover.is_proven(layer), "revoked": reason}
        return proven if reason is None else {**proven, "used_by": self.withdrawal.used_by.get(layer.pack_id, [])}

    def revoked(self, layers: Iterable[Layer]) -> list[str]:
        """The packs of those that are revoked."""
        return [layer.pack_id for layer in layers if self.revocations.reason(layer.pack_id) is not None]


@dataclass(frozen=True, slots=True)
class Node:
    """What a lazy agent's API speaks for."""

    catalog: Catalog
    images: Images
    mounts: ImageMounts
    draining: Draining
    space: SpaceKeeper
    trust: Trust
    swarm: Station | None = None


class Calls:
    """How many requests are being answered."""

    def __init__(self) -> None:
        self.under_way = 0

    @web.middleware
    async def counted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Middleware."""
        self.under_way += 1
        try:
            return await handler(request)
        finally:
            self.under_way -= 1


def application(
    node: Node | None,
    root: str,
    supernodes: Sequence[str],
    calls: Calls | None = None,
    tags: SeenTags | None = None,
) -> web.Application:
    """The API. `node` is None where this machine cannot show layers lazily. `calls` counts; `tags` were pulled through
    the mirror."""
    api = _Api(node, root, supernodes, tags or SeenTags())
    app = web.Application(middlewares=[(calls or Calls()).counted, _errors])
    app.add_routes(
        [
            web.get("/v1/status", api.status),
            web.get("/v1/layers", api.layers),
            web.get("/v1/images", api.images),
            web.get("/v1/peers", api.peers),
            web.post("/v1/mounts", api.mount),
            web.post("/v1/umount", api.umount),
            web.post("/v1/drain", api.drain),
            web.post("/v1/gc", api.gc),
            web.post("/v1/proofs", api.prove),
            web.get("/v1/proofs/{pack_id}", api.proof),
            web.get("/metrics", api.metrics),
            web.get("/healthz", api.healthy),
            web.get("/readyz", api.healthy),
        ]
    )
    return app


async def serve(app: web.Application, listener: socket.socket, *, shutdown_s: float) -> web.AppRunner:
    """Answer on a socket that listens already. To stop: `runner.cleanup()`, which gives calls so many seconds."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=shutdown_s)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return runner


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ImgdistError as error:
        status, document = failure(error)
        return _json(document, status)
    except web.HTTPException as error:
        return _json({"error": f"{request.path}: {error.text or error.reason}", "kind": "usage"}, error.status)
    except Exception as error:
        log.exception("%s %s failed", request.method, request.path)
        reason = f"{type(error).__name__}: {error}; the agent's log says more"
        return _json({"error": reason, "kind": "internal"}, 500)


class _Api:
    def __init__(self, node: Node | None, root: str, supernodes: Sequence[str], tags: SeenTags) -> None:
        self._node = node
        self._tags = tags
        self._root = root
        self._supernodes = list(supernodes)
        self._swarm = node.swarm if node else None
        self._figures = CollectorRegistry()
        self._figures.register(LayerFigures(node.catalog.all if node else list))
        if node is not None:
            count = lambda: len(node.trust.revoked(node.catalog.all()))  # noqa: E731
            self._figures.register(ProofFigures(node.trust.prover, node.trust.withdrawal, count))

    async def status(self, request: web.Request) -> web.Response:
        """GET /v1/status"""
        layers = self._node.catalog.all() if self._node else []
        states = [layer.state.value for layer in layers]
        disk = os.statvfs(self._root)
        return _json(
            {
                "version": imgdist.__version__,
                "pid": os.getpid(),
                "lazy": self._node is not None,
                "root": self._root,
                "supernodes": self._supernodes,
                "swarm": self._swarm.status() if self._swarm else None,
                "layers": {state.value: states.count(state.value) for state in State if state.value in states},
                "reads_waiting": sum(layer.store.present.parked for layer in layers if layer.shown),
                "mounts": await self._node.mounts.all() if self._node else [],
                "disk_free_bytes": disk.f_bavail * disk.f_frsize,
            }
        )

    async def layers(self, request: web.Request) -> web.Response:
        """GET /v1/layers: every layer known here, also those that were declined or are being indexed."""
        if self._node is None:
            return _json([])
        digests = self._digests(self._node)
        rows = [
            {**_row(layer, digests.get(layer.pack_id)), **self._node.trust.of(layer)}
            for layer in self._node.catalog.all()
        ]
        rows += [
            {**_absent(layer, State.INDEXING), **_early(self._node.images.openings.early.of(layer.digest))}
            for layer in self._node.images.openings.indexing.values()
        ]
        here = {row["digest"] for row in rows}
        for plain in self._node.images.openings.plain.values():
            if plain.layer.digest not in here:
                rows.append({**_absent(plain.layer, State.PLAIN), "reason": plain.reason})
        return _json(rows)

    async def images(self, request: web.Request) -> web.Response:
        """GET /v1/images: those that layers were taken over of, then tags that clients pulled the ordinary way."""
        known = self._node.images.known.all() if self._node else []
        pulled = {str(reference): seen for reference, seen in self._tags.all().items()}
        now, rows = time.time(), [self._image(image) for image in known]
        for row, image in zip(rows, known, strict=True):
            seen = pulled.pop(image.reference, None)
            confirmed = [at for at in (image.confirmed_at, seen and seen.confirmed_at) if at is not None]
            row["age_s"] = round(now - max(confirmed)) if confirmed else None
        rows += [_pulled(reference, seen, now) for reference, seen in pulled.items()]
        return _json(rows)

    async def peers(self, request: web.Request) -> web.Response:
        """GET /v1/peers: none where chunks are not exchanged."""
        return _json(self._swarm.peers() if self._swarm else [])

    async def mount(self, request: web.Request) -> web.Response:
        """POST /v1/mounts"""
        asked = await _asked(request, MountRequest)
        digest = await self._lazy().mounts.mount(asked.reference, asked.directory, writable=asked.writable)
        return _json({"directory": asked.directory, "manifest_digest": digest})

    async def umount(self, request: web.Request) -> web.Response:
        """POST /v1/umount"""
        asked = await _asked(request, UmountRequest)
        await self._lazy().mounts.umount(asked.directory)
        return _json({"directory": asked.directory})

    async def drain(self, request: web.Request) -> web.Response:
        """POST /v1/drain: where layers are not shown lazily there is nothing to do."""
        asked = await _asked(request, DrainRequest)
        if self._node is None:
            return _json({"switched": 0, "left": []})
        digests = self._digests(self._node)
        drained = await self._node.draining.drain(asked.timeout_s, asked.leave_s)
        left = [
            {**_row(layer, digests.get(layer.pack_id)), "used_by": [user_of(info) for info in users]}
            for layer, users in drained.left
        ]
        return _json({"switched": drained.switched, "left": left})

    async def gc(self, request: web.Request) -> web.Response:
        """POST /v1/gc: what went, or would, and why the rest stays."""
        asked = await _asked(request, GcRequest)
        return _json(await self._lazy().space.collect(dry_run=asked.dry_run, frames=asked.frames))

    async def prove(self, request: web.Request) -> web.Response:
        """POST /v1/proofs: begin to hold a pack against its layer, unless that is being done."""
        asked = await _asked(request, ProofRequest)
        node = self._lazy()
        layer = node.catalog.get(asked.pack_id)
        if layer is None:
            raise NotFoundError(f"pack {asked.pack_id} is not on this node")
        node.trust.prover.begin(layer)
        return _json(node.trust.prover.looks[asked.pack_id])

    async def proof(self, request: web.Request) -> web.Response:
        """GET /v1/proofs/PACK: how far the latest look is; its verdict, once it has one."""
        look = self._lazy().trust.prover.looks.get(request.match_info["pack_id"])
        if look is None:
            raise NotFoundError(f"pack {request.match_info['pack_id']} was not looked at; ask for a proof first")
        return _json(look)

    async def metrics(self, request: web.Request) -> web.Response:
        """GET /metrics"""
        body = generate_latest(REGISTRY) + generate_latest(self._figures)
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def healthy(self, request: web.Request) -> web.Response:
        """GET /healthz, /readyz: the snapshotter was served before this was."""
        return web.Response(text="ok\n")

    def _digests(self, node: Node) -> dict[str | None, str]:
        return {layer.pack_id: layer.digest for image in node.images.known.all() for layer in image.layers}

    def _image(self, image: KnownImage) -> dict[str, Any]:
        assert self._node is not None
        found = [self._node.catalog.get(layer.pack_id or "") for layer in image.layers]
        present = [layer for layer in found if layer is not None]
        return {
            "reference": image.reference,
            "name": image.name,
            "manifest_digest": image.manifest_digest,
            "platform": image.platform,
            "layers": [layer.digest for layer in image.layers],
            "size_bytes": sum(layer.store.index.image_size for layer in present),
            "present_bytes": sum(layer.store.present.count() * BLOCK for layer in present),
            "revoked": self._node.trust.revoked(present),
            "complete": len(present) == len(found) and all(layer.store.is_complete for layer in present),
            "sources": dict(sum((layer.store.received for layer in present), Counter())),
        }

    def _lazy(self) -> Node:
        if self._node is None:
            raise UnsupportedError("this machine cannot mount layers lazily: EROFS, FUSE or loop devices are missing")
        return self._node


def _row(layer: Layer, digest: str | None) -> dict[str, Any]:
    store = layer.store
    is_layer = store.index.kind is Kind.LAYER
    return {
        "digest": digest if is_layer else store.index.layer_digest,
        "kind": store.index.kind.name.lower(),
        "diff_id": store.index.diff_id if is_layer else None,
        "pack_id": layer.pack_id,
        "state": layer.state.value,
        "size_bytes": store.index.image_size,
        "present_bytes": store.present.count() * BLOCK,
        "sources": dict(store.received),
    }


def _pulled(reference: str, seen: SeenTag, now: float) -> dict[str, Any]:
    """A tag that was pulled through the mirror: what became of it only the client knows."""
    return {
        "reference": reference,
        "name": reference.rpartition(":")[0],
        "manifest_digest": seen.digest,
        "platform": None,
        "layers": [],
        "size_bytes": 0,
        "present_bytes": 0,
        "complete": False,
        "sources": {},
        "revoked": [],
        "age_s": round(now - seen.confirmed_at),
    }


def _absent(layer: KnownLayer, state: State) -> dict[str, Any]:
    """A layer without an image here; `size_bytes` is what the registry has, compressed."""
    return {
        "digest": layer.digest,
        "kind": "layer",
        "diff_id": layer.diff_id,
        "pack_id": None,
        "state": state.value,
        "size_bytes": layer.size_bytes,
        "present_bytes": 0,
        "sources": {},
    }


def _early(store: EarlyStore | None) -> dict[str, Any]:
    """What has come of a layer before its seal."""
    return {} if store is None else {"present_bytes": store.size_bytes, "sources": dict(store.received)}


async def _asked(request: web.Request, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{request.method} {request.path}: {error}") from None


def _json(document: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")

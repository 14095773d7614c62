"""The agent's HTTP API on RUN/api.sock: JSON for the command line, figures for Prometheus."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

import imgdist
from agent.catalog import Catalog, State
from agent.draining import Draining
from agent.figures import LayerFigures
from agent.images import Images
from agent.listing import Listing, Trust, pulled
from agent.mirror.seen import SeenTags
from agent.mounts import ImageMounts, user_of
from agent.proving.figures import ProofFigures
from agent.space.keeper import SpaceKeeper
from agent.swarm.station import Station
from imgdist.errors import ImgdistError, NotFoundError, UnsupportedError
from imgdist.wire.answers import Handler, answer, decoded, errors_answered

log = logging.getLogger("imgdist.agent")


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
    app = web.Application(middlewares=[(calls or Calls()).counted, errors_answered, _faults_answered])
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
async def _faults_answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (ImgdistError, web.HTTPException):
        raise
    except Exception as error:
        log.exception("%s %s failed", request.method, request.path)
        reason = f"{type(error).__name__}: {error}; the agent's log says more"
        return answer({"error": reason, "kind": "internal"}, 500)


class _Api:
    def __init__(self, node: Node | None, root: str, supernodes: Sequence[str], tags: SeenTags) -> None:
        self._node = node
        self._tags = tags
        self._root = root
        self._supernodes = list(supernodes)
        self._swarm = node.swarm if node else None
        self._listing = Listing(node.catalog, node.images, node.trust) if node else None
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
        return answer(
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
        return answer(self._listing.layers() if self._listing else [])

    async def images(self, request: web.Request) -> web.Response:
        """GET /v1/images: those that layers were taken over of, then tags that clients pulled the ordinary way."""
        tags = {str(reference): seen for reference, seen in self._tags.all().items()}
        return answer(self._listing.images(tags) if self._listing else pulled(tags))

    async def peers(self, request: web.Request) -> web.Response:
        """GET /v1/peers: none where chunks are not exchanged."""
        return answer(self._swarm.peers() if self._swarm else [])

    async def mount(self, request: web.Request) -> web.Response:
        """POST /v1/mounts"""
        asked = await decoded(request, MountRequest)
        digest = await self._lazy().mounts.mount(asked.reference, asked.directory, writable=asked.writable)
        return answer({"directory": asked.directory, "manifest_digest": digest})

    async def umount(self, request: web.Request) -> web.Response:
        """POST /v1/umount"""
        asked = await decoded(request, UmountRequest)
        await self._lazy().mounts.umount(asked.directory)
        return answer({"directory": asked.directory})

    async def drain(self, request: web.Request) -> web.Response:
        """POST /v1/drain: where layers are not shown lazily there is nothing to do."""
        asked = await decoded(request, DrainRequest)
        if self._node is None or self._listing is None:
            return answer({"switched": 0, "left": []})
        drained = await self._node.draining.drain(asked.timeout_s, asked.leave_s)
        rows = self._listing.rows(layer for layer, _ in drained.left)
        left = [
            {**row, "used_by": [user_of(info) for info in users]}
            for row, (_, users) in zip(rows, drained.left, strict=True)
        ]
        return answer({"switched": drained.switched, "left": left})

    async def gc(self, request: web.Request) -> web.Response:
        """POST /v1/gc: what went, or would, and why the rest stays."""
        asked = await decoded(request, GcRequest)
        return answer(await self._lazy().space.collect(dry_run=asked.dry_run, frames=asked.frames))

    async def prove(self, request: web.Request) -> web.Response:
        """POST /v1/proofs: begin to hold a pack against its layer, unless that is being done."""
        asked = await decoded(request, ProofRequest)
        node = self._lazy()
        layer = node.catalog.get(asked.pack_id)
        if layer is None:
            raise NotFoundError(f"pack {asked.pack_id} is not on this node")
        node.trust.prover.begin(layer)
        return answer(node.trust.prover.looks[asked.pack_id])

    async def proof(self, request: web.Request) -> web.Response:
        """GET /v1/proofs/PACK: how far the latest look is; its verdict, once it has one."""
        look = self._lazy().trust.prover.looks.get(request.match_info["pack_id"])
        if look is None:
            raise NotFoundError(f"pack {request.match_info['pack_id']} was not looked at; ask for a proof first")
        return answer(look)

    async def metrics(self, request: web.Request) -> web.Response:
        """GET /metrics"""
        body = generate_latest(REGISTRY) + generate_latest(self._figures)
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def healthy(self, request: web.Request) -> web.Response:
        """GET /healthz, /readyz: the snapshotter was served before this was."""
        return web.Response(text="ok\n")

    def _lazy(self) -> Node:
        if self._node is None:
            raise UnsupportedError("this machine cannot mount layers lazily: EROFS, FUSE or loop devices are missing")
        return self._node

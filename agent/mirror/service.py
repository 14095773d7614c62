"""The mirror's HTTP endpoint on its listening socket."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import prometheus_client
from aiohttp import web
from aiohttp.typedefs import Middleware

from agent.mirror.registry import MirrorRegistry
from agent.mirror.remote import RemoteRegistry
from agent.mirror.remoteblobs import RemoteBlobs
from agent.mirror.seen import SeenTags
from agent.supernodes import ANSWER_S, Supernodes
from imgdist.distribution.inorder import InOrder
from imgdist.distribution.server import PullApi
from imgdist.oci.blobs import BlobSource

_MARGIN_S = 1.0  # a refusal that takes a supernode all its time still gets through


async def serve(
    supernodes: Supernodes,
    blobs: Sequence[BlobSource],
    seen: SeenTags,
    listener: socket.socket,
    counted: Middleware,
    *,
    shutdown_s: float,
    registry: prometheus_client.CollectorRegistry = prometheus_client.REGISTRY,
) -> web.AppRunner:
    """Answer clients. `blobs` are asked before the supernodes are; `counted` is told of each request. To stop:
    `runner.cleanup()`, which gives answers under way so many seconds."""
    answers = prometheus_client.Counter(
        "imgdist_mirror_requests", "Answers to registry clients", ["endpoint", "status"], registry=registry
    )
    remote = RemoteRegistry(supernodes)
    handed_on = RemoteBlobs(remote)
    mirror = MirrorRegistry(remote, handed_on, InOrder(*blobs, handed_on), seen)
    api = PullApi(
        mirror,
        lambda endpoint, status: answers.labels(endpoint, str(status)).inc(),
        first_byte_s=ANSWER_S + _MARGIN_S,
    )
    app = web.Application(middlewares=[counted])
    app.add_routes(api.routes())
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=shutdown_s)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return runner

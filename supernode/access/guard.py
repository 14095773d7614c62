"""The control API is for nodes: with a cluster's key, each request has to prove that a node asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from imgdist.errors import DeniedError
from imgdist.wire.clusterkey import FIELD, ClusterKey, control

NODES_ONLY = "/v1/"
"""What begins so. The registry's endpoint (/v2/) asks registries who may read; figures and health are for everybody."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guard(key: ClusterKey | None) -> tuple[Any, ...]:
    """The middleware, none without a key. Unix sockets are root's alone: whoever reaches one is trusted."""
    if key is None:
        return ()

    @web.middleware
    async def nodes_only(request: web.Request, handler: Handler) -> web.StreamResponse:
        is_remote = request.transport is None or isinstance(request.transport.get_extra_info("peername"), tuple)
        if is_remote and request.path.startswith(NODES_ONLY):
            token = request.headers.get(FIELD, "")
            if not key.accepts(control(request.method, request.rel_url.raw_path_qs), token):
                raise DeniedError(
                    f"{request.method} {request.path}: expected a token of this cluster's key; "
                    "is access.key_file the same on this node, and its clock right?"
                )
        return await handler(request)

    return (nodes_only,)

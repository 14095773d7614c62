"""Requests to supernodes that prove that a node of the cluster asks."""

from __future__ import annotations

import aiohttp

from imgdist.wire.clusterkey import FIELD, ClusterKey, control


def proving(key: ClusterKey | None) -> tuple[aiohttp.ClientMiddlewareType, ...]:
    """What an aiohttp session needs to add a token of the cluster's key to each request; nothing without a key."""
    if key is None:
        return ()

    async def prove(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        request.headers[FIELD] = key.token(control(request.method, request.url.raw_path_qs))
        return await handler(request)

    return (prove,)

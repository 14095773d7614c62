"""What a mirror takes from its supernodes: permissions for a while, bodies to their end, refusals as they are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import pytest
from aiohttp import web

from agent.mirror import remoteblobs
from agent.mirror.permission import MAX, REMEMBERED_S, Permissions
from agent.mirror.remote import RemoteRegistry
from agent.mirror.remoteblobs import RemoteBlobs
from agent.supernode_client import SupernodeClient
from agent.supernodes import Supernodes
from imgdist.distribution.refusal import RefusedError
from imgdist.errors import TemporaryError
from imgdist.oci.reference import Reference

BLOB = bytes(range(256)) * 4000
WHERE = Reference("quay.io", "a/b", digest="sha256:" + "1" * 64)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def supernode(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def blobs(*urls: str) -> AsyncIterator[RemoteBlobs]:
    supernodes = Supernodes([SupernodeClient(url) for url in urls])
    try:
        yield RemoteBlobs(RemoteRegistry(supernodes))
    finally:
        await supernodes.close()


class Cutting:
    """Serves BLOB by Range; of each of the first `cuts` answers a part, then the connection breaks."""

    def __init__(self, cuts: int) -> None:
        self.cuts, self.spans = cuts, list[tuple[int, int]]()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        assert request.query["ns"] == "quay.io" and request.headers["Authorization"] == "Basic YTph"
        span = request.http_range
        self.spans.append((span.start, span.stop))
        raw = BLOB[span.start : span.stop]
        response = web.StreamResponse(status=206, headers={"Content-Length": str(len(raw))})
        await response.prepare(request)
        if len(self.spans) <= self.cuts:
            await response.write(raw[:100_000])
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(raw)
        return response


async def test_a_body_that_breaks_off_is_resumed_where_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remoteblobs, "PAUSE_S", 0.0)
    serve = Cutting(3)
    async with supernode(serve.answer) as url, blobs(url) as source:
        blob = await source.open(WHERE, authorization="Basic YTph", size=len(BLOB))
        async with aclosing(blob.stream(10, len(BLOB) - 10)) as pieces:
            assert b"".join([piece async for piece in pieces]) == BLOB[10:-10]
    assert [start for start, _ in serve.spans] == [10, 100_010, 200_010, 300_010]
    assert {stop for _, stop in serve.spans} == {len(BLOB) - 10}


async def test_another_supernode_goes_on_and_the_first_one_rests() -> None:
    serve = Cutting(0)
    async with supernode(serve.answer) as url, blobs("http://127.0.0.1:9", url) as source:
        blob = await source.open(WHERE, authorization="Basic YTph", size=len(BLOB))
        assert await blob.read(5, 7) == BLOB[5:12]


async def test_nothing_at_all_is_an_error_at_once() -> None:
    async with blobs("http://127.0.0.1:9") as source:
        with pytest.raises(TemporaryError):
            await (await source.open(WHERE, size=9)).read(0, 9)


async def test_refusals_keep_status_code_and_challenges() -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        response = web.json_response({"errors": [{"code": "UNAUTHORIZED", "message": "who are you"}]}, status=401)
        response.headers.add("WWW-Authenticate", 'Bearer realm="r"')
        response.headers.add("WWW-Authenticate", "Basic")
        response.headers["X-Other"] = "not for clients"
        return response

    async with supernode(refuse) as url, blobs(url) as source:
        with pytest.raises(RefusedError, match="who are you") as told:
            await (await source.open(WHERE, size=9)).read(0, 9)
        assert (told.value.status, told.value.code) == (401, "UNAUTHORIZED")
        assert told.value.headers == (("WWW-Authenticate", 'Bearer realm="r"'), ("WWW-Authenticate", "Basic"))
        with pytest.raises(RefusedError) as told:
            await source.size(WHERE)
        assert (told.value.status, told.value.code) == (401, "UNAUTHORIZED"), "HEAD has no body"


def test_a_yes_holds_for_a_while_for_who_asked() -> None:
    now = [0.0]
    permissions = Permissions(lambda: now[0])
    permissions.give(("quay.io/a", "d", "Basic a"), 7)
    assert permissions.given(("quay.io/a", "d", "Basic a")) == 7
    for other in (("quay.io/a", "d", None), ("quay.io/a", "d", "Basic b"), ("quay.io/b", "d", "Basic a")):
        assert permissions.given(other) is None
    now[0] = REMEMBERED_S
    assert permissions.given(("quay.io/a", "d", "Basic a")) is None


def test_yeses_are_bounded_and_old_ones_forgotten() -> None:
    now = [0.0]
    permissions = Permissions(lambda: now[0])
    for number in range(MAX + 5):
        permissions.give(("n", str(number), None), 1)
    assert permissions.given(("n", "4", None)) is None and permissions.given(("n", "5", None)) == 1
    now[0] = REMEMBERED_S + 1
    permissions.give(("n", "new", None), 1)
    assert len(permissions._given) == 1

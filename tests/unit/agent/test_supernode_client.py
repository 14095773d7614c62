"""The control API's client against a supernode that lies, and one whose machine has died."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web
from msgspec import msgpack

from agent.supernode_client import SupernodeClient
from agent.supernode_http import DEAD_PEER_S
from imgdist.errors import ProtocolError
from imgdist.wire.control import Chain, Layer, LayerStatus, Resolution, Trace

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
PACK = "ab" * 32
BAD = ["../../etc/passwd", "sha256:../../x", "sha256:" + "A" * 64, "sha512:" + "1" * 128, "", ONE + "/x"]


@asynccontextmanager
async def supernode(answer: Any) -> AsyncIterator[SupernodeClient]:
    """Answers every request with this document."""

    async def handle(request: web.Request) -> web.Response:
        encode = msgpack.encode if isinstance(answer, Trace) else msgspec.json.encode
        return web.Response(body=encode(answer))

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with SupernodeClient(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
            yield client
    finally:
        await runner.cleanup()


def resolution(manifest: str = ONE, config: str = ONE, **layer: Any) -> Resolution:
    fields = {"digest": ONE, "diff_id": ONE, "chain_id": ONE, "pack_id": PACK, **layer}
    one = Layer(media_type="tar", size_bytes=1, state="ready", **fields)
    return Resolution("r", "n", manifest, "m", config, "linux/amd64", 1, None, 0, False, (one,))


async def test_good_answers_come_through() -> None:
    async with supernode(resolution()) as client:
        assert await client.resolve("r", manifest_digest=ONE) == resolution()
    async with supernode(resolution(pack_id=None)) as client:
        assert await client.resolve("r") == resolution(pack_id=None)
    async with supernode(LayerStatus(ONE, "ready", PACK)) as client:
        assert (await client.layer(ONE)).pack_id == PACK
    async with supernode(Chain(TWO, ONE, ONE, "n", ONE, "p")) as client:
        assert await client.chain(TWO) == Chain(TWO, ONE, ONE, "n", ONE, "p")
    async with supernode(Trace(0, (ONE,), b"")) as client:
        assert await client.trace(ONE) == Trace(0, (ONE,), b"")


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("field", ["manifest", "config", "digest", "diff_id", "chain_id", "pack_id"])
async def test_a_resolution_names_nothing_but_digests(field: str, bad: str) -> None:
    async with supernode(resolution(**{field: bad})) as client:
        with pytest.raises(ProtocolError, match="64 hex digits"):
            await client.resolve("r")


@pytest.mark.parametrize("bad", BAD)
async def test_nor_do_other_answers(bad: str) -> None:
    for chain in (Chain(ONE, bad, ONE, "n", ONE, "p"), Chain(ONE, ONE, bad, "n", ONE, "p")):
        async with supernode(chain) as client:
            with pytest.raises(ProtocolError, match="64 hex digits"):
                await client.chain(ONE)
    async with supernode(Chain(ONE, ONE, ONE, "n", bad, "p")) as client:
        with pytest.raises(ProtocolError, match="64 hex digits"):
            await client.chain(ONE)
    async with supernode(LayerStatus(ONE, "ready", bad)) as client:
        with pytest.raises(ProtocolError, match="pack id"):
            await client.layer(ONE)
    async with supernode(Trace(0, (ONE, bad), b"")) as client:
        with pytest.raises(ProtocolError, match="64 hex digits"):
            await client.trace(ONE)


async def test_an_answer_to_another_question_is_none() -> None:
    async with supernode(resolution(manifest=TWO)) as client:
        with pytest.raises(ProtocolError, match=r"asked for sha256:1+, the answer is about"):
            await client.resolve("r", manifest_digest=ONE)
    async with supernode(LayerStatus(TWO, "ready", PACK)) as client:
        with pytest.raises(ProtocolError, match="asked for"):
            await client.layer(ONE)
    async with supernode(Chain(TWO, ONE, ONE, "n", ONE, "p")) as client:
        with pytest.raises(ProtocolError, match="asked for"):
            await client.chain(ONE)


async def test_the_kernel_watches_the_other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index stream may be silent for long; that its peer is there is what TCP asks."""
    made: list[socket.socket] = []
    real = socket.socket

    class Recorded(real):  # type: ignore[misc,valid-type]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            made.append(self)

    async with supernode(resolution()) as client:
        monkeypatch.setattr("agent.supernode_http.socket.socket", Recorded)
        await client.resolve("r")
        monkeypatch.undo()
        watched = [one for one in made if one.fileno() >= 0 and one.getpeername()]
        options = [
            (
                one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                + one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
                * one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
            )
            for one in watched
            if one.family == socket.AF_INET and one.getpeername()[1] == int(client.url.rpartition(":")[2])
        ]
        assert options == [(1, DEAD_PEER_S * 1000, DEAD_PEER_S)]

"""Whether a node answers at its address: the right answer in time, and everything that is none."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from parts import require

from imgdist.wire.address import Address
from imgdist.wire.responses import encode_head
from imgdist.wire.tracker import Hello, encode
from supernode.tracker.probe import answers

NODE, OTHER = "1" * 32, "2" * 32
BODY = encode(Hello(NODE, 1, 1))
RIGHT = encode_head(200, len(BODY)) + BODY


class Listener:
    """Answers whatever comes with `script`'s pieces; notes what was asked."""

    def __init__(self, *script: bytes, hang: bool = False) -> None:
        self._script = script
        self._hang = hang
        self.asked: list[bytes] = []
        self.closed = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            for piece in self._script:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.005)
            if self._hang:
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()
            self.closed.set()


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], host: str = "127.0.0.1"
) -> AsyncIterator[Address]:
    server = await asyncio.start_server(serve, host, 0)
    async with server:
        yield Address(host, server.sockets[0].getsockname()[1])


@pytest.mark.parametrize("script", [(RIGHT,), tuple(RIGHT[at : at + 1] for at in range(len(RIGHT)))])
async def test_the_node_answers(script: tuple[bytes, ...]) -> None:
    listener = Listener(*script, hang=True)
    async with listening(listener) as address:
        assert await answers(address, NODE)
        async with asyncio.timeout(10):
            await listener.closed.wait()  # the probe leaves no connection behind
    (asked,) = listener.asked
    assert asked.startswith(b"GET /v1/hello HTTP/1.1\r\n")
    assert f"Host: {address}".encode() in asked


async def test_another_node_answers() -> None:
    async with listening(Listener(RIGHT)) as address:
        assert not await answers(address, OTHER)


@pytest.mark.parametrize(
    "script",
    [
        (),
        (b"SSH-2.0-x\r\n\r\n",),
        (encode_head(404, 0),),
        (encode_head(200, 5) + b"\xc1\xc1\xc1\xc1\xc1",),
        (encode_head(200, 1 << 30),),
        (RIGHT[:-1],),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 20_000,),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<html></html>",),
    ],
)
async def test_what_is_no_answer(script: tuple[bytes, ...]) -> None:
    async with listening(Listener(*script)) as address:
        assert not await answers(address, NODE)


async def test_time_is_bounded() -> None:
    loop = asyncio.get_running_loop()
    for listener in (Listener(hang=True), Listener(RIGHT[:20], hang=True)):
        async with listening(listener) as address:
            started = loop.time()
            assert not await answers(address, NODE, timeout_s=0.1)
            assert loop.time() - started < 5


async def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert not await answers(Address("127.0.0.1", unused.getsockname()[1]), NODE)


async def test_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        require(False, "IPv6 on loopback")
    async with listening(Listener(RIGHT), "::1") as address:
        assert await answers(address, NODE)

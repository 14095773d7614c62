"""The relay adds the time that it is told, both ways, and changes no byte."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from imgdist.demo.relay import Relay

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def _through_relay(
    handler: Handler, rtt_s: float
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with (
        await asyncio.start_server(handler, "127.0.0.1", 0) as server,
        await Relay(*server.sockets[0].getsockname(), rtt_s).serve("127.0.0.1", 0) as relay,
    ):
        reader, writer = await asyncio.open_connection(*relay.sockets[0].getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()
            await writer.wait_closed()
            await _others_end()


async def _others_end() -> None:
    """Both servers' connections end by themselves once the client is gone."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    async with asyncio.timeout(20):
        await asyncio.gather(*others)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_a_question_waits_a_round_trip_and_a_new_connection_one_more() -> None:
    async with _through_relay(_echo, 0.05) as (reader, writer):
        loop = asyncio.get_running_loop()
        times = []
        for _ in range(3):
            asked = loop.time()
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            times.append(loop.time() - asked)
    assert times[0] >= 0.099
    assert all(seconds >= 0.049 for seconds in times[1:])
    assert min(times[1:]) < 0.095  # not the handshake again


async def test_bytes_arrive_whole_in_order_and_so_does_the_end() -> None:
    content = bytes(range(256)) * 20_000

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()
        writer.close()

    async with _through_relay(send, 0.01) as (reader, _):
        received = await asyncio.wait_for(reader.read(-1), 20)
    assert hashlib.sha256(received).digest() == hashlib.sha256(content).digest()


async def test_a_target_that_is_not_there_closes_the_connection() -> None:
    async with await asyncio.start_server(_echo, "127.0.0.1", 0) as server:
        address = server.sockets[0].getsockname()
    async with await Relay(*address, 0.01).serve("127.0.0.1", 0) as relay:
        reader, writer = await asyncio.open_connection(*relay.sockets[0].getsockname())
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        await writer.wait_closed()
        await _others_end()

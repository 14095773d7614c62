"""Answering requests until somebody says stop: a signal, a holder that goes away, or one that asks to make room."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, suppress
from socket import socket

from aiohttp import web

from imgdist import daemon, holder_client
from supernode.blobs.source import Blobs
from supernode.fetch import Fetcher

SHUTDOWN_S = 1.0
"""How long answers under way may take after SIGTERM. Who follows an index resumes at the next supernode."""

PATIENCE_S = 30.0
"""How long a successor waits for the end of conversions: what is cut off is read from the registry a second time."""


async def answer(app: web.Application, listener: socket, servers: AsyncExitStack) -> None:
    """Answer requests until `servers` is closed."""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    servers.push_async_callback(runner.cleanup)
    await web.SockSite(runner, listener, backlog=1024).start()


def signals() -> asyncio.Future[int]:
    """Gets the number of the first SIGTERM or SIGINT, from now on."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _tell, told, number)
    return told


def _tell(told: asyncio.Future[int], number: int) -> None:
    if not told.done():
        told.set_result(number)


async def until_stopped(
    told_to_stop: asyncio.Future[int], holder: holder_client.Holder | None, fetcher: Fetcher, blobs: Blobs
) -> int:
    """Say that we serve; return the signal that ends it. A holder that goes away is as good as one, and so is one that
    asks us to make room, once no layer is being converted and no blob fetched."""
    if holder is None:
        daemon.announce_ready()
        return await told_to_stop
    loop, retire = asyncio.get_running_loop(), asyncio.Event()

    def heard() -> None:
        word = holder.heard()
        if word is not None and "retire" in word:
            retire.set()
        else:
            _tell(told_to_stop, signal.SIGTERM)

    async def make_room() -> None:
        await retire.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while jobs := list(fetcher.jobs.values()):
                    await jobs[0].over.wait()
                await blobs.settled()
        _tell(told_to_stop, signal.SIGTERM)

    loop.add_reader(holder.fileno(), heard)
    leaving = loop.create_task(make_room())
    try:
        holder.ready()
        return await told_to_stop
    finally:
        leaving.cancel()
        loop.remove_reader(holder.fileno())

"""The tracker of a real supernode process: agents that start at once find each other, and find it again."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest
from parts import require

from imgdist.demo.ports import free_port
from imgdist.demo.processes import Process
from imgdist.wire import tracker as wire
from imgdist.wire.address import Address
from imgdist.wire.responses import encode_head
from imgdist.wire.tracker import Hello, Join, Peers, Refused, Seek, Share, Welcome

LAYER = f"sha256-{'e' * 64}-v0"
WAIT_S = 30.0


@contextmanager
def supernode(directory: Path, host: str = "127.0.0.1", port: int | None = None) -> Iterator[tuple[str, int]]:
    """A supernode on TCP, its URL and its process; ended by the end of the block."""
    listen = Address(host, port or free_port())
    argv = [sys.executable, "-m", "imgdist.cli", "supernode", "--root", str(directory / "sn"), "--listen", str(listen)]
    argv += ["--chunk-listen", f"unix://{directory}/c.sock"]
    with Process("supernode", argv, directory / "supernode.log") as process:
        process.wait_for_line("ready")
        yield listen.url, process.pid


class Agent:
    """A node that answers at its address and keeps what the tracker tells it."""

    def __init__(self, number: int, host: str = "127.0.0.1") -> None:
        self.node = f"{number:032x}"
        self.host = host
        self.port = 0
        self.answers = True
        self.known: dict[str, str] = {}
        self.heard: list[wire.FromTracker] = []
        self.news = asyncio.Event()
        self.is_over = False
        self.socket: aiohttp.ClientWebSocketResponse

    async def say(self, message: wire.FromAgent) -> None:
        await self.socket.send_bytes(wire.encode(message))

    async def join(self, *, address: str = "") -> None:
        await self.say(Join(1, 1, self.node, "host", address, self.port, "", (Share(LAYER, 0, 100),)))

    async def until_heard(self, message: wire.FromTracker) -> None:
        await self._until(lambda: message in self.heard)

    async def until_known(self, count: int) -> None:
        await self._until(lambda: len(self.known) >= count)

    async def until_over(self) -> None:
        await self._until(lambda: self.is_over)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """GET /v1/hello"""
        await reader.readuntil(b"\r\n\r\n")
        body = wire.encode(Hello(self.node, 1, 1))
        if self.answers:
            writer.write(encode_head(200, len(body)) + body)
        writer.close()

    async def listen(self) -> None:
        async for message in self.socket:
            told = wire.decode_from_tracker(message.data)
            self.heard.append(told)
            if isinstance(told, Peers):
                self.known |= {peer.node: peer.address for peer in told.peers}
            self.news.set()
        self.is_over = True
        self.news.set()


@asynccontextmanager
async def agents(url: str, *crowd: Agent) -> AsyncIterator[None]:
    """All connected (not joined), each answering at a port of its own."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        listening = await stack.enter_async_context(asyncio.TaskGroup())
        for agent in crowd:
            server = await asyncio.start_server(agent.serve, agent.host, agent.port or 0)
            await stack.enter_async_context(server)
            agent.port = server.sockets[0].getsockname()[1]
            agent.is_over = False
            agent.socket = await http.ws_connect(url + wire.PATH)
            stack.push_async_callback(agent.socket.close)
            listening.create_task(agent.listen())
        yield


async def census(url: str) -> tuple[dict[str, int], dict[str, float]]:
    """What /v1/status and /metrics say."""
    async with aiohttp.ClientSession() as http:
        async with http.get(url + "/v1/status") as response:
            status = (await response.json())["swarm"]
        async with http.get(url + "/metrics") as response:
            lines = [line for line in (await response.text()).splitlines() if not line.startswith("#")]
    return status, {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def test_sixteen_starters_know_each_other_in_a_second(tmp_path: Path) -> None:
    crowd = [Agent(number) for number in range(1, 17)]
    with supernode(tmp_path) as (url, pid):
        async with agents(url, *crowd):
            started = time.monotonic()
            await asyncio.gather(*(agent.join() for agent in crowd))
            await asyncio.gather(*(agent.until_known(15) for agent in crowd))
            assert time.monotonic() - started < 5  # 0.3 s on an idle machine
            for agent in crowd:
                others = {other.node: f"127.0.0.1:{other.port}" for other in crowd if other is not agent}
                assert agent.known == others
            status, figures = await census(url)
            assert status == {"members": 16, "reachable": 16, "swarms": 1}
            assert figures["imgdist_swarm_members"] == 16
            assert figures['imgdist_tracker_probes_total{answered="yes"}'] == 16
            assert figures['imgdist_tracker_messages_total{kind="join"}'] == 16
            limits = Path(f"/proc/{pid}/limits").read_text()
            soft, hard = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
            assert soft == hard


async def test_who_does_not_answer_is_not_told_but_told_of_others(tmp_path: Path) -> None:
    hidden, open_ = Agent(1), Agent(2)
    hidden.answers = False
    with supernode(tmp_path) as (url, _):
        async with agents(url, hidden, open_):
            await hidden.join()
            await hidden.until_heard(Welcome(1, "127.0.0.1", f"127.0.0.1:{hidden.port}", False))
            await open_.join()
            await hidden.until_known(1)
            await open_.until_heard(Welcome(1, "127.0.0.1", f"127.0.0.1:{open_.port}", True))
            open_.heard.clear()
            await open_.say(Seek(()))
            await open_.until_heard(Peers(()))
            # Another node's address is of no use either: that node answers with its own id.
            liar = Agent(3)
            async with agents(url, liar):
                await liar.join(address=f"127.0.0.1:{open_.port}")
                await liar.until_heard(Welcome(1, "127.0.0.1", f"127.0.0.1:{open_.port}", False))


async def test_a_restarted_supernode_learns_everything_again(tmp_path: Path) -> None:
    crowd = [Agent(number) for number in range(1, 5)]
    port = free_port()
    with supernode(tmp_path, port=port) as (url, _):
        async with agents(url, *crowd):
            await asyncio.gather(*(agent.join() for agent in crowd))
            await asyncio.gather(*(agent.until_known(3) for agent in crowd))
    for agent in crowd:
        agent.known.clear()
    with supernode(tmp_path, port=port) as (url, _):
        assert (await census(url))[0]["members"] == 0
        async with agents(url, *crowd):
            await asyncio.gather(*(agent.join() for agent in crowd))
            await asyncio.gather(*(agent.until_known(3) for agent in crowd))
            assert (await census(url))[0] == {"members": 4, "reachable": 4, "swarms": 1}


async def test_a_stopping_supernode_ends_its_connections_in_good_time(tmp_path: Path) -> None:
    agent = Agent(1)
    async with AsyncExitStack() as stack:
        with supernode(tmp_path) as (url, _):
            await stack.enter_async_context(agents(url, agent))
            await agent.join()
            await agent.until_heard(Welcome(1, "127.0.0.1", f"127.0.0.1:{agent.port}", True))
            started = time.monotonic()
            # Leaving the block stops the process and waits for it; this agent's end stays open meanwhile.
        assert time.monotonic() - started < 8
        await agent.until_over()


async def test_ipv6(tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        require(False, "IPv6 on loopback")
    first, second = Agent(1, "::1"), Agent(2, "::1")
    with supernode(tmp_path, "::1") as (url, _):
        async with agents(url, first, second):
            await first.join()
            await second.join()
            await first.until_known(1)
            await second.until_known(1)
            assert first.known == {second.node: f"[::1]:{second.port}"}
            assert Welcome(1, "::1", f"[::1]:{first.port}", True) in first.heard


@pytest.mark.parametrize("garbage", [b"", b"\xff" * 100, bytes(wire.MESSAGE_MAX + 1), b"\x91" * 200_000])
async def test_garbage_harms_its_sender_alone(tmp_path: Path, garbage: bytes) -> None:
    good, bad = Agent(1), Agent(2)
    with supernode(tmp_path) as (url, _):
        async with agents(url, good, bad):
            await good.join()
            await bad.socket.send_bytes(garbage)
            await bad.until_over()
            assert all(isinstance(message, Refused) for message in bad.heard)
            await good.until_heard(Welcome(1, "127.0.0.1", f"127.0.0.1:{good.port}", True))
            good.heard.clear()
            await good.say(Seek(()))
            await good.until_heard(Peers(()))

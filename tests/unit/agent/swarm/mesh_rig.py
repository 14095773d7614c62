"""Agents' meshes on loopback: real connections, transfers that only take notes, a port that only upgrades."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from agent.swarm.identity import Identity
from agent.swarm.mesh import Mesh
from imgdist.wire.address import Address
from imgdist.wire.mesh import FrameDecoder, Hello, Message, encode, upgrade_request
from imgdist.wire.tracker import Peer

UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: imgdist-mesh\r\nConnection: Upgrade\r\n\r\n"
WAIT_S = 20.0


def name(number: int) -> str:
    return f"sha256-{number:064x}-v0"


def pack(number: int) -> str:
    return f"{number:064x}"


def node_id(number: int) -> str:
    return f"{number:032x}"


class Exchange:
    """What transfers would know: by source, by layer, the chunks."""

    def __init__(self) -> None:
        self.peers: dict[str, dict[int, int]] = {}
        self.near: dict[str, bool] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.rows: list[Any] = []

    def join(self, source: Any, *, near: bool = False) -> None:
        assert source.name not in self.peers
        self.peers[source.name], self.near[source.name] = {}, near

    def leave(self, source: Any) -> None:
        del self.peers[source.name]

    def opened(self, source: Any, node: int, have: int) -> None:
        self.peers[source.name][node] = have

    def got_all(self, news: Iterable[tuple[Any, int, int]]) -> None:
        for source, node, chunks in news:
            self.calls.append(("got", node, chunks))
            self.peers[source.name][node] |= chunks

    def sources_rows(self) -> list[Any]:
        return self.rows

    def closed(self, source: Any, node: int) -> None:
        self.peers[source.name].pop(node, None)


class Source:
    """Names an address."""

    kind = "peer"

    def __init__(self, address: str) -> None:
        self.name = address

    def fetch(self, *_: Any) -> None: ...
    def probe(self, timeout_s: float) -> None: ...
    def renew(self) -> None: ...
    def close(self) -> None: ...


class Tracker:
    """Takes notes."""

    def __init__(self) -> None:
        self.gone: list[str] = []
        self.changes = self.seeks = 0

    def changed(self) -> None:
        self.changes += 1

    def seek(self) -> None:
        self.seeks += 1

    def dead(self, nodes: Sequence[str]) -> None:
        self.gone += nodes


class Node:
    """An agent: `number` is its id."""

    def __init__(self, number: int, limit: int, zone: str, clock: Callable[[], float] | None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.me = Identity(node_id(number), f"n{number}", zone, self.address, 0)
        self.exchange, self.tracker = Exchange(), Tracker()
        timing = {} if clock is None else {"clock": clock}
        chance = random.Random(number).random
        self.mesh = Mesh(
            self.me, self.exchange, Source, self.tracker, limit=limit, tick_s=0.01, chance=chance, **timing
        )
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def peer(self) -> Peer:
        """As a tracker tells of it."""
        return Peer(self.me.node, self.address, self.me.zone)

    @property
    def neighbours(self) -> set[str]:
        return {row["name"] for row in self.mesh.rows()}

    def knows(self, other: Node, node: int) -> int | None:
        """Which chunks of its layer `node` this agent may fetch from the other."""
        return self.exchange.peers.get(other.address, {}).get(node)

    def start(self) -> None:
        self.tasks = [asyncio.create_task(self.mesh.run()), asyncio.create_task(self._accept())]

    async def stop(self) -> None:
        self.listener.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            accepted, _ = await loop.sock_accept(self.listener)
            try:
                head = b""
                while b"\r\n\r\n" not in head and (got := await loop.sock_recv(accepted, 4096)):
                    head += got
                await loop.sock_sendall(accepted, UPGRADED)
            except BaseException:
                accepted.close()
                raise
            self.mesh.accept(accepted, head.partition(b"\r\n\r\n")[2])


class Stranger:
    """Speaks to an agent by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._decoder = FrameDecoder()
        self._heard: list[Message] = []

    def say(self, *messages: Message | bytes) -> None:
        for message in messages:
            self._writer.write(message if isinstance(message, bytes) else encode(message))

    async def hear(self, kind: type[Any]) -> Any:
        """The next message of this kind; None at the end."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for place, message in enumerate(self._heard):
                    if isinstance(message, kind):
                        del self._heard[: place + 1]
                        return message
                try:
                    data = await self._reader.read(4096)
                except ConnectionError:
                    data = b""
                if not data:
                    return None
                self._heard += self._decoder.feed(data)

    async def ended(self) -> bool:
        """Once the other side has closed."""
        return await self.hear(type(None)) is None

    def reset(self) -> None:
        """Vanish without a word."""
        self._writer.transport.abort()


class Rig:
    """Makes agents and strangers, ends them all."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._writers: list[asyncio.StreamWriter] = []

    def node(self, number: int, *, limit: int = 24, zone: str = "", clock: Callable[[], float] | None = None) -> Node:
        made = Node(number, limit, zone, clock)
        self.nodes.append(made)
        made.start()
        return made

    async def stranger(self, to: Node, *, number: int | None = None, address: str = "") -> Stranger:
        """Connected; with a `number` it has said hello, and heard it."""
        where = Address.parse(to.address)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        self._writers.append(writer)
        writer.write(upgrade_request(to.address))
        assert await reader.readuntil(b"\r\n\r\n") == UPGRADED
        made = Stranger(reader, writer)
        if number is not None:
            made.say(Hello(1, 1, node_id(number), address, "", f"s{number}"))
            await made.hear(Hello)
        return made

    async def close(self) -> None:
        for node in self.nodes:
            await node.stop()
        for writer in self._writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    try:
        yield made
    finally:
        await made.close()


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Let the loop run until it holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - whatever a test looks at, not one event
            await asyncio.sleep(0.002)

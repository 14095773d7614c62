"""Simulated agents of a tracker, in a process of their own: `python -m bench.tracker_agents HOST:PORT AGENTS`.

Each has a real WebSocket to the tracker, from a loopback address of its own, and answers `GET /v1/hello` there.
Commands come as lines on stdin: `join SECONDS`, `fill SECONDS` (they do that from the start), `rest SECONDS`; each is
answered by a JSON line of what happened in those seconds. The end of stdin ends it. Light, so that it takes little from
the tracker's machine: plain asyncio protocols, frames made and read by hand.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import os
import random
import resource
import socket
import sys
from dataclasses import asdict, dataclass, field
from hashlib import sha256

from imgdist.errors import ProtocolError
from imgdist.wire import tracker as wire
from imgdist.wire.address import Address
from imgdist.wire.responses import encode_head
from imgdist.wire.tracker import Hello, Join, Peers, Progress, Refused, Share, Welcome

IMAGES, BASE_LAYERS, OWN_LAYERS, ZONES = 25, 2, 6, 100
"""Agents start one of so many images of 8 layers each, two of them the same for all; so many racks."""
CHUNKS = 400
"""Of a layer; 100 MB."""
REPORTED = 3
"""Layers named in a report while filling."""
_FIRST = int(ipaddress.IPv4Address("127.1.0.1"))
_TIMEOUT_S = 30.0


@dataclass
class Tally:
    """What happened since the last command."""

    sent_messages: int = 0
    sent_bytes: int = 0
    received_messages: int = 0
    received_bytes: int = 0
    reachable: int = 0
    probes: int = 0
    told_at_join: int = 0
    errors: list[str] = field(default_factory=list)
    join_to_peers_s: list[float] = field(default_factory=list)


def frame(payload: bytes) -> bytes:
    """A client's binary WebSocket frame, masked with a key of its own (RFC 6455, 5.2 and 5.3)."""
    key = os.urandom(4)
    size = len(payload)
    mask = (key * (size // 4 + 1))[:size]
    masked = (int.from_bytes(payload) ^ int.from_bytes(mask)).to_bytes(size)
    head = bytes((0x82, 0x80 | size)) if size < 126 else b"\x82\xfe" + size.to_bytes(2)
    return head + key + masked


class Agent(asyncio.Protocol):
    """One agent's connection, from the handshake on."""

    def __init__(self, crowd: Crowd, number: int, zone: str) -> None:
        self._crowd = crowd
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._joined_at = 0.0
        self._have = 0
        self._is_up = False
        self._heard_peers = False
        self.node = f"{number:032x}"
        self._zone = zone
        self._layers = crowd.layers_of(number)
        self.timer: asyncio.TimerHandle | None = None
        self.joined: asyncio.Future[None] = crowd.loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET {wire.PATH} HTTP/1.1\r\nHost: tracker\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self._crowd.tally.received_bytes += len(data)
        self._buffer += data
        if not self._is_up:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._fail(f"handshake: {head[:80]!r}")
                return
            self._is_up, self._buffer = True, rest
            self._join()
        while (payload := self._next_payload()) is not None:
            self._crowd.tally.received_messages += 1
            self._hear(payload)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._crowd.ending:
            self._fail(f"connection lost: {exc}")

    def report(self, *, filling: bool) -> None:
        """Tell progress, if there is any, and do so again in time."""
        shares: tuple[Share, ...] = ()
        if filling:
            self._have = min(self._have + 10, CHUNKS - 1)
            shares = tuple(Share(layer, self._have, CHUNKS) for layer in self._layers[:REPORTED])
        self._send(Progress(shares))
        self._crowd.report_later(self)

    def _join(self) -> None:
        shares = tuple(Share(layer, 0, CHUNKS) for layer in self._layers)
        self._joined_at = self._crowd.loop.time()
        self._send(Join(1, 1, self.node, f"host-{self.node[-5:]}", "", self._crowd.hello_port, self._zone, shares))

    def _hear(self, payload: bytes) -> None:
        try:
            message = wire.decode_from_tracker(payload)
        except ProtocolError as error:
            self._fail(str(error))
            return
        if isinstance(message, Refused):
            self._fail(message.reason)
        elif isinstance(message, Welcome):
            self._crowd.tally.reachable += message.reachable is True
        elif not isinstance(message, Peers):
            self._fail(f"not expected: {message}")
        elif any(peer.node == self.node for peer in message.peers):
            self._fail("told of itself")
        elif not self._heard_peers:
            self._heard_peers = True
            self._welcomed(message)

    def _welcomed(self, peers: Peers) -> None:
        self._crowd.tally.told_at_join += len(peers.peers)
        self._crowd.tally.join_to_peers_s.append(self._crowd.loop.time() - self._joined_at)
        if not self.joined.done():
            self.joined.set_result(None)
        self._crowd.report_later(self)

    def _send(self, message: wire.FromAgent) -> None:
        assert self._transport is not None
        data = frame(wire.encode(message))
        self._crowd.tally.sent_messages += 1
        self._crowd.tally.sent_bytes += len(data)
        self._transport.write(data)

    def _next_payload(self) -> bytes | None:
        """The next whole frame's payload; the tracker sends neither masked, nor split, nor large ones."""
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        size, start = buffer[1], 2
        if size == 126:
            size, start = int.from_bytes(buffer[2:4]), 4
        if buffer[0] != 0x82 or size > 1 << 16 or buffer[1] > 126:
            self._fail(f"frame: {buffer[:4]!r}")
            return None
        if len(buffer) < start + size:
            return None
        self._buffer = buffer[start + size :]
        return buffer[start : start + size]

    def _fail(self, reason: str) -> None:
        self._crowd.tally.errors.append(f"{self.node}: {reason}")
        if not self.joined.done():
            self.joined.set_result(None)
        if self._transport is not None:
            self._transport.abort()


class Greeter(asyncio.Protocol):
    """Answers `GET /v1/hello` as the agent whose address was reached."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not data.startswith(b"GET " + wire.HELLO_PATH.encode()):
            self._crowd.tally.errors.append(f"probe: {data[:80]!r}")
        self._crowd.tally.probes += 1
        host = self._transport.get_extra_info("sockname")[0]
        body = wire.encode(Hello(f"{int(ipaddress.IPv4Address(host)) - _FIRST:032x}", 1, 1))
        self._transport.write(encode_head(200, len(body)) + body)
        self._transport.close()


class Crowd:
    """All agents."""

    def __init__(self, host: str, port: int, count: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.tally = Tally()
        self.hello_port = 0
        self.ending = False
        self._filling = True
        self._tracker = host, port
        self._random = random.Random(1)
        self._agents = [Agent(self, number, f"rack-{number % ZONES}") for number in range(count)]

    def layers_of(self, number: int) -> list[str]:
        """Names of the layers of the image that this agent starts."""
        base = [_layer(f"base {layer}") for layer in range(BASE_LAYERS)]
        return [_layer(f"{number % IMAGES} {layer}") for layer in range(OWN_LAYERS)] + base

    def report_later(self, agent: Agent) -> None:
        """In the usual time, less up to a fifth."""
        usual = wire.PROGRESS_FILLING_S if self._filling else wire.PROGRESS_IDLE_S
        self._report_in(agent, usual * (1 - self._random.random() / 5))

    def _report_in(self, agent: Agent, seconds: float) -> None:
        if agent.timer is not None:
            agent.timer.cancel()
        agent.timer = self.loop.call_later(seconds, lambda: agent.report(filling=self._filling))

    async def serve_hello(self) -> None:
        """On every loopback address at one port."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        listener.bind(("0.0.0.0", 0))
        self.hello_port = listener.getsockname()[1]
        await self.loop.create_server(lambda: Greeter(self), sock=listener, backlog=1024)

    async def join(self, seconds: float) -> None:
        """All come, each at a random time within so many seconds."""

        async def come(number: int, agent: Agent, after: float) -> None:
            await asyncio.sleep(after)
            source = str(ipaddress.IPv4Address(_FIRST + number))
            try:
                await self.loop.create_connection(lambda: agent, *self._tracker, local_addr=(source, 0))
                async with asyncio.timeout(_TIMEOUT_S):
                    await agent.joined
            except (OSError, TimeoutError) as error:
                self.tally.errors.append(f"join: {error or 'no peers in time'}")

        async with asyncio.TaskGroup() as tasks:
            for number, agent in enumerate(self._agents):
                tasks.create_task(come(number, agent, self._random.random() * seconds))

    def rest(self) -> None:
        """From now on nobody fills; the reports of those who rest are spread over their time."""
        self._filling = False
        for agent in self._agents:
            self._report_in(agent, wire.PROGRESS_IDLE_S * self._random.random())


def _layer(what: str) -> str:
    return f"sha256-{sha256(what.encode()).hexdigest()}-v0"


async def serve(host: str, port: int, count: int) -> None:
    """Obey until stdin ends."""
    crowd = Crowd(host, port, count)
    await crowd.serve_hello()
    while words := (await asyncio.to_thread(sys.stdin.readline)).split():
        crowd.tally = Tally()
        started = crowd.loop.time()
        seconds = float(words[1])
        if words[0] == "join":
            await crowd.join(seconds)
        elif words[0] == "rest":
            crowd.rest()
        await asyncio.sleep(seconds - (crowd.loop.time() - started))
        print(json.dumps(asdict(crowd.tally) | {"seconds": crowd.loop.time() - started}), flush=True)
    crowd.ending = True


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    to = Address.parse(sys.argv[1])
    asyncio.run(serve(to.host, to.port, int(sys.argv[2])))

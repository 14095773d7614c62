"""The tracker over real WebSockets: answers, pushes, refusals, and hostile agents that harm themselves alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import WSMsgType, web

from imgdist.wire import tracker as wire
from imgdist.wire.address import Address
from imgdist.wire.tracker import Dead, Join, Leave, Peers, Progress, Refused, Revocation, Revoked, Seek, Share, Welcome
from supernode.tracker import connection, members, session
from supernode.tracker.members import Census
from supernode.tracker.session import Tracker

LAYER = f"sha256-{'7' * 64}-v0"
WAIT_S = 20.0


def node(number: int) -> str:
    return f"{number:032x}"


def join(number: int, *, address: str | None = None, **fields: Any) -> Join:
    where = f"10.0.0.{number}:7651" if address is None else address
    made = Join(1, 1, node(number), f"host-{number}", where, 7651, "", (Share(LAYER, 0, 9),))
    return msgspec.structs.replace(made, **fields)


class Meter:
    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.probes: list[bool] = []

    def tracked(self, kind: str) -> None:
        self.kinds.append(kind)

    def probed(self, answered: bool) -> None:
        self.probes.append(answered)


class Agent:
    """The far end of one connection."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def say(self, message: wire.FromAgent) -> None:
        await self.socket.send_bytes(wire.encode(message))

    async def hear(self) -> wire.FromTracker | None:
        """What comes next; None at the end of the connection."""
        message = await self.socket.receive(WAIT_S)
        if message.type is not WSMsgType.BINARY:
            return None
        return wire.decode_from_tracker(message.data)

    async def joins(self, number: int, **fields: Any) -> tuple[Welcome, set[str]]:
        """Its first welcome, and the peers that come with it."""
        await self.say(join(number, **fields))
        welcome, peers = await self.hear(), await self.hear()
        assert isinstance(welcome, Welcome)
        assert isinstance(peers, Peers)
        return welcome, {peer.node for peer in peers.peers}

    async def until(self, what: object) -> list[wire.FromTracker]:
        """What comes until this does."""
        heard: list[wire.FromTracker] = []
        while (message := await self.hear()) != what:
            assert message is not None, f"the connection ended before {what}"
            heard.append(message)
        return heard


class World:
    """A tracker on TCP, whose probes find what `deaf` does not name."""

    def __init__(self) -> None:
        self.meter = Meter()
        self.deaf: set[str] = set()
        self.revoked: dict[str, str] = {}
        self.tracker = Tracker(self.meter, random=Random(1), answers=self._answers, revoked=lambda: self.revoked)
        self.url = ""
        self.http: aiohttp.ClientSession

    async def _answers(self, address: Address, node: str) -> bool:
        assert str(address)
        return node not in self.deaf

    async def agent(self, **options: Any) -> Agent:
        return Agent(await self.http.ws_connect(self.url + wire.PATH, **options))

    async def until(self, census: Census) -> None:
        async with asyncio.timeout(WAIT_S):
            while self.tracker.census() != census:  # noqa: ASYNC110 - it has no event to wait for
                await asyncio.sleep(0.005)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    app = web.Application()
    app.add_routes([web.get(wire.PATH, world.tracker.connect)])
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    world.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    running = asyncio.create_task(world.tracker.run())
    async with aiohttp.ClientSession() as world.http:
        yield world
    world.tracker.close()
    await runner.cleanup()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_welcome_peers_and_a_second_welcome(world: World) -> None:
    first, second = await world.agent(), await world.agent()
    assert await first.joins(1) == (Welcome(1, "127.0.0.1", "10.0.0.1:7651", None), set())
    assert await first.hear() == Welcome(1, "127.0.0.1", "10.0.0.1:7651", True)
    assert await second.joins(2) == (Welcome(1, "127.0.0.1", "10.0.0.2:7651", None), {node(1)})
    # The first is told of the second without asking.
    told = await first.hear()
    assert isinstance(told, Peers)
    assert {peer.address for peer in told.peers} == {"10.0.0.2:7651"}
    assert world.meter.probes == [True, True]
    assert world.meter.kinds == ["join", "join"]


async def test_the_address_is_learnt_and_nat_is_told(world: World) -> None:
    world.deaf = {node(1)}
    agent = await world.agent()
    welcome, _ = await agent.joins(1, address="", port=4444)
    assert (welcome.seen_host, welcome.address, welcome.reachable) == ("127.0.0.1", "127.0.0.1:4444", None)
    assert await agent.hear() == Welcome(1, "127.0.0.1", "127.0.0.1:4444", False)
    other = await world.agent()
    assert await other.joins(2) == (Welcome(1, "127.0.0.1", "10.0.0.2:7651", None), set())
    assert isinstance(told := await agent.hear(), Peers)
    assert [peer.node for peer in told.peers] == [node(2)]
    silent = await world.agent()
    welcome, peers = await silent.joins(3, address="", port=0)
    assert (welcome.address, welcome.reachable, peers) == ("", False, {node(2)})


async def test_over_a_unix_socket_only_what_is_advertised_counts(world: World, tmp_path: Path) -> None:
    app = web.Application()
    app.add_routes([web.get(wire.PATH, world.tracker.connect)])
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "s")).start()
    remote = await world.agent()
    await remote.joins(1, address="127.0.0.1:7651")
    await remote.until(Welcome(1, "127.0.0.1", "127.0.0.1:7651", True))
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "s"))) as http:
        agent = Agent(await http.ws_connect("http://localhost" + wire.PATH))
        # It runs on the tracker's machine: it may be told of loopback addresses.
        assert await agent.joins(2, address="") == (Welcome(1, "", "", False), {node(1)})
        await agent.say(join(2, address="10.0.0.2:7651"))
        await agent.until(Welcome(1, "", "10.0.0.2:7651", True))
    await runner.cleanup()


async def test_seek_progress_dead_leave(world: World) -> None:
    agents = [await world.agent() for _ in range(3)]
    for number, agent in enumerate(agents, 1):
        await agent.joins(number)
        await agent.until(Welcome(1, "127.0.0.1", f"10.0.0.{number}:7651", True))
    await agents[2].say(Progress((Share(LAYER, 5, 9),)))
    await agents[2].say(Dead((node(2), node(99))))
    await agents[2].say(Leave())
    while await agents[2].hear() is not None:
        pass
    await world.until(Census(2, 2, 1))
    await agents[0].say(Seek((LAYER,)))
    while True:
        heard = await agents[0].hear()
        assert isinstance(heard, Peers)
        if [peer.node for peer in heard.peers] == [node(2)]:
            break
    assert world.meter.kinds[-4:] == ["progress", "dead", "leave", "seek"]


async def test_a_lost_connection_is_no_leave(world: World) -> None:
    first, second = await world.agent(), await world.agent()
    await first.joins(1)
    await first.until(Welcome(1, "127.0.0.1", "10.0.0.1:7651", True))
    await first.socket.close()
    assert (await second.joins(2))[1] == {node(1)}
    again = await world.agent()
    await again.joins(1)
    await world.until(Census(2, 2, 1))


async def test_the_same_node_twice_is_the_later_one(world: World) -> None:
    first, second = await world.agent(), await world.agent()
    await first.joins(1)
    replaced = world.tracker._sessions[node(1)]
    await second.joins(1)
    for late in (Leave(), Progress(()), Dead((node(1),))):  # read before the connection was ended
        with pytest.raises(ConnectionResetError):
            await world.tracker._heed(replaced, late)
    while not isinstance(heard := await first.hear(), Refused):
        assert heard is not None
    assert "node-id" in heard.reason
    assert await first.hear() is None
    await second.say(Seek(()))
    await second.until(Peers(()))
    await world.until(Census(1, 1, 1))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (msgspec.msgpack.encode(["join", 3, 4, {"new": True}]), "3 to 4, this supernode 1 to 2"),
        (wire.encode(join(1, min=0, max=0)), "0 to 0"),
        (wire.encode(join(1, address="node-1.example:7651")), "expected IP:port"),
        (wire.encode(Seek(())), "first tracker message"),
        (wire.encode(join(1, node="x")), "matching regex"),
        (b"\xc1garbage", "malformed"),
        (b"\x91" * 100_000, ""),
    ],
)
async def test_what_is_refused_says_why_and_ends_alone(world: World, message: bytes, reason: str) -> None:
    good, bad = await world.agent(), await world.agent()
    await good.joins(9)
    await bad.socket.send_bytes(message)
    refused = await bad.hear()
    assert isinstance(refused, Refused)
    assert reason in refused.reason
    assert await bad.hear() is None
    await good.say(Progress(()))
    await good.say(Seek(()))
    await good.until(Peers(()))
    await world.until(Census(1, 1, 1))
    assert world.meter.kinds.count("refused") == 1


async def test_garbage_after_joining_ends_the_connection(world: World) -> None:
    for send in (
        lambda socket: socket.send_bytes(b"\xff"),
        lambda socket: socket.send_str("join"),
        lambda socket: socket.send_bytes(wire.encode(join(2))),
        lambda socket: socket.send_bytes(bytes(wire.MESSAGE_MAX + 1)),
    ):
        agent = await world.agent()
        await agent.joins(1)
        await send(agent.socket)
        while await agent.hear() is not None:
            pass
        assert agent.socket.closed
    await world.until(Census(1, 1, 1))


async def test_who_does_not_join_is_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "JOIN_TIMEOUT_S", 0.05)
    agent = await world.agent()
    assert await agent.hear() is None


async def test_who_says_too_much_is_heard_slowly(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MESSAGES_BURST", 4.0)
    monkeypatch.setattr(connection, "MESSAGES_PER_S", 20.0)
    loud, calm = await world.agent(), await world.agent()
    loop = asyncio.get_running_loop()
    await loud.joins(1)
    started = loop.time()
    for _ in range(10):
        await loud.say(Progress(()))
    await loud.socket.ping(b"1")
    await loud.say(Seek(()))
    before = loop.time()
    await calm.joins(2, address="", port=0)  # so that the loud one is told nothing of it
    assert loop.time() - before < 0.35  # nobody else waits
    while not isinstance(await loud.hear(), Peers):
        pass
    assert loop.time() - started >= 0.35  # 13 messages, 4 of them at once


async def test_who_does_not_read_is_cut_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UNREAD_MAX", -1)
    agent = await world.agent()
    await agent.say(join(1))
    assert await agent.hear() is None
    await world.until(Census(1, 1, 1))


async def test_silence_ends_the_connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "SWEEP_S", 0.02)
    monkeypatch.setattr(members, "SILENT_S", 0.1)
    agent = await world.agent()
    await agent.joins(1)
    while await agent.hear() is not None:
        pass
    await world.until(Census(1, 1, 1))  # forgotten only after the grace


async def test_browsers_and_plain_requests_are_turned_away(world: World) -> None:
    for headers in ({"Origin": "http://evil.example"}, {}):
        with pytest.raises((aiohttp.WSServerHandshakeError, AssertionError)):
            async with world.http.get(world.url + wire.PATH, headers=headers) as response:
                assert response.status == 101


async def test_there_is_a_most(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SESSIONS_MAX", 1)
    agent = await world.agent()
    await agent.joins(1)
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await world.agent()


async def test_members_whose_connection_is_lost_count_until_they_are_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SESSIONS_MAX", 2)
    for number in (1, 2):
        agent = await world.agent()
        await agent.joins(number)
        await agent.socket.close()
    late = await world.agent()
    await late.socket.send_bytes(wire.encode(join(3)))
    refused = await late.hear()
    assert isinstance(refused, Refused) and "2 agents are members" in refused.reason
    await (await world.agent()).joins(2)  # who is known comes back


async def test_closing_ends_everything(world: World) -> None:
    agents = [await world.agent() for _ in range(3)]
    for number, agent in enumerate(agents, 1):
        await agent.joins(number)
    world.tracker.close()
    for agent in agents:
        while await agent.hear() is not None:
            pass


@pytest.mark.parametrize(
    ("host", "seen"),
    [("127.0.0.1", "127.0.0.1"), ("::ffff:10.1.2.3", "10.1.2.3"), ("2001:db8::1", "2001:db8::1")],
)
def test_an_ipv4_agent_at_an_ipv6_listener_is_ipv4(host: str, seen: str) -> None:
    class Request:
        """A connection that comes from `host`."""

        transport = SimpleNamespace(get_extra_info=lambda name: (host, 1))

    made = connection.Connection(Request(), 0.0)  # type: ignore[arg-type]
    assert made.seen_host == seen
    join = Join(1, 1, "a" * 32, "", "127.0.0.1:7651", 7651, "", ())
    assert (made.address_of(join) is not None) == (seen == "127.0.0.1"), "its loopback is not ours"


async def test_agents_are_told_of_revoked_packs(world: World) -> None:
    """Who is there at once, who comes later when it joins, who does not speak of it never."""
    present, old = await world.agent(), await world.agent()
    await present.joins(1, max=2)
    await old.joins(2)
    world.revoked["a" * 64] = "it lies" * 1000
    await world.tracker.revoke("a" * 64, world.revoked["a" * 64])
    told = Revoked((Revocation("a" * 64, ("it lies" * 1000)[: wire.REASON_MAX]),))
    await present.until(told)
    late = await world.agent()
    await late.say(join(3, max=2))
    heard = await late.until(told)
    assert isinstance(heard[0], Welcome)
    await old.say(join(2, swarms=()))
    assert all(isinstance(message, Welcome | Peers) for message in await until_peers(old))
    await late.say(join(3, max=2, swarms=()))
    assert all(not isinstance(message, Revoked) for message in await until_peers(late)), "once a connection"


async def until_peers(agent: Agent) -> list[wire.FromTracker]:
    """What comes up to the answer to a Join."""
    heard: list[wire.FromTracker] = []
    while not (heard and isinstance(heard[-1], Peers)):
        message = await agent.hear()
        assert message is not None
        heard.append(message)
    return heard

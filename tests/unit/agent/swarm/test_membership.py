"""A node's membership, at real trackers on loopback."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from agent.swarm import membership
from agent.swarm.identity import Identity
from agent.swarm.membership import Membership
from agent.swarm.reports import Reports
from imgdist.demo.ports import free_port
from imgdist.wire import tracker as wire
from imgdist.wire.tracker import Dead, Join, Peer, Peers, Progress, Refused, Seek, Share, Welcome
from supernode.tracker.session import Tracker

LAYER = f"sha256-{'7' * 64}-v0"
WAIT_S = 20.0


class Meter:
    def __init__(self) -> None:
        self.kinds: list[str] = []

    def tracked(self, kind: str) -> None:
        self.kinds.append(kind)

    def probed(self, answered: bool) -> None: ...


class Site:
    """A supernode's tracker, started and stopped as often as a test likes."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.meter = Meter()
        self.tracker: Tracker | None = None
        self._runner: web.AppRunner | None = None
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        tracker = self.tracker = Tracker(self.meter, probe=False, random=random.Random(1))
        app = web.Application()
        app.router.add_get(wire.PATH, tracker.connect)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self._running = asyncio.create_task(tracker.run())

    async def stop(self) -> None:
        if self.tracker is None or self._runner is None or self._running is None:
            return
        self._running.cancel()
        self.tracker.close()
        await self._runner.cleanup()
        self.tracker = None

    @property
    def members(self) -> int:
        return self.tracker.census().members if self.tracker is not None else 0


class Swarm:
    """What the mesh would be."""

    def __init__(self) -> None:
        self.lacks = True
        self.own: list[Share] = [Share(LAYER, 1, 9)]
        self.peers: set[str] = set()
        self.addresses: list[str] = []
        self.revocations: list[tuple[str, str]] = []

    def shares(self) -> list[Share]:
        return self.own

    def revoked(self, by: str, packs: Iterable[wire.Revocation]) -> None:
        self.revocations += [(by, one.pack) for one in packs]

    def learn(self, peers: Iterable[Peer]) -> None:
        self.peers |= {peer.node for peer in peers}

    def advertise(self, address: str) -> None:
        self.addresses.append(address)


class Agent:
    def __init__(self, number: int, *urls: str) -> None:
        self.me = Identity(f"{number:032x}", f"n{number}", "", f"127.0.0.1:{number}", number)
        self.swarm = Swarm()
        self.membership = Membership(self.me, urls, random.Random(number).random)
        self.task = asyncio.create_task(self.membership.run(self.swarm))

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class World:
    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.agents: list[Agent] = []

    async def site(self, *, started: bool = True) -> Site:
        self.sites.append(made := Site())
        if started:
            await made.start()
        return made

    def agent(self, number: int, *sites: Site) -> Agent:
        self.agents.append(made := Agent(number, *(site.url for site in sites)))
        return made


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(membership, "RETRY_S", (0.05, 0.2))
    made = World()
    yield made
    for agent in made.agents:
        await agent.stop()
    for site in made.sites:
        await site.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - whatever a test looks at, not one event
            await asyncio.sleep(0.005)


async def test_members_learn_of_each_other_and_leave(world: World) -> None:
    site = await world.site()
    one = world.agent(1, site)
    await until(lambda: one.swarm.addresses == ["127.0.0.1:1"])
    two = world.agent(2, site)
    await until(lambda: two.swarm.peers == {one.me.node} and one.swarm.peers == {two.me.node})
    assert two.membership.joined == site.url
    await one.stop()
    await until(lambda: site.members == 1)
    assert site.meter.kinds.count("leave") == 1


async def test_members_are_back_soon_after_a_restart(world: World) -> None:
    site = await world.site()
    agents = [world.agent(number, site) for number in range(1, 5)]
    await until(lambda: site.members == 4)
    await site.stop()
    await until(lambda: all(agent.membership.joined is None for agent in agents))
    await site.start()
    await until(lambda: site.members == 4)
    await until(lambda: all(agent.membership.joined == site.url for agent in agents))


async def test_the_next_supernode_takes_over_and_the_first_is_preferred(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "RETURN_S", 0.1)
    first, second = await world.site(started=False), await world.site()
    agent = world.agent(1, first, second)
    await until(lambda: agent.membership.joined == second.url)
    await first.start()
    await until(lambda: agent.membership.joined == first.url)
    await until(lambda: (first.members, second.members) == (1, 0))
    await first.stop()
    await until(lambda: agent.membership.joined == second.url)


async def test_new_swarms_are_joined_on_the_same_connection(world: World) -> None:
    site = await world.site()
    agent = world.agent(1, site)
    await until(lambda: agent.membership.joined)
    other = f"sha256-{'8' * 64}-v0"
    agent.swarm.own = [Share(LAYER, 1, 9), Share(other, 0, 3)]
    for _ in range(5):
        agent.membership.changed()
    await until(lambda: site.tracker is not None and site.tracker.census().swarms == 2)
    assert site.meter.kinds == ["join", "join"], "one for all layers of an image"


async def test_what_it_asks_and_reports_is_sent(world: World) -> None:
    site = await world.site()
    agent = world.agent(1, site)
    await until(lambda: agent.membership.joined)
    agent.membership.seek()
    agent.membership.dead(["f" * 32])
    await until(lambda: site.meter.kinds[1:] == ["seek", "dead"])


@asynccontextmanager
async def by_hand(*answers: wire.FromTracker | bytes) -> AsyncIterator[tuple[str, list[object]]]:
    """A tracker that answers each connection's Join with these; url and what it was told."""
    heard: list[object] = []

    async def connect(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            heard.append(wire.decode_from_agent(message.data))
            if isinstance(heard[-1], Join):
                for answer in answers:
                    await socket.send_bytes(answer if isinstance(answer, bytes) else wire.encode(answer))
        return socket

    port = free_port()
    app = web.Application()
    app.router.add_get(wire.PATH, connect)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}", heard
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("answer", [Refused("too old"), b"\xff", wire.encode(Welcome(1, "", "", None))[:-1]])
async def test_one_that_refuses_or_babbles_is_left_for_the_next(world: World, answer: wire.FromTracker | bytes) -> None:
    good = await world.site()
    async with by_hand(answer) as (url, heard):
        agent = Agent(1, url, good.url)
        world.agents.append(agent)
        await until(lambda: agent.membership.joined == good.url)
        await until(lambda: sum(isinstance(message, Join) for message in heard) == 1)
        await agent.stop()


async def test_one_that_nobody_reaches_does_not_say_where_it_is(world: World) -> None:
    welcome = Welcome(1, "10.0.0.1", "10.0.0.1:7", False)
    async with by_hand(welcome, Peers(())) as (url, _):
        agent = Agent(1, url)
        world.agents.append(agent)
        await until(lambda: agent.swarm.addresses == [""])
        assert agent.membership.reachable is False
        await agent.stop()


async def test_a_supernode_without_a_tracker_is_no_trouble(world: World) -> None:
    app = web.Application()
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    good = await world.site()
    agent = Agent(1, f"http://127.0.0.1:{port}", good.url)
    world.agents.append(agent)
    await until(lambda: agent.membership.joined == good.url)
    await agent.stop()
    await runner.cleanup()


async def test_progress_is_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0])
    reports = Reports(lambda: 0.0)
    one, two = Share(LAYER, 1, 9), Share(f"sha256-{'8' * 64}-v0", 0, 9)
    reports.joined([one, two])
    assert reports.take([one, two]) == []
    now[0] += 5
    assert reports.take([one, two]) == [], "nothing new"
    more = Share(LAYER, 2, 9)
    assert reports.take([more, two]) == [Progress((more,))]
    assert reports.take([more, two]) == []
    now[0] += 60
    reports.seek()
    assert reports.take([more, two]) == [Seek(()), Progress(())], "to show that it lives"


async def test_of_too_many_deaths_the_latest_are_reported() -> None:
    reports = Reports(lambda: 0.0)
    nodes = [f"{number:032x}" for number in range(100)]
    reports.dead(nodes)
    reports.joined([])
    assert reports.take([]) == [Dead(tuple(nodes[-wire.DEAD_MAX :]))]


async def test_the_address_may_be_a_unix_socket(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("t") / "s"
    tracker = Tracker(Meter(), probe=False)
    app = web.Application()
    app.router.add_get(wire.PATH, tracker.connect)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    agent = Agent(1, f"unix://{path}")
    world.agents.append(agent)
    try:
        await until(lambda: agent.membership.joined == f"unix://{path}")
    finally:
        await agent.stop()
        await runner.cleanup()


async def test_what_is_revoked_is_heard_with_who_says_so(world: World) -> None:
    site = await world.site()
    agent = world.agent(1, site)
    await until(lambda: agent.membership.joined)
    assert site.tracker is not None
    await site.tracker.revoke("a" * 64, "it lies")
    await until(lambda: agent.swarm.revocations == [(site.url, "a" * 64)])

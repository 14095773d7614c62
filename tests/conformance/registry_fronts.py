"""A registry, a supernode's registry before it and an agent's mirror before that, in one process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import prometheus_client
from aiohttp import web
from fake_registry import FakeRegistry, answer, serving

from agent.api import Calls
from agent.mirror import service
from agent.mirror.seen import SeenTags
from agent.supernode_client import SupernodeClient
from agent.supernodes import Supernodes
from imgdist.distribution.server import PullApi
from imgdist.oci import transport
from imgdist.oci.access import Verdict
from imgdist.oci.settings import RegistrySettings
from supernode.blobs.source import Blobs
from supernode.chains import Chains
from supernode.database import Database
from supernode.fetch import Origin
from supernode.freshness import Freshness
from supernode.metrics import Metrics
from supernode.registries import Registries
from supernode.registry.learning import Learning
from supernode.registry.pullthrough import PullThrough
from supernode.registry.reachable import Answering
from supernode.store import LocalStore
from supernode.upstream import remembered


class Policy:
    """An authoriser that a test sets: `verdicts` by (name, authorization), else yes."""

    def __init__(self) -> None:
        self.verdicts: dict[tuple[str, str | None], Verdict] = {}
        self.asked: list[tuple[str, str, str | None]] = []

    async def allowed(self, name: str, reference: str, authorization: str | None) -> Verdict:
        self.asked.append((name, reference, authorization))
        return self.verdicts.get((name, authorization), Verdict())

    async def shown(self, name: str, digest: str) -> None:
        """What is elsewhere stays so."""


@dataclass
class Fronts:
    """`supernode` and `mirror` are URLs; `now` is the clock by which tags age; `learnt` is where layers come from."""

    registry: FakeRegistry
    supernode: str
    mirror: str
    metrics: Metrics
    chains: Chains
    access: Policy
    seen: SeenTags
    now: list[float]
    learnt: list[Origin] = field(default_factory=list)

    def url(self, front: str) -> str:
        """The URL of one of the two by its name."""
        return {"supernode": self.supernode, "mirror": self.mirror}[front]


@asynccontextmanager
async def fronts(
    directory: Path, freshness: Freshness, clock: Callable[[], float] | None = None
) -> AsyncIterator[Fronts]:
    """All of it, on ports of their own; `clock` is for what vouches that the registry answers."""
    now, learnt = [1000.0], list[Origin]()
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(serving(FakeRegistry()))
        http = await stack.enter_async_context(transport.session())
        database = Database(directory / "db")
        stack.callback(database.close)
        metrics, access = Metrics(), Policy()
        answering = Answering(metrics, clock) if clock else Answering(metrics)
        registries = Registries(http, answering, RegistrySettings(plain_http=[registry.host]))
        upstream = remembered(registries, answering, database, metrics.tag_asked, clock=lambda: now[0])
        store = LocalStore(directory)
        store.recover()
        blobs = Blobs(store, registries)
        learning = Learning(upstream.resolver, learnt.extend)
        through = PullThrough(upstream, freshness, access, blobs, learning)
        app = web.Application()
        app.add_routes(PullApi(through, metrics.pulled).routes())
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        supernode = f"http://127.0.0.1:{runner.addresses[0][1]}"

        supernodes = Supernodes([SupernodeClient(supernode)])
        stack.push_async_callback(supernodes.close)
        listener, seen = socket.create_server(("127.0.0.1", 0)), SeenTags(lambda: now[0])
        mirror = await service.serve(
            supernodes,
            [],
            seen,
            listener,
            Calls().counted,
            shutdown_s=0.1,
            registry=prometheus_client.CollectorRegistry(),
        )
        stack.push_async_callback(mirror.cleanup)
        for part in (learning, blobs):
            stack.callback(asyncio.create_task(part.run()).cancel)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield Fronts(registry, supernode, url, metrics, upstream.chains, access, seen, now, learnt)


def down(registry: FakeRegistry) -> None:
    """From now on every answer is a failure of the registry's own."""
    registry.always = answer(503)

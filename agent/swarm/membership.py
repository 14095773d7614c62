"""This node's membership at a tracker: one WebSocket to the first configured supernode that answers.

Without a tracker the swarm goes on: neighbours stay connected and tell of others. Reconnecting is jittered, so that a
supernode that comes back is not met by all agents at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from agent.proof import proving
from agent.supernode_http import watched_socket
from agent.swarm.identity import Identity
from agent.swarm.reports import Reports
from imgdist.errors import ProtocolError
from imgdist.wire.address import Address
from imgdist.wire.clusterkey import ClusterKey
from imgdist.wire.tracker import (
    MESSAGE_MAX,
    PATH,
    VERSION_MAX,
    VERSION_MIN,
    Join,
    Leave,
    Peer,
    Peers,
    Refused,
    Revocation,
    Revoked,
    Share,
    Welcome,
    decode_from_tracker,
    encode,
)

log = logging.getLogger("imgdist.agent")

CONNECT_S = 3.0
RETRY_S = (0.5, 8.0)
"""Between tries of all supernodes: first and longest, doubling, each less up to half at random. So members are back
within 8 s of a restart, ten thousand of them spread over four."""
RETURN_S = 60.0
"""How often a node that is a member elsewhere tries the supernodes named before: the swarm is to meet at one place."""
REFUSED_S = 60.0
"""How long a tracker that refused is not asked again."""
GATHER_S = 0.05
"""Between two reports at least: the layers of an image come one after the other."""
_LEAVE_S = 0.5


class Swarm(Protocol):
    """What a membership is about (the mesh)."""

    @property
    def lacks(self) -> bool:
        """Whether chunks are missing here."""

    def shares(self) -> list[Share]:
        """How far this node is in each swarm."""

    def learn(self, peers: Iterable[Peer]) -> None:
        """The tracker names members."""

    def revoked(self, by: str, packs: Iterable[Revocation]) -> None:
        """The supernode at `by` has revoked packs."""

    def advertise(self, address: str) -> None:
        """Where others reach this node ("": nowhere)."""


@dataclass(slots=True)
class _Tracker:
    """One supernode's; not asked before `not_before` on the loop's clock."""

    url: str
    http: aiohttp.ClientSession
    target: str
    not_before: float = 0.0

    async def connect(self) -> aiohttp.ClientWebSocketResponse | None:
        """A connection, if it answers."""
        if asyncio.get_running_loop().time() < self.not_before:
            return None
        try:
            async with asyncio.timeout(CONNECT_S):
                return await self.http.ws_connect(self.target, max_msg_size=MESSAGE_MAX)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.debug("tracker of %s: %s", self.url, error or "no answer")
            return None


class _Ended(Exception):
    """A connection is over."""


class Membership:
    """`urls` are the supernodes in order of preference. Its methods are called on the event loop."""

    def __init__(
        self,
        me: Identity,
        urls: Sequence[str],
        chance: Callable[[], float] = random.random,
        key: ClusterKey | None = None,
    ) -> None:
        self._me = me
        self._key = key
        self._urls = urls
        self._chance = chance
        self._reports = Reports(chance)
        self.joined: str | None = None
        """The supernode where this node is a member now."""
        self.reachable: bool | None = None
        """Whether others reach this node, as far as it says."""

    def changed(self) -> None:
        """This node is in other swarms than before."""
        self._reports.changed()

    def seek(self) -> None:
        """More members are wanted of the swarms in which chunks are missing."""
        self._reports.seek()

    def dead(self, nodes: Sequence[str]) -> None:
        """These members do not answer."""
        self._reports.dead(nodes)

    async def run(self, swarm: Swarm) -> None:
        """Be a member somewhere, until cancelled; then leave."""
        async with AsyncExitStack() as stack:
            trackers = [await _tracker(url, self._key, stack) for url in self._urls]
            failures, found = 0, await self._first(trackers)
            while True:
                if found is not None:
                    joined, found = await self._attend(trackers, *found, swarm)
                    failures = 0 if joined else failures
                if found is None:
                    first, most = RETRY_S
                    await asyncio.sleep(min(first * 2**failures, most) * (1 - self._chance() / 2))
                    failures = min(failures + 1, 16)
                    found = await self._first(trackers)

    async def _first(self, trackers: Sequence[_Tracker]) -> tuple[int, aiohttp.ClientWebSocketResponse] | None:
        """The first that answers, by its place."""
        for place, tracker in enumerate(trackers):
            if (socket := await tracker.connect()) is not None:
                return place, socket
        return None

    async def _attend(
        self, trackers: Sequence[_Tracker], place: int, socket: aiohttp.ClientWebSocketResponse, swarm: Swarm
    ) -> tuple[bool, tuple[int, aiohttp.ClientWebSocketResponse] | None]:
        """Be a member as long as the connection lasts, or until a supernode named before is back: whether we were one,
        and the connection to go on with."""
        better: asyncio.Future[tuple[int, aiohttp.ClientWebSocketResponse]] = asyncio.Future()
        joined = False
        try:
            async with asyncio.TaskGroup() as tasks:
                await socket.send_bytes(encode(self._join(swarm)))
                tasks.create_task(self._hear(trackers[place], socket, swarm))
                tasks.create_task(self._tell(socket, swarm))
                if place:
                    tasks.create_task(self._look_back(trackers[:place], better))
        except* (_Ended, aiohttp.ClientError, ConnectionError) as group:
            joined = self.joined is not None
            log.info("tracker of %s: the connection has ended%s", trackers[place].url, _why(group))
        finally:
            self.joined = self.reachable = None
            with suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                async with asyncio.timeout(_LEAVE_S):
                    await socket.send_bytes(encode(Leave()))
                    await socket.close()
        return joined, better.result() if better.done() else None

    async def _hear(self, tracker: _Tracker, socket: aiohttp.ClientWebSocketResponse, swarm: Swarm) -> None:
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.BINARY:
                raise _Ended(f"expected binary messages, got {message.type.name}")
            try:
                told = decode_from_tracker(message.data)
            except ProtocolError as error:
                tracker.not_before = asyncio.get_running_loop().time() + REFUSED_S
                raise _Ended(str(error)) from None
            if isinstance(told, Welcome):
                self.joined, self.reachable = tracker.url, told.reachable
                swarm.advertise("" if told.reachable is False else told.address)
            elif isinstance(told, Peers):
                swarm.learn(told.peers)
            elif isinstance(told, Revoked):
                swarm.revoked(tracker.url, told.packs)
            elif isinstance(told, Refused):
                tracker.not_before = asyncio.get_running_loop().time() + REFUSED_S
                log.error("the tracker of %s refuses this node: %s", tracker.url, told.reason)
                raise _Ended("refused")
        raise _Ended

    async def _tell(self, socket: aiohttp.ClientWebSocketResponse, swarm: Swarm) -> None:
        while True:
            await asyncio.sleep(GATHER_S)
            await self._reports.due(swarm.lacks)
            if self._reports.is_changed:
                await socket.send_bytes(encode(self._join(swarm)))
            for message in self._reports.take(swarm.shares()):
                await socket.send_bytes(encode(message))

    async def _look_back(
        self, earlier: Sequence[_Tracker], better: asyncio.Future[tuple[int, aiohttp.ClientWebSocketResponse]]
    ) -> None:
        while True:
            await asyncio.sleep(RETURN_S * (0.75 + self._chance() / 2))
            found = await self._first(earlier)
            if found is not None:
                better.set_result(found)
                raise _Ended("a supernode named before it is back")

    def _join(self, swarm: Swarm) -> Join:
        """Made and noted in one step: what changes while it is being sent is told after it."""
        me, shares = self._me, tuple(swarm.shares())
        self._reports.joined(shares)
        return Join(VERSION_MIN, VERSION_MAX, me.node, me.name, me.address, me.port, me.zone, shares)


async def _tracker(url: str, key: ClusterKey | None, stack: AsyncExitStack) -> _Tracker:
    address = Address.parse(url)
    connector = (
        aiohttp.UnixConnector(address.path) if address.path else aiohttp.TCPConnector(socket_factory=watched_socket)
    )
    http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, middlewares=proving(key)))
    return _Tracker(address.url, http, ("http://localhost" if address.path else address.url) + PATH)


def _why(group: BaseExceptionGroup[BaseException]) -> str:
    reasons = [str(error) for error in group.exceptions if str(error)]
    return f": {reasons[0]}" if reasons else ""

"""Agents' WebSockets: messages in, `Members` decides, messages out; probes and pushes when they are due."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from random import Random
from typing import Protocol

from aiohttp import WSCloseCode, web

from imgdist.errors import DeniedError, ImgdistError, ProtocolError, TemporaryError, UsageError
from imgdist.wire.address import Address
from imgdist.wire.tracker import (
    JOIN_TIMEOUT_S,
    REASON_MAX,
    REVOKED_MAX,
    VERSION_MAX,
    VERSION_MIN,
    Dead,
    FromAgent,
    Join,
    Leave,
    Peer,
    Peers,
    Progress,
    Refused,
    Revocation,
    Revoked,
    Seek,
    Welcome,
    agreed_version,
    decode_from_agent,
    decode_offer,
)
from supernode.tracker.connection import Connection
from supernode.tracker.members import Census, Members, Probe, Push
from supernode.tracker.probe import answers

log = logging.getLogger("imgdist.tracker")

SESSIONS_MAX = 32_768
"""Connections: several times the 10,000 agents that one core serves."""
PROBES_MAX = 32
"""Probes at once: 16 a second even if every address swallows packets, thousands where they answer."""
_KNOWS_REVOKED = 2
"""The first version of the protocol that has Revoked."""
REPLACED = (
    "another agent joined with this node id, from {host}; if it is not the same one, its root was copied: "
    "stop one of them, remove its ROOT/node-id and start it again"
)


class Meter(Protocol):
    """Counts what the tracker does."""

    def tracked(self, kind: str) -> None:
        """A message came ("join", "progress", ...) or an agent was refused ("refused")."""

    def probed(self, answered: bool) -> None:
        """A probe ended."""


class Tracker:
    """The tracker of one supernode. Everything runs on one event loop; `Members` is touched without awaiting."""

    def __init__(
        self,
        meter: Meter,
        *,
        probe: bool = True,
        random: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        answers: Callable[[Address, str], Awaitable[bool]] = answers,
        revoked: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """`revoked()`: reasons by pack id, the latest last."""
        self._meter = meter
        self._clock = clock
        self._answers = answers
        self._revoked = revoked
        self._members = Members(random or Random(), probe=probe)
        self._sessions: dict[str, Connection] = {}
        self._open: set[Connection] = set()
        self._changed = asyncio.Event()
        self._asleep_until: float | None = None
        # Bounded by the members: each has at most one probe under way.
        self._probes: asyncio.Queue[Probe] = asyncio.Queue()

    def census(self) -> Census:
        """Members and swarms at the moment."""
        return self._members.census()

    def wanted(self) -> set[str]:
        """Names of the swarms of which some member lacks chunks."""
        return self._members.wanted()

    async def revoke(self, pack_id: str, reason: str) -> None:
        """Tell every agent of a pack that was revoked."""
        for session in list(self._sessions.values()):
            if session.version >= _KNOWS_REVOKED:
                await session.push(_revoked({pack_id: reason}))

    async def run(self) -> None:
        """Probe and push when due, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(PROBES_MAX):
                tasks.create_task(self._probe())
            while True:
                for deed in self._members.due(self._clock()):
                    if isinstance(deed, Probe):
                        self._probes.put_nowait(deed)
                    elif (session := self._sessions.get(deed.node)) is None:
                        continue
                    elif isinstance(deed, Push):
                        await session.push(Peers(deed.peers))
                    else:
                        session.abort("said nothing for too long")
                await self._until_due()

    async def _until_due(self) -> None:
        self._asleep_until = at = self._members.next_at()
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(None if at is None else max(0.0, at - self._clock())):
                await self._changed.wait()

    def _wake(self) -> None:
        """After what may have made something due earlier."""
        at = self._members.next_at()
        if at is not None and (self._asleep_until is None or at < self._asleep_until):
            self._changed.set()

    async def _probe(self) -> None:
        while True:
            probe = await self._probes.get()
            answered = await self._answers(Address.parse(probe.address), probe.node)
            self._meter.probed(answered)
            changed = self._members.probed(probe, answered, self._clock())
            self._wake()
            session = self._sessions.get(probe.node)
            if changed and session is not None:
                await session.push(self._welcome(session))

    async def connect(self, request: web.Request) -> web.WebSocketResponse:
        """`GET /v1/tracker`: an agent's connection, as long as it lasts."""
        if len(self._open) >= SESSIONS_MAX:
            raise TemporaryError(f"tracker: {SESSIONS_MAX} agents are connected, the most; start another supernode")
        if "Origin" in request.headers:
            raise DeniedError("tracker: not for browsers")
        session = Connection(request, self._clock())
        await session.socket.prepare(request)
        self._open.add(session)
        try:
            await self._converse(session)
        except ImgdistError as error:
            self._meter.tracked("refused")
            log.info("agent at %s refused: %s", session.seen_host or "a unix socket", error)
            await session.push(Refused(str(error)[:1024]))
        except (ConnectionError, TimeoutError) as error:
            log.debug("agent at %s: %s", session.seen_host, error or "did not join in time")
        finally:
            self._open.discard(session)
            self._forget(session)
        await session.socket.close(code=WSCloseCode.POLICY_VIOLATION)
        return session.socket

    def close(self) -> None:
        """End every connection; agents come again, to the next process or another supernode."""
        for session in list(self._open):
            session.end()

    async def _converse(self, session: Connection) -> None:
        """Until the connection ends or the agent leaves. Raises ImgdistError for what an agent may not say."""
        async with asyncio.timeout(JOIN_TIMEOUT_S):
            first = await session.receive(self._clock)
        if first is None:
            return
        lowest, highest = decode_offer(first)
        version = agreed_version(lowest, highest)
        if version is None:
            raise UsageError(
                f"tracker protocol: the agent speaks {lowest} to {highest}, this supernode {VERSION_MIN} to "
                f"{VERSION_MAX}; upgrade the older one"
            )
        session.version = version
        data: bytes | None = first
        while data is not None:
            message = decode_from_agent(data)
            self._meter.tracked(type(message).__name__.lower())
            peers = await self._heed(session, message)
            if isinstance(message, Leave):
                return
            if isinstance(message, Join):
                await session.send(self._welcome(session))
                if data is first and session.version >= _KNOWS_REVOKED and (revoked := self._revoked()):
                    await session.send(_revoked(revoked))
            if peers is not None:
                await session.send(Peers(peers))
            self._wake()
            data = await session.receive(self._clock)

    async def _heed(self, session: Connection, message: FromAgent) -> tuple[Peer, ...] | None:
        """Do what a message says. The peers to answer with, or None for no answer."""
        now = self._clock()
        if isinstance(message, Join):
            return await self._join(session, message, now)
        if self._sessions.get(session.node) is not session:
            raise ConnectionResetError("replaced by another connection")
        if isinstance(message, Seek):
            return self._members.seek(session.node, message.swarms, now)
        if isinstance(message, Leave):
            self._members.left(session.node)
        elif isinstance(message, Progress):
            self._members.progress(session.node, message.shares, now)
        elif isinstance(message, Dead):
            self._members.dead(session.node, message.nodes, now)
        return None

    async def _join(self, session: Connection, join: Join, now: float) -> tuple[Peer, ...]:
        if session.node not in ("", join.node):
            raise ProtocolError(f"tracker: node {session.node} cannot become {join.node}; it needs another connection")
        if self._members.get(join.node) is None and len(self._members) >= SESSIONS_MAX:  # those just lost count, too
            raise TemporaryError(f"tracker: {SESSIONS_MAX} agents are members, the most; start another supernode")
        address = session.address_of(join)
        other = self._sessions.get(join.node)
        session.node = join.node
        self._sessions[join.node] = session
        peers = self._members.join(
            join,
            str(address) if address else "",
            is_loopback=address is not None and address.is_local,
            from_loopback=session.from_loopback,
            now=now,
        )
        if other is not None and other is not session:
            log.info("node %s at %s: joined again from %s", join.node, other.seen_host, session.seen_host)
            await other.push(Refused(REPLACED.format(host=session.seen_host or "this machine")))
            other.end()
        return peers

    def _welcome(self, session: Connection) -> Welcome:
        member = self._members.get(session.node)
        assert member is not None, "a joined session has a member"
        return Welcome(session.version, session.seen_host, member.address, member.reachable)

    def _forget(self, session: Connection) -> None:
        if session.node and self._sessions.get(session.node) is session:
            del self._sessions[session.node]
            self._members.lost(session.node, self._clock())
            self._wake()


def _revoked(reasons: Mapping[str, str]) -> Revoked:
    latest = list(reasons.items())[-REVOKED_MAX:]
    return Revoked(tuple(Revocation(pack, reason[:REASON_MAX]) for pack, reason in latest))

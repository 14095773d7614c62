"""The mesh: connections with other agents, over which each learns at once what the others have.

Everything here belongs to the event loop; `here` and `accept` alone are called by threads. What is decided without I/O
is elsewhere: who has what (swarms.py), whom to connect to (members.py), whom to leave (pruning.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import msgspec

from agent.swarm.company import Company, reachable
from agent.swarm.connection import Connection
from agent.swarm.doors import Doors
from agent.swarm.identity import Identity
from agent.swarm.inbox import TICK_S, Inbox
from agent.swarm.members import Members
from agent.swarm.news import News
from agent.swarm.pruning import leaving
from agent.swarm.quarantine import LIES_MAX
from agent.swarm.talk import Exchange, Talk
from agent.transfer.sources import ChunkSource
from imgdist.wire import mesh as wire
from imgdist.wire.clusterkey import ClusterKey
from imgdist.wire.mesh import VERSION, Hello, Message, Peers
from imgdist.wire.tracker import Peer, Share

_log = logging.getLogger("imgdist.agent")

PEX_S = 30.0
KEEP_ALIVE_S = 9.0
SILENT_S = 30.0
LOOK_S = 1.0
PRUNE_S = 30.0
"""How often a useless neighbour is looked for; one that is newer may become useful yet."""
JUDGE_S = 5.0
"""How often it is looked for those who lie."""
SEEK_S = (15.0, 240.0)
"""Between questions for more members while there are too few: first, at most; doubling. New ones are told anyway."""
REDIAL_S = (0.1, 1.0)
"""When a connection that broke is tried again, by the smaller and by the greater node id: not by both at once."""
IDLE_SHARE = 3
"""A node that lacks nothing keeps a third of its neighbours: those who lack something come by themselves."""
DIALS_MAX = 8
"""Connections being opened at once; at most half of those that are missing: where many start together, as many come."""


class Tracker(Protocol):
    """Who else is told (agent.swarm.membership)."""

    def changed(self) -> None:
        """This node is in other swarms than before."""

    def seek(self) -> None:
        """More members are wanted."""

    def dead(self, nodes: Sequence[str]) -> None:
        """These do not answer."""


class Mesh:
    """`make_source(address)` makes what transfers ask, None if they must not. `limit` is the number of neighbours that
    is striven for; twice as many may come."""

    def __init__(
        self,
        me: Identity,
        exchange: Exchange,
        make_source: Callable[[str], ChunkSource | None],
        tracker: Tracker,
        *,
        limit: int,
        key: ClusterKey | None = None,
        tick_s: float = TICK_S,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._me = me
        self._exchange = exchange
        self._tracker = tracker
        self._limit = limit
        self._key = key
        self._clock = clock
        self._chance = chance
        self._hello = Hello(VERSION, VERSION, me.node, me.address, me.zone, me.name)
        self._members = Members(me.node, chance)
        self._talk = Talk(exchange, self._changed)
        self._company = Company(me, exchange, make_source, self._talk)
        self._inbox = Inbox(self._talk.hand_over, tick_s)
        self._doors = Doors(self._connection, self._unanswered, clock)
        self._news = News(self._talk.arrived)
        self._prune_at, self._judge_at = clock() + PRUNE_S, clock() + JUDGE_S
        self._seek_at, self._seek_s = 0.0, SEEK_S[0]
        self._wake = asyncio.Event()

    # What threads call.

    def here(self, node: int, chunk: int) -> None:
        """A chunk of a layer is present."""
        self._news.here(node, chunk)

    def accept(self, connection: socket.socket, pending: bytes) -> None:
        """Another agent upgraded a connection of the chunk server's; `pending` was read behind its request."""
        self._doors.accept(connection, pending)

    # What the node calls.

    async def run(self) -> None:
        """Until cancelled; then the neighbours are left in order."""
        try:
            async with self._doors:
                while True:
                    self._look(self._clock())
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_S):
                            await self._wake.wait()
                    self._wake.clear()
        finally:
            self._news.close()
            for partner in self._company:
                self._company.leave(partner)
            self._inbox.close()

    def opening(self, node: int) -> None:
        """What of this layer is present is being looked at: chunks that arrive meanwhile count, too."""
        self._talk.opening(node)

    def open(self, node: int, layer: str, pack: str, count: int, bits: int) -> None:
        """This node is in a swarm from now on, with these chunks of the layer. Again: nothing changes."""
        self._talk.open(node, layer, pack, count, bits)

    def sealed(self, before: int, node: int, pack: str, count: int, bits: int) -> None:
        """The layer that was open as `before` is converted, has its pack id and is `node` from now on."""
        self._talk.sealed(before, node, pack, count, bits)

    def close(self, node: int) -> None:
        """This node has left a swarm."""
        self._talk.close(node)

    def learn(self, peers: Iterable[Peer]) -> None:
        """A tracker's members of the swarms in which this node lacks chunks, if it lacks any."""
        self._members.learn(reachable(peers), self._clock(), sharing=self._talk.lacks)
        self._wake.set()

    def advertise(self, address: str) -> None:
        """Where others reach this node is known now ("": nowhere)."""
        if address != self._hello.address:
            self._hello = msgspec.structs.replace(self._hello, address=address)
            for partner in self._company:
                partner.send(self._hello)

    def sharing(self, node: int) -> list[str]:
        """The ids of neighbours that have, or take, chunks of this layer."""
        return self._talk.sharing(node)

    def shares(self) -> list[Share]:
        """How far this node is in each swarm."""
        return self._talk.shares()

    @property
    def address(self) -> str:
        """Where others reach this node, as they are told."""
        return self._hello.address

    @property
    def lacks(self) -> bool:
        """Whether any layer's chunks are missing here."""
        return self._talk.lacks

    def __len__(self) -> int:
        """Neighbours now."""
        return len(self._company)

    def rows(self) -> list[dict[str, Any]]:
        """The neighbours, for `imgdist peers`."""
        return self._company.rows(self._clock())

    # What connections call (connection.Owner).

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """As Owner."""
        if connection.hello is not None:
            if (partner := self._company.of(connection)) is not None:
                self._company.moved(partner, hello)
            return
        now, dialed, old = self._clock(), self._doors.greeted(connection), self._company.get(hello.node)
        if dialed is not None and dialed.node != hello.node:
            self._members.forget(dialed.node)
        is_unwanted = hello.node == self._me.node or self._members.is_banned(hello.node, now)
        if is_unwanted or (old is not None and not self._company.supersedes(connection, old)):
            connection.part()
        elif old is None and dialed is None and len(self._company) >= 2 * self._limit:
            connection.send(wire.encode(self._company.others(hello.node, self._shuffled)))
            connection.part()
        else:
            if old is not None:
                self._company.leave(old)
            self._members.met(hello.node)
            self._company.enter(connection, hello, now, now + PEX_S * self._chance())

    def received(self, connection: Connection, message: Message) -> None:
        """As Owner."""
        partner = self._company.of(connection)
        if partner is None:  # superseded, and not closed yet
            return
        if isinstance(message, Peers):
            self._members.learn(reachable(message.members), self._clock())
            self._wake.set()
        else:
            self._talk.received(partner, message)

    def room(self, connection: Connection) -> None:
        """As Owner."""
        if (partner := self._company.of(connection)) is not None:
            self._talk.room(partner)

    def lost(self, connection: Connection) -> None:
        """As Owner."""
        if self._doors.lost(connection) or (partner := self._company.of(connection)) is None:
            return
        now, hello = self._clock(), partner.hello
        self._company.drop(partner)
        if connection.fault is not None:
            _log.warning("mesh: %s (%s) is left alone for a while: %s", hello.name, hello.node, connection.fault)
            self._members.ban(hello.node, now)
        elif connection.left:
            self._members.parted(hello.node, now)
        elif partner.address:
            wait_s = REDIAL_S[self._me.node > hello.node]
            self._members.lost(Peer(hello.node, partner.address, hello.zone), now, wait_s)
        self._wake.set()

    # Within.

    def _connection(self, opened_to: str, pending: bytes) -> Connection:
        return Connection(
            self, self._hello, self._clock, self._inbox, opened_to=opened_to, pending=pending, key=self._key
        )

    def _unanswered(self, peer: Peer) -> None:
        """A connection to it did not come about."""
        if self._members.failed(peer.node, self._clock()):
            self._tracker.dead([peer.node])
        self._wake.set()

    def _changed(self) -> None:
        self._seek_at, self._seek_s = self._clock() + SEEK_S[0], SEEK_S[0]  # the tracker answers with members
        self._tracker.changed()
        self._wake.set()

    # Once a second, and when something happened.

    def _look(self, now: float) -> None:
        self._doors.expire()
        for partner in self._company:
            if now - partner.connection.heard_at > SILENT_S:
                partner.connection.abort()
            elif now >= partner.pex_at:
                partner.pex_at = now + PEX_S
                partner.send(self._company.others(partner.hello.node, self._shuffled))
            elif now - partner.connection.sent_at > KEEP_ALIVE_S:
                partner.send(Peers())
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_S
            self._prune(now)
        if now >= self._judge_at:
            self._judge_at = now + JUDGE_S
            self._judge(now)
        self._dial(now)

    def _prune(self, now: float) -> None:
        grown = [partner for partner in self._company if now - partner.since >= PRUNE_S]
        spared = len(self._company) - len(grown)
        better = self._members.sharing(now, self._company.nodes)
        uses = [self._talk.use(partner) for partner in grown]
        for partner in [grown[place] for place in leaving(uses, self._limit - spared, better)]:
            _log.debug("mesh: %s (%s) makes room for others", partner.hello.name, partner.hello.node)
            self._members.parted(partner.hello.node, now)
            self._company.leave(partner)

    def _judge(self, now: float) -> None:
        """Who sent wrong bytes for several chunks is left: what it says to have cannot be believed either."""
        lies = {row.source: row.lies for row in self._exchange.sources_rows() if row.state == "quarantined"}
        for partner in self._company:
            if partner.address and lies.get(partner.address, 0) >= LIES_MAX:
                _log.warning("mesh: %s (%s) sends wrong bytes: left", partner.hello.name, partner.address)
                self._members.ban(partner.hello.node, now)
                self._company.leave(partner)

    def _dial(self, now: float) -> None:
        dialing, lacks = self._doors.dialing, self._talk.lacks
        target = self._limit if lacks else -(-self._limit // IDLE_SHARE)
        room = min(-(-(target - len(self._company)) // 2), DIALS_MAX) - len(dialing)
        if room <= 0:
            return
        chosen = self._members.candidates(now, self._company.nodes | dialing, room)
        for peer in chosen:
            self._doors.dial(peer)
        if lacks and len(chosen) < room and now >= self._seek_at:
            self._seek_at = now + self._seek_s * (0.75 + self._chance() / 2)
            self._seek_s = min(2 * self._seek_s, SEEK_S[1])
            self._tracker.seek()

    def _shuffled(self, peers: list[Peer]) -> list[Peer]:
        return sorted(peers, key=lambda _: self._chance())

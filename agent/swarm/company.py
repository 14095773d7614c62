"""The agents that this one is connected with: one connection each, and a source of chunks where they can be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, KeysView
from contextlib import suppress
from typing import Any

from agent.swarm.connection import Connection
from agent.swarm.identity import Identity
from agent.swarm.talk import Exchange, Partner, Talk
from agent.transfer.sources import ChunkSource
from imgdist.errors import ProtocolError, UsageError
from imgdist.wire.address import Address
from imgdist.wire.mesh import PEERS_MAX, Hello, Peers
from imgdist.wire.tracker import Peer, peer_address


class Company:
    """Partners by node id. `make_source(address)` makes what transfers ask for a partner's chunks, None if they must
    not. An address belongs to the partner that told it last: two would be one source."""

    def __init__(
        self, me: Identity, exchange: Exchange, make_source: Callable[[str], ChunkSource | None], talk: Talk
    ) -> None:
        self._me = me
        self._exchange = exchange
        self._make_source = make_source
        self._talk = talk
        self._partners: dict[str, Partner] = {}

    def __len__(self) -> int:
        return len(self._partners)

    def __iter__(self) -> Iterator[Partner]:
        return iter(list(self._partners.values()))

    @property
    def nodes(self) -> KeysView[str]:
        """Their ids."""
        return self._partners.keys()

    def get(self, node: str) -> Partner | None:
        """The partner of that id."""
        return self._partners.get(node)

    def of(self, connection: Connection) -> Partner | None:
        """Whose connection it is, unless another one has taken its place."""
        partner = self._partners.get(connection.hello.node) if connection.hello is not None else None
        return partner if partner is not None and partner.connection is connection else None

    def supersedes(self, connection: Connection, old: Partner) -> bool:
        """Of two connections with one agent both sides keep the one that the smaller node id opened, and of two that
        one side opened the later: it knows that the earlier is dead."""
        ours, before = bool(connection.opened_to), bool(old.connection.opened_to)
        return ours == before or ours == (self._me.node < old.hello.node)

    def enter(self, connection: Connection, hello: Hello, now: float, pex_at: float) -> None:
        """One more. It is told of the others and of this node's swarms."""
        address = connection.opened_to or _address_of(connection, hello)
        partner = self._partners[hello.node] = Partner(connection, hello, "", None, now, pex_at)
        self._find(partner, address)
        partner.send(self.others(hello.node))
        self._talk.greet(partner)

    def moved(self, partner: Partner, hello: Hello) -> None:
        """It says anew who it is: where it is reached."""
        partner.hello = hello
        address = partner.connection.opened_to or _address_of(partner.connection, hello)
        if address != partner.address:
            self._find(partner, address)
            self._talk.found(partner)

    def drop(self, partner: Partner) -> None:
        """Its connection is no more, or of no use."""
        del self._partners[partner.hello.node]
        self._talk.part(partner)
        if partner.source is not None:
            self._exchange.leave(partner.source)

    def leave(self, partner: Partner) -> None:
        """Part in order."""
        self.drop(partner)
        partner.connection.part()

    def others(self, node: str, choose: Callable[[list[Peer]], list[Peer]] = lambda peers: peers) -> Peers:
        """Partners that another one may connect to, as many as a message holds; `choose` orders them."""
        others = [
            Peer(partner.hello.node, partner.address, partner.hello.zone)
            for partner in self._partners.values()
            if partner.address and partner.hello.node != node
        ]
        return Peers(tuple(choose(others)[:PEERS_MAX]))

    def rows(self, now: float) -> list[dict[str, Any]]:
        """The partners, for people."""
        return [self._row(partner, now) for partner in self._partners.values()]

    def _find(self, partner: Partner, address: str) -> None:
        """Its chunks are at this address from now on; nowhere, if it is empty."""
        if partner.source is not None:
            self._exchange.leave(partner.source)
        partner.address, partner.source = "", None
        other = next((one for one in self._partners.values() if address and one.address == address), None)
        if other is not None:
            self._find(other, "")
        partner.address, partner.source = address, self._make_source(address) if address else None
        if partner.source is not None:
            near = bool(self._me.zone) and partner.hello.zone == self._me.zone
            self._exchange.join(partner.source, near=near)

    def _row(self, partner: Partner, now: float) -> dict[str, Any]:
        use = self._talk.use(partner)
        return {
            "node": partner.hello.node,
            "name": partner.hello.name,
            "address": partner.address or None,
            "zone": partner.hello.zone,
            "opened": "here" if partner.connection.opened_to else "there",
            "connected_s": round(now - partner.since, 1),
            "swarms": sum(1 for _ in partner.heard.shared()),
            "gives": use.gives,
            "takes": use.takes,
        }


def reachable(peers: Iterable[Peer]) -> list[Peer]:
    """Those whose address is one, written as everywhere."""
    found = []
    for peer in peers:
        with suppress(UsageError):
            found.append(Peer(peer.node, str(peer_address(peer.address)), peer.zone))
    return found


def _address_of(connection: Connection, hello: Hello) -> str:
    """Where the chunks of an agent are that has connected to us, as far as it says."""
    if not hello.address:
        return ""
    try:
        address = peer_address(hello.address)
    except UsageError as error:
        raise ProtocolError(str(error)) from None
    if address.is_local and not Address(connection.remote_host).is_local:
        return ""  # its own loopback, or ours: of no use between two machines
    return str(address)

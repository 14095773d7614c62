"""What is said on the mesh about swarms: our side told to each partner, theirs handed to the transfers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.swarm.bitset import bits_of
from agent.swarm.connection import Connection
from agent.swarm.neighbours import SourceRow
from agent.swarm.pruning import Use
from agent.swarm.swarms import Heard, Own, OwnSwarms, Theirs
from agent.transfer.sources import ChunkSource
from imgdist.errors import ProtocolError
from imgdist.wire import mesh as wire
from imgdist.wire.mesh import Close, Have, Hello, Message, Open, Sealed
from imgdist.wire.tracker import Share

HAVE_MAX = 1 << 16
"""Chunks of one message: a quarter of what a frame holds."""


class Exchange(Protocol):
    """What is done with what others tell (agent.transfer.Transfers). `node` is the layer's number there."""

    def join(self, source: ChunkSource, *, near: bool = False) -> None:
        """A peer may be asked for chunks from now on."""

    def leave(self, source: ChunkSource) -> None:
        """It is gone."""

    def opened(self, source: ChunkSource, node: int, have: int) -> None:
        """It has these chunks (bit i: chunk i) of a layer."""

    def got_all(self, news: Iterable[tuple[ChunkSource, int, int]]) -> None:
        """(source, node, chunks): it has this set as well."""

    def closed(self, source: ChunkSource, node: int) -> None:
        """It serves the layer no more."""

    def sources_rows(self) -> Sequence[SourceRow]:
        """What is known of each source, by its name."""


@dataclass(slots=True, eq=False)
class Partner:
    """An agent with a connection. `address` is where its chunks are and `source` whom transfers ask for them; "" and
    None if nobody gets there. `told`: by swarm number how many of our arrivals it knows of."""

    connection: Connection
    hello: Hello
    address: str
    source: ChunkSource | None
    since: float
    pex_at: float
    heard: Heard = field(default_factory=Heard)
    told: dict[int, int] = field(default_factory=dict)

    def send(self, message: Message) -> None:
        """Tell it."""
        self.connection.send(wire.encode(message))


_Frames = dict[tuple[int, int], bytes]
"""By a swarm's number and how many arrivals were told before: most partners have been told the same so far."""


class Talk:
    """`changed` is called when this node is in other swarms than before."""

    def __init__(self, exchange: Exchange, changed: Callable[[], None]) -> None:
        self._exchange = exchange
        self._changed = changed
        self._swarms = OwnSwarms()
        self._partners: list[Partner] = []
        self._opening: dict[int, list[int]] = {}  # node: chunks that arrived meanwhile
        self._heard: list[tuple[ChunkSource, int, int]] = []

    @property
    def lacks(self) -> bool:
        """Whether any layer's chunks are missing here."""
        return any(not own.is_complete for own in self._swarms)

    def shares(self) -> list[Share]:
        """How far this node is in each swarm."""
        return self._swarms.shares()

    # Partners.

    def greet(self, partner: Partner) -> None:
        """A new one is told of every swarm."""
        self._partners.append(partner)
        for own in self._swarms:
            self._open(partner, own)

    def part(self, partner: Partner) -> None:
        """It is gone."""
        self.hand_over()
        self._partners.remove(partner)

    def found(self, partner: Partner) -> None:
        """Its chunks can be fetched from now on."""
        for own, theirs in partner.heard.shared():
            self._told(partner, own, theirs)

    def room(self, partner: Partner) -> None:
        """It can take more."""
        self._catch_up(partner, [own for own, _ in partner.heard.shared()], {})

    def sharing(self, node: int) -> list[str]:
        """The ids of partners that are in a swarm of ours, too."""
        own = self._swarms.get(node)
        return [] if own is None else [one.hello.node for one in self._partners if one.heard.of(own) is not None]

    def use(self, partner: Partner) -> Use:
        """What it is good for."""
        shared = list(partner.heard.shared())
        gives = partner.source is not None and any(theirs.bits & ~own.bits for own, theirs in shared)
        takes = any(own.bits & ~theirs.bits for own, theirs in shared)
        return Use(gives, takes)

    # Our side.

    def opening(self, node: int) -> None:
        """What of this layer is present is being looked at: chunks that arrive meanwhile count, too."""
        self._opening[node] = []

    def open(self, node: int, layer: str, pack: str, count: int, bits: int) -> None:
        """This node is in a swarm from now on, with these chunks. Again: nothing changes."""
        bits |= bits_of(self._opening.pop(node, ()))
        if self._swarms.get(node) is not None or (own := self._swarms.open(node, layer, pack, count, bits)) is None:
            return
        for partner in self._partners:
            self._open(partner, own)
            self._told(partner, own, self._join(partner, own))
        self._changed()

    def sealed(self, before: int, node: int, pack: str, count: int, bits: int) -> None:
        """The layer that was open as `before` is converted, has its pack id and is `node` from now on."""
        own = self._swarms.seal(before, node, pack, count, bits)
        if own is None:
            return
        for partner in self._partners:
            self._closed(partner, before)
            partner.send(Sealed(own.number, pack, count))
            self._told(partner, own, self._join(partner, own))
        self._changed()

    def close(self, node: int) -> None:
        """This node has left a swarm."""
        own = self._swarms.close(node)
        if own is None:
            return
        for partner in self._partners:
            partner.heard.part(own)
            partner.told.pop(own.number, None)
            partner.send(Close(own.number))
            self._closed(partner, node)
        self._changed()

    def arrived(self, news: Iterable[tuple[int, int]]) -> None:
        """(node, chunk): chunks that are here now."""
        news = list(news)
        for node, chunk in news:
            if node in self._opening:
                self._opening[node].append(chunk)
        grown = {own.number: own for node, chunk in news if (own := self._swarms.arrived(node, chunk)) is not None}
        frames: _Frames = {}
        for partner in self._partners:
            self._catch_up(partner, grown.values(), frames)
        for own in grown.values():
            if own.is_complete:
                self._completed(own)

    # Their side.

    def received(self, partner: Partner, message: Message) -> None:
        """A message about swarms; what it says of arrivals waits for `hand_over`. ProtocolError if it cannot be."""
        if isinstance(message, Have):
            theirs, fresh = partner.heard.has(message)
            own = theirs.own
            if fresh and own is not None and partner.source is not None and not own.is_complete:
                self._heard.append((partner.source, own.node, fresh))
        elif isinstance(message, Open):
            theirs = partner.heard.opened(message, self._swarms)
            self._told(partner, theirs.own, theirs)
        elif isinstance(message, Sealed):
            theirs = partner.heard.sealed(message, self._swarms)
            self._told(partner, theirs.own, theirs)
        elif isinstance(message, Close):
            own = partner.heard.closed(message.swarm)
            if own is not None:
                self._closed(partner, own.node)

    def hand_over(self) -> None:
        """Tell the transfers of all arrivals heard of since: what may start now is looked through once for all."""
        if self._heard:
            heard, self._heard = self._heard, []
            self._exchange.got_all(heard)

    def _join(self, partner: Partner, own: Own) -> Theirs | None:
        """The partner's side of a swarm of ours. What it said of it may turn out wrong only now: that ends the
        connection, and is no trouble of whoever opened the layer."""
        try:
            return partner.heard.join(own)
        except ProtocolError as error:
            partner.connection.break_off(error)
            return None

    def _told(self, partner: Partner, own: Own | None, theirs: Theirs | None) -> None:
        """A swarm is shared, or more is known of it: the transfers may ask, and the partner wants our news."""
        if own is None or theirs is None:
            return
        if partner.source is not None and not own.is_complete:
            self.hand_over()
            self._exchange.opened(partner.source, own.node, theirs.bits)
        self._catch_up(partner, (own,), {})

    def _closed(self, partner: Partner, node: int) -> None:
        if partner.source is not None:
            self.hand_over()
            self._exchange.closed(partner.source, node)

    def _completed(self, own: Own) -> None:
        """What others have of it is of no interest any more. Those who had all before were not told of our arrivals."""
        for partner in self._partners:
            if partner.heard.of(own) is None:
                continue
            self._closed(partner, own.node)
            if partner.told[own.number] < len(own.arrivals):
                self._open(partner, own)

    def _open(self, partner: Partner, own: Own) -> None:
        partner.told[own.number] = len(own.arrivals)
        partner.send(wire.open_bits(own.number, own.layer, own.pack, own.count, own.bits))

    def _catch_up(self, partner: Partner, swarms: Iterable[Own], frames: _Frames) -> None:
        """Tell it, all at once, of arrivals in those of these swarms in which it lacks chunks, if it reads what it is
        told."""
        if partner.connection.is_full:
            return
        news = b""
        for own in swarms:
            theirs, told = partner.heard.of(own), partner.told.get(own.number, 0)
            if theirs is None or theirs.is_complete or told == len(own.arrivals):
                continue
            if (own.number, told) not in frames:
                frames[own.number, told] = _frames(own.number, own.arrivals[told:])
            news += frames[own.number, told]
            partner.told[own.number] = len(own.arrivals)
        if news:
            partner.connection.send(news)


def _frames(number: int, chunks: Sequence[int]) -> bytes:
    starts = range(0, len(chunks), HAVE_MAX)
    return b"".join(wire.encode(wire.have(number, chunks[start : start + HAVE_MAX])) for start in starts)

"""The swarms that this node is in, and what one neighbour has said of its own: who has which chunks. Pure.

Two layers are the same swarm if their pack ids are equal, or, as long as one of them is not sealed, the names that they
had before. Bitmaps are integers, bit i for chunk i.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from agent.swarm.bitset import bits_of, numbers_of, without
from imgdist.errors import ProtocolError
from imgdist.wire.mesh import CHUNKS_MAX, Have, Open, Sealed
from imgdist.wire.tracker import Share

SWARMS_MAX = 1024
"""Swarms that a node is in: it has some hundred layers, an image at most 128."""
_CHUNKS_TOLD_MAX = 1 << 25
"""Chunks of all swarms that one neighbour tells of: 4 MiB of bitmaps, 8 TiB of layers."""


def full(count: int) -> int:
    """The bitmap of all chunks."""
    return (1 << count) - 1


@dataclass(slots=True, eq=False)
class Own:
    """A swarm that this node is in. `number` names it on connections, `node` in transfers; `arrivals` are the chunks
    that came since it was opened, in that order."""

    number: int
    node: int
    layer: str
    pack: str
    count: int
    bits: int
    arrivals: list[int] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether the node lacks nothing of it."""
        return bool(self.pack) and self.bits == full(self.count)

    def is_same(self, layer: str, pack: str) -> bool:
        """Whether a neighbour's swarm of these names is this one."""
        if self.pack and pack:
            return self.pack == pack
        return bool(layer) and self.layer == layer


class OwnSwarms:
    """By the number of the layer in transfers."""

    def __init__(self) -> None:
        self._by_node: dict[int, Own] = {}
        self._by_name: dict[str, Own] = {}  # layer's and pack's
        self._numbers = 0

    def __iter__(self) -> Iterator[Own]:
        return iter(self._by_node.values())

    def __len__(self) -> int:
        return len(self._by_node)

    def get(self, node: int) -> Own | None:
        """The swarm of a layer."""
        return self._by_node.get(node)

    def open(self, node: int, layer: str, pack: str, count: int, bits: int) -> Own | None:
        """This node is in a swarm from now on; None if it is in too many."""
        if len(self._by_node) >= SWARMS_MAX:
            return None
        self._numbers = (self._numbers + 1) % (1 << 32)
        own = Own(self._numbers, node, layer, pack, count, bits)
        self._enter(own)
        return own

    def close(self, node: int) -> Own | None:
        """It is in it no more."""
        own = self._by_node.pop(node, None)
        if own is not None:
            for name in (own.layer, own.pack):
                if self._by_name.get(name) is own:
                    del self._by_name[name]
        return own

    def seal(self, before: int, node: int, pack: str, count: int, bits: int) -> Own | None:
        """A layer that was being converted has its pack id, and another number; None if it was not open."""
        own = self.close(before)
        if own is not None:
            own.node, own.pack, own.count = node, pack, count
            own.arrivals += numbers_of(bits & ~own.bits)
            own.bits |= bits
            self._enter(own)
        return own

    def same(self, layer: str, pack: str) -> Own | None:
        """The swarm that a neighbour calls so."""
        found = (self._by_name.get(name) for name in (pack, layer) if name)
        return next((own for own in found if own is not None and own.is_same(layer, pack)), None)

    def arrived(self, node: int, chunk: int) -> Own | None:
        """A chunk is here; the swarm for which that is news."""
        own = self._by_node.get(node)
        if own is None or own.bits >> chunk & 1:
            return None
        own.bits |= 1 << chunk
        own.arrivals.append(chunk)
        if not own.pack:
            own.count = max(own.count, chunk + 1)
        return own

    def _enter(self, own: Own) -> None:
        self._by_node[own.node] = own
        self._by_name.update({name: own for name in (own.layer, own.pack) if name})

    def shares(self) -> list[Share]:
        """How far this node is in each swarm, for a tracker."""
        return [
            Share(own.layer or own.pack, own.bits.bit_count(), own.count if own.pack else 0)
            for own in self._by_node.values()
        ]


@dataclass(slots=True, eq=False)
class Theirs:
    """A swarm of a neighbour's; `own` is ours if we are in it."""

    layer: str
    pack: str
    count: int
    bits: int
    own: Own | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the neighbour lacks nothing of it."""
        return bool(self.pack) and self.bits == full(self.count)


class Heard:
    """What one neighbour has said, checked: what cannot be is a ProtocolError."""

    def __init__(self) -> None:
        self._theirs: dict[int, Theirs] = {}
        self._by_own: dict[int, Theirs] = {}
        self._chunks = 0

    def __iter__(self) -> Iterator[Theirs]:
        return iter(self._theirs.values())

    def of(self, own: Own) -> Theirs | None:
        """The neighbour's side of one of our swarms."""
        return self._by_own.get(own.number)

    def shared(self) -> Iterator[tuple[Own, Theirs]]:
        """The swarms that both are in."""
        return ((theirs.own, theirs) for theirs in self._by_own.values() if theirs.own is not None)

    def opened(self, message: Open, ours: OwnSwarms) -> Theirs:
        """It is in a swarm."""
        self.closed(message.swarm)
        theirs = Theirs(message.layer, message.pack, message.count, message.bits)
        self._chunks += message.count
        if len(self._theirs) >= SWARMS_MAX or self._chunks > _CHUNKS_TOLD_MAX:
            raise ProtocolError(f"a neighbour in more than {SWARMS_MAX} swarms, or of too many chunks")
        self._theirs[message.swarm] = theirs
        self._match(theirs, ours.same(theirs.layer, theirs.pack))
        return theirs

    def sealed(self, message: Sealed, ours: OwnSwarms) -> Theirs:
        """A layer of its is converted."""
        theirs = self._named(message.swarm)
        if theirs.pack or theirs.bits >> message.count:
            raise ProtocolError(f"a neighbour sealed swarm {message.swarm} twice, or to fewer chunks than it has")
        self._chunks += message.count - theirs.count
        theirs.pack, theirs.count = message.pack, message.count
        self._part(theirs)
        self._match(theirs, ours.same(theirs.layer, theirs.pack))
        return theirs

    def has(self, message: Have) -> tuple[Theirs, int]:
        """It got chunks; the set of those that are news."""
        theirs, told = self._named(message.swarm), bits_of(message.chunks)
        count = theirs.count if theirs.pack else CHUNKS_MAX
        if told >> count:
            raise ProtocolError(f"a neighbour says it has chunk {told.bit_length() - 1} of {count}")
        fresh = without(told, theirs.bits)
        theirs.bits |= fresh
        return theirs, fresh

    def closed(self, swarm: int) -> Own | None:
        """It has left a swarm; ours, if we were in it together."""
        theirs = self._theirs.pop(swarm, None)
        if theirs is None:
            return None
        self._chunks -= theirs.count
        own = theirs.own
        self._part(theirs)
        return own

    def join(self, own: Own) -> Theirs | None:
        """We are in a swarm from now on, or know its pack id; the neighbour's side."""
        self.part(own)
        for theirs in self._theirs.values():
            if theirs.own is None and own.is_same(theirs.layer, theirs.pack):
                self._match(theirs, own)
                return theirs
        return None

    def part(self, own: Own) -> None:
        """We have left a swarm."""
        theirs = self._by_own.pop(own.number, None)
        if theirs is not None:
            theirs.own = None

    def _part(self, theirs: Theirs) -> None:
        if theirs.own is not None:
            self.part(theirs.own)

    def _match(self, theirs: Theirs, own: Own | None) -> None:
        """It is a swarm of ours, if there is one; each of ours has one other side, the first that was told."""
        if own is None or own.number in self._by_own:
            return
        if own.pack and (theirs.bits >> own.count or (theirs.pack and theirs.count != own.count)):
            raise ProtocolError(f"a neighbour has {theirs.count} chunks of pack {own.pack}, not {own.count}")
        theirs.own = own
        self._by_own[own.number] = theirs

    def _named(self, swarm: int) -> Theirs:
        try:
            return self._theirs[swarm]
        except KeyError:
            raise ProtocolError(f"a neighbour speaks of swarm {swarm}, which it has not opened") from None

"""Super-seeding: which chunks a supernode sends next, so that the swarm soon has one copy of each, and who got them.

No I/O; the clock and the dice are passed in. Everything here is a hint: chunks are verified by whoever gets them, and
an address that is wrong costs one failed request. So it lives in memory, bounded, and begins anew with the process.
"""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial

from imgdist.errors import NotFoundError, NotYetError
from imgdist.wire.answer import ChunkReader
from supernode.crowds import Crowds

RECEIVERS = 8
"""Latest receivers that are remembered of each chunk."""
ELSEWHERE = 2
"""So many are named to whoever is sent elsewhere: the second if the first proves to be gone (a guess)."""
HEARD_S = 60.0
"""Who took nothing for so long may be gone, and would cost who is sent there a time-out: a machine that was scaled away
answers nothing (a guess)."""
RECENT_S = 1.0
"""A chunk was only just sent for this long, and up to twice as long: whoever got it passes it on. On 25 Mbit/s it takes
a second until those who ask know of that [measured, 16 nodes, three layers: at the end of each layer the last chunks
went out twice with half of this, 1.10 F; simulated, 16 nodes with 300 chunks: 1.06 F, and 1.00 with this]."""
RETRY_S = 0.1
LEVELS = 32
"""Numbers of copies that are told apart (a guess: a swarm that asks for a 33rd copy has other troubles)."""
PACKS_MAX = 1024
CHUNKS_MAX = 1 << 20
"""Chunks whose receivers are remembered, of all packs; 17 bytes each. The packs that were asked for last stay."""
NODES_MAX = (1 << 16) - 1


class PackSeeding:
    """What was sent of one pack. Sets of chunks are ints, bit i for chunk i."""

    def __init__(self) -> None:
        self._sent = 0
        self._levels = [0]  # of what was sent: once, twice, ...
        self._recent = self._earlier = 0
        self._turn_at = 0.0
        self._receivers = array("H")  # RECEIVERS numbers of nodes a chunk, a ring; 0 is nobody
        self._next = bytearray()
        self._generation = 0
        self.known = 0
        """Chunks that there are, as far as any were asked for."""

    @property
    def remembered(self) -> int:
        """Chunks that take memory here."""
        return len(self._next)

    def recent(self, now: float) -> int:
        """What was only just sent to somebody who can pass it on."""
        if now >= self._turn_at:
            self._earlier = self._recent if now < self._turn_at + RECENT_S else 0
            self._recent = 0
            self._turn_at = now + RECENT_S
        return self._recent | self._earlier

    def least_sent(self, among: int, count: int, dice: Callable[[], float]) -> list[int]:
        """Up to `count` chunks of a set, those with the fewest copies; of equals the next ones from a random place on:
        whoever gets neighbours writes them at once."""
        chosen: list[int] = []
        for level in (among ^ (among & self._sent), *self._levels):
            chosen += _next_from(dice, level & among, count - len(chosen))
            if len(chosen) == count:
                break
        return chosen

    def count(self, numbers: Sequence[int], now: float, *, shared: bool) -> None:
        """These go out once more, `shared` with somebody whom others reach."""
        for number in numbers:
            self._raise(1 << number)
        if shared:
            self.recent(now)
            for number in numbers:
                self._recent |= 1 << number

    def _raise(self, bit: int) -> None:
        if not self._sent & bit:
            self._sent |= bit
            self._levels[0] |= bit
            return
        at = next(i for i, level in enumerate(self._levels) if level & bit)
        if at + 1 == LEVELS:
            return
        if at + 1 == len(self._levels):
            self._levels.append(0)
        self._levels[at] ^= bit
        self._levels[at + 1] |= bit

    def received(self, numbers: Sequence[int], node: int, generation: int) -> None:
        """That node got these. Nodes of another generation are forgotten: their numbers mean others now."""
        if generation != self._generation:
            self._generation = generation
            self._receivers, self._next = array("H"), bytearray()
        missing = max(numbers) + 1 - len(self._next)
        if missing > 0:
            self._receivers.frombytes(bytes(missing * RECEIVERS * self._receivers.itemsize))
            self._next.extend(bytes(missing))
        for number in numbers:
            if node not in self._ring(number):
                self._receivers[number * RECEIVERS + self._next[number]] = node
                self._next[number] = (self._next[number] + 1) % RECEIVERS

    def receivers(self, numbers: Sequence[int], generation: int) -> list[int]:
        """Who got all of these, the latest first."""
        if generation != self._generation or max(numbers) >= len(self._next):
            return []
        last, *others = numbers
        latest, at = self._ring(last), self._next[last]
        in_turn = [latest[at - 1 - i] for i in range(RECEIVERS)]
        return [node for node in in_turn if node and all(node in self._ring(other) for other in others)]

    def _ring(self, number: int) -> array[int]:
        return self._receivers[number * RECEIVERS : (number + 1) * RECEIVERS]


class Nodes:
    """Numbers for addresses. When there are too many, all are forgotten, and a new generation begins."""

    def __init__(self) -> None:
        self.generation = 0
        self._addresses = [""]
        self._heard_at = [0.0]
        self._numbers: dict[str, int] = {}

    def number(self, address: str, now: float) -> int:
        """From 1 to NODES_MAX, of a node that was just heard of."""
        number = self._numbers.get(address)
        if number is None:
            if len(self._addresses) > NODES_MAX:
                self.generation += 1
                self._addresses, self._heard_at, self._numbers = [""], [0.0], {}
            number = self._numbers[address] = len(self._addresses)
            self._addresses.append(address)
            self._heard_at.append(now)
        self._heard_at[number] = now
        return number

    def addresses(self, numbers: Iterable[int]) -> list[str]:
        """Of these."""
        return [self._addresses[number] for number in numbers]

    def is_heard_of(self, address: str, now: float) -> bool:
        """Whether it was lately."""
        number = self._numbers.get(address)
        return number is not None and self._heard_at[number] > now - HEARD_S


class Seeding:
    """Of all packs (a `Seeder`). Thread-safe. Of a pack's several names on the wire its files say that they are one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, dice: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._dice = dice
        self._lock = threading.Lock()
        self._packs: OrderedDict[Hashable, PackSeeding] = OrderedDict()  # asked for last at the end
        self._names: dict[str, Hashable] = {}
        self._nodes = Nodes()
        self._crowds = Crowds(dice)

    def choose(self, name: str, reader: ChunkReader, lacks: int, count: int, node: str | None) -> list[int]:
        """Up to `count` of the missing chunks, the least sent ones first: nobody gets what others can pass on.

        Raises NotFoundError if none is there (yet), NotYetError if a member lacks only what others just got.
        """
        there = lacks & ((1 << reader.count) - 1)
        if not there:
            raise NotFoundError(f"pack {name}: none of the missing chunks is there, or not yet")
        with self._lock:
            pack, now = self._pack(name, reader), self._clock()
            pack.known = max(pack.known, there.bit_length())
            if node is not None:
                there ^= there & pack.recent(now)
            if not there:
                raise NotYetError(f"pack {name}: others got these only just now", RETRY_S)
            chosen = pack.least_sent(there, count, self._dice)
            pack.count(chosen, now, shared=bool(node))
        return chosen

    def begun(self, name: str, reader: ChunkReader, numbers: Sequence[int], node: str | None) -> None:
        """These, asked for by their numbers, are about to be sent."""
        with self._lock:
            pack = self._pack(name, reader)
            if max(numbers) >= pack.known:
                pack.known = reader.count
            pack.count(numbers, self._clock(), shared=bool(node))

    def sent(self, name: str, numbers: Sequence[int], node: str | None) -> None:
        """These went out whole."""
        if node:
            with self._lock:
                self._received(name, numbers, node)

    def elsewhere(
        self, name: str, numbers: Sequence[int], node: str, *, waits: bool, foretold: bool = False
    ) -> list[str]:
        """Who got all of these or is getting them, and passes them on (Crowds). Later ones are sent to this one, if
        others reach it. Nobody, if it has asked for what is not known to be there, or was sent elsewhere often enough
        (`waits`)."""
        with self._lock:
            identity, now = self._names.get(name), self._clock()
            pack = self._packs.get(identity)
            if waits or pack is None or max(numbers) >= pack.known:
                return []
            known = self._nodes.addresses([self._number(node)])[0] if node else ""
            before = self._crowds.join((identity, *numbers), known, now, partial(self._had, pack, numbers))
            if node:
                self._received(name, numbers, node)
            return [other for other in before if self._nodes.is_heard_of(other, now)][:ELSEWHERE]

    def gives(self, name: str, numbers: Sequence[int]) -> bool:
        """No: they stand in a line by their addresses."""
        return False

    def _had(self, pack: PackSeeding, numbers: Sequence[int]) -> list[str]:
        return self._nodes.addresses(pack.receivers(numbers, self._nodes.generation))

    def _received(self, name: str, numbers: Sequence[int], node: str) -> None:
        pack = self._packs.get(self._names.get(name))
        if pack is not None:
            number, before = self._number(node), pack.remembered
            pack.received(numbers, number, self._nodes.generation)
            if pack.remembered > before:
                self._forget_some()

    def _number(self, node: str) -> int:
        generation = self._nodes.generation
        number = self._nodes.number(node, self._clock())
        if self._nodes.generation != generation:
            self._crowds.clear()
        return number

    def _pack(self, name: str, reader: ChunkReader) -> PackSeeding:
        identity = self._names[name] = reader.identity
        pack = self._packs.get(identity)
        if pack is None:
            pack = self._packs[identity] = PackSeeding()
            self._forget_some()
        self._packs.move_to_end(identity)
        return pack

    def _forget_some(self) -> None:
        """The packs that were asked for longest ago, if there are too many; never the last one."""
        chunks = sum(pack.remembered for pack in self._packs.values())
        before = len(self._packs)
        while len(self._packs) > 1 and (len(self._packs) > PACKS_MAX or chunks > CHUNKS_MAX):
            chunks -= self._packs.popitem(last=False)[1].remembered
        if len(self._packs) < before:
            self._names = {name: identity for name, identity in self._names.items() if identity in self._packs}


def _next_from(dice: Callable[[], float], bits: int, count: int) -> list[int]:
    """Up to `count` members of a set: those behind a random place, then the lowest."""
    start = int(dice() * bits.bit_length())
    behind = bits >> start << start
    chosen: list[int] = []
    while bits and len(chosen) < count:
        behind = behind or bits
        chosen.append((behind & -behind).bit_length() - 1)
        behind ^= 1 << chosen[-1]
        bits ^= 1 << chosen[-1]
    return chosen

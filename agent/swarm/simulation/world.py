"""The simulated swarm: discrete events over a heap, one Policy a node.

Links are serialised queues at both ends: an answer leaves when those before it have left its source's uplink, and then
passes its receiver's downlink, one answer at a time, as a whole. TCP shares links instead of queueing; the sum of what
passes in a second is the same, and with requests of some 50 ms so is, nearly, when a request is over. It costs two
events a request, where sharing would re-plan every flow of a link with each start and end. A run of chunks counts as
received when its last byte is there, later than in truth, where chunks are usable one by one.

What is left out: verification, disks, and demand; the processors' speed where `cores` does not say it.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence

from agent.swarm.asks import Ask
from agent.swarm.bitset import bits_of
from agent.swarm.policy import SourceKind
from agent.swarm.simulation.actors import LAYER, Node, Request, Source, Tally
from agent.swarm.simulation.agenda import Agenda
from agent.swarm.simulation.population import introduce, new_nodes, new_supernode
from agent.swarm.simulation.scenario import Scenario

_NEVER = float("inf")
_LOOK_S = 0.02
"""How soon a node that has nothing to ask for looks again: in truth each have-list that comes makes it look.
Once the first chunks have spread there is always something [10,000 nodes: not in 9 of 1,190,000 decisions]."""
_REPORTS = 50
_LATE_S = 0.5
"""In flight for so long, a node's last chunks are asked of a second source (agent/transfer/flights.py)."""
_SLOTS = 4
"""Fill requests that a server takes however long they wait (imgdist/wire/server.py)."""
_BUSY_RETRY_S = (0.01, 1.0)
_RECENT_RETRY_S = 0.1
"""What servers say to those they refuse (imgdist/wire/slots.py, supernode/seeding.py)."""
_STALL_S = 0.2
"""The kernel's least retransmission timeout (TCP_RTO_MIN)."""


class World:
    """Runs one scenario. `watch(seconds, share)` hears some times a T* what share of all chunks has come."""

    def __init__(self, scenario: Scenario, watch: Callable[[float, float], None] | None = None) -> None:
        self._scenario = scenario
        self._watch = watch
        self._random = random.Random(scenario.seed)
        self._agenda = Agenda()
        self._at = self._agenda.put
        self._latency_s = scenario.latency_s
        self._chunk_bytes = scenario.chunk_bytes
        self._machine_free_at = 0.0
        self.tally = Tally()
        self._supernode = new_supernode(scenario, self._random)
        self._nodes = new_nodes(scenario, self._supernode, self._random)
        self._left = scenario.nodes
        self.tally.links = introduce(self._nodes, scenario, self._random)

    def run(self) -> Tally:
        """Until every node that lives has everything."""
        self._begin()
        collects = gc.isenabled()
        gc.disable()  # nothing that goes refers to itself
        try:
            for now, act, what in self._agenda:
                act(now, what)
                if not self._left:
                    break
        finally:
            if collects:
                gc.enable()
        return self.tally

    def _begin(self) -> None:
        scenario, chance = self._scenario, self._random.random
        least = scenario.least_time_s()
        for node in self._nodes:
            begins_at = chance() * scenario.start_jitter_s
            if scenario.head_bytes:
                begins_at = max(begins_at, self._supernode.free_at) + scenario.head_bytes / self._supernode.rate
                self._supernode.free_at = begins_at
                self.tally.supernode_bytes += scenario.head_bytes
            self._at(begins_at, self._look, node)
        for node in self._random.sample(self._nodes, round(scenario.nodes * scenario.dying_share)):
            self._at(chance() * least, self._die, node)
        if scenario.supernode_dies_at is not None:
            self._at(scenario.supernode_dies_at * least, self._kill_supernode, self._supernode)
        if self._watch is not None:
            self._at(0.0, self._report, self._watch)

    def _report(self, now: float, watch: Callable[[float, float], None]) -> None:
        scenario = self._scenario
        watch(now, 1.0 - sum(node.missing for node in self._nodes) / (scenario.chunks * scenario.nodes))
        self._at(now + scenario.least_time_s() / _REPORTS, self._report, watch)

    # What happens.

    def _look(self, now: float, node: Node) -> None:
        if node.look_at <= now:
            node.look_at = float("inf")
        self._ask(now, node)

    def _ask(self, now: float, node: Node) -> None:
        """Start what the policy lets start; look again soon if that is nothing."""
        policy = node.policy
        while node.missing and not policy.is_full and node.source.died_at > now:
            lacks, flying = node.lacks, None
            if not lacks:
                flying = self._late(node, now)
                lacks = bits_of(flying)
            ask = policy.fill(LAYER, lacks, now, flying) if lacks else None
            if ask is None:
                break
            self._send(now, node, ask)
        if node.missing and not policy.is_full:
            again = min(policy.next_at(now) or _NEVER, now + _LOOK_S)
            if again < node.look_at:
                node.look_at = again
                self._at(again, self._look, node)

    def _late(self, node: Node, now: float) -> dict[int, list[Source]]:
        """Of a node's last chunks those that are in flight for long, and at whom."""
        flying: dict[int, list[Source]] = {}
        if node.missing <= self._scenario.limits.endgame:
            for request in node.requests:
                for chunk in request.chunks:
                    if not node.have >> chunk & 1:
                        flying.setdefault(chunk, []).append(request.source)
            for request in node.requests:
                if request.asked_at + _LATE_S > now:
                    for chunk in request.chunks:
                        flying.pop(chunk, None)
        return flying

    def _send(self, now: float, node: Node, ask: Ask) -> None:
        """A request goes out; what becomes of it is known as soon as it reaches the source's queue."""
        source = ask.source
        chunks: Sequence[int] = ask.chunks
        assert isinstance(source, Source)
        there_at = now + self._latency_s
        is_there = source.died_at > now
        retry_s = self._refusal(source, there_at) if is_there else None
        has_nothing = False
        if source.seeder is not None and is_there and retry_s is None and not chunks:
            chunks = source.seeder.choose(ask.any_of, ask.count, there_at)
            if has_nothing := not chunks:
                retry_s = _RECENT_RETRY_S
        number = len(chunks) or ask.count
        request = Request(node, source, chunks, number * self._chunk_bytes, now)
        node.requests[request] = None
        node.policy.started(source, number, request.size, False, now)
        self._count(source, retry_s is not None)
        if not is_there:
            self._at(now + self._scenario.silence_s, self._failed, request)
        elif retry_s is not None:
            told_at = self._computed(there_at + self._latency_s, self._scenario.request_cpu_s)
            self._at(told_at, self._refused, (request, retry_s, has_nothing))
        else:
            self._accept(there_at, request)

    def _accept(self, there_at: float, request: Request) -> None:
        """A source takes a request on: its answer leaves behind those before it."""
        node, source = request.node, request.source
        request.bits = bits = bits_of(request.chunks)
        node.lacks ^= node.lacks & bits
        starts_at = there_at if there_at > source.free_at else source.free_at
        source.free_at = request.sent_at = starts_at + request.size / source.rate
        source.queue.append(source.free_at)
        stall = _STALL_S if self._scenario.loss and self._random.random() < self._scenario.loss else 0.0
        self._at(starts_at + self._latency_s + stall, self._head, request)

    def _count(self, source: Source, is_refused: bool) -> None:
        tally = self.tally
        if source.seeder is None:
            tally.peer_requests += 1
            tally.peer_busy += is_refused
        else:
            tally.supernode_requests += 1
            tally.supernode_busy += is_refused

    def _refusal(self, source: Source, now: float) -> float | None:
        """When a busy source wants to be asked again, as imgdist/wire/slots.py says it; None: it takes the request."""
        queue = source.queue
        while queue and queue[0] <= now:
            queue.popleft()
        excess = source.free_at - now - self._scenario.busy_after_s
        if len(queue) < _SLOTS or excess <= 0.0:
            return None
        return min(max(excess, _BUSY_RETRY_S[0]), _BUSY_RETRY_S[1])

    def _refused(self, now: float, refusal: tuple[Request, float, bool]) -> None:
        request, retry_s, has_nothing = refusal
        node, source = request.node, request.source
        node.requests.pop(request, None)
        if has_nothing:
            node.policy.waits(source, LAYER, now, retry_s)
        else:
            node.policy.busy(source, now, retry_s)
        node.policy.ended(source, request.size, False, now)
        self._ask(now, node)

    def _head(self, now: float, request: Request) -> None:
        """The first byte of an answer: from here on it queues for the downlink."""
        node, source = request.node, request.source
        queue = int((source.free_at - request.sent_at) * source.rate)
        node.policy.answered(source, now - request.asked_at, queue, now, urgent=False)
        node.free_at = (now if now > node.free_at else node.free_at) + request.size / node.rate
        there_at = max(node.free_at, request.sent_at + self._latency_s)
        self._at(there_at, self._compute if self._scenario.cores else self._came, request)

    def _compute(self, now: float, request: Request) -> None:
        """An answer is there, and waits for the machine that all nodes share."""
        scenario = self._scenario
        cost_s = scenario.request_cpu_s + scenario.chunk_cpu_s * len(request.chunks)
        self._at(self._computed(now, cost_s), self._came, request)

    def _computed(self, now: float, cost_s: float) -> float:
        """When the machine has done what takes a core so long, after what it was given before."""
        if not self._scenario.cores:
            return now
        self._machine_free_at = max(now, self._machine_free_at) + cost_s / self._scenario.cores
        return self._machine_free_at

    def _came(self, now: float, request: Request) -> None:
        """An answer's last byte."""
        node, source, size = request.node, request.source, request.size
        if source.died_at < request.sent_at:
            self._at(max(now, source.died_at + self._scenario.silence_s), self._failed, request)
            return
        node.requests.pop(request, None)
        number = len(request.chunks)
        node.policy.came(source, size, now, number)
        node.policy.ended(source, size, False, now)
        if twice := node.have & request.bits:
            number -= twice.bit_count()
            self.tally.duplicate_bytes += size - number * self._chunk_bytes
        node.have |= request.bits
        node.missing -= number
        node.unflushed += number
        if source.seeder is None:
            self.tally.peer_bytes += size
        else:
            self.tally.supernode_bytes += size
        self._tell(now, node)
        if node.missing:
            self._ask(now, node)
        elif number:
            self._completed(now, node)

    def _completed(self, now: float, node: Node) -> None:
        """A node has everything."""
        self._left -= 1
        self.tally.done_at.append(now)
        if not node.is_slow:
            self.tally.fast_done_at.append(now)

    def _failed(self, now: float, request: Request) -> None:
        """Nothing came for long, or its source was given up."""
        node, source = request.node, request.source
        if request not in node.requests:
            return
        del node.requests[request]
        node.policy.failed(source, now)
        node.policy.ended(source, request.size, False, now)
        node.lacks |= request.bits ^ (request.bits & node.have)
        if source.seeder is None:
            node.policy.leave(source)
        self._ask(now, node)

    # Have-lists, as agent/swarm/news.py tells them.

    def _tell(self, now: float, node: Node) -> None:
        scenario = self._scenario
        is_much = node.unflushed >= scenario.flush_chunks or not node.missing
        wait = node.flushed_at + (scenario.flush_least_s if is_much else scenario.flush_s) - now
        if wait <= 0.0:
            self._flush(now, node)
        elif now + wait < node.flush_at:
            node.flush_at = now + wait
            self._at(now + wait, self._flush_due, node)

    def _flush_due(self, now: float, node: Node) -> None:
        if node.flush_at <= now:
            node.flush_at = float("inf")
            if node.unflushed:
                self._flush(now, node)

    def _flush(self, now: float, node: Node) -> None:
        node.source.have.bits = node.have
        node.unflushed = 0
        node.flushed_at = now
        self.tally.flushes += 1

    # Deaths.

    def _die(self, now: float, node: Node) -> None:
        """A node vanishes."""
        node.source.died_at = now
        if node.missing:
            self._left -= 1
        self.tally.died += 1

    def _kill_supernode(self, now: float, supernode: Source) -> None:
        supernode.died_at = now
        self._at(now + self._scenario.replaced_after_s, self._replace_supernode, supernode)

    def _replace_supernode(self, now: float, old: Source) -> None:
        new = new_supernode(self._scenario, self._random)
        for node in self._nodes:
            for request in [request for request in node.requests if request.source is old]:
                self._failed(now, request)
            node.policy.leave(old)
            node.policy.join(new, SourceKind.SUPERNODE, now=now)
            self._ask(now, node)

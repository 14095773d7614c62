"""Transfers among other agents: who has the bytes is asked, slow and lying ones are made up for, all is counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path

import pytest
from made_layers import MadeLayer, MemorySource
from stored_node import StoredNode

from agent.frames import Frames
from agent.layerstore import LayerStore
from agent.swarm.bitset import bits_of
from agent.swarm.policy import Policy
from agent.swarm.quarantine import DENIALS_MAX
from agent.transfer.fetch import Fetch, Kind
from agent.transfer.flights import PASSED_ON_FIRST_S, PASSED_ON_S
from agent.transfer.landing import REDIRECTS_MAX
from agent.transfer.sources import RECEIVERS_MAX, STRANGERS_MAX, ChunkSource, Sources
from agent.transfer.transfers import Transfers
from imgdist.demo.processes import wait_until
from imgdist.errors import NotFoundError, NotYetError, RedirectedError, TemporaryError, UnreachableError
from imgdist.wire.client import Told
from imgdist.wire.messages import Priority

LAYER = MadeLayer([4, 64, 64, 1, 30, 2], zero=[3])
ALL = bits_of(range(6))
START = [LAYER.index.start(chunk) for chunk in range(6)]
END = [LAYER.index.start(chunk) + LAYER.index.size(chunk) for chunk in range(6)]
WHOLE = LAYER.index.block0() + b"".join(LAYER.chunks)


class Node(StoredNode):
    """A member of the swarm with real stores, and what it was told."""

    def __init__(
        self, root: Path, supernodes: list[ChunkSource], connect: Callable[[str], ChunkSource | None], me: str
    ) -> None:
        super().__init__(root, keep_frames=True)
        self.complete = threading.Event()
        self.here: list[tuple[int, int]] = []
        self.transfers = Transfers(
            self.view,
            supernodes,
            twins=self.chunks.twins,
            on_layer_complete=lambda store: self.complete.set(),
            swarm=True,
            connect=connect,
            me=lambda: me,
            registry=self.registry,
        )
        self.transfers.listen(lambda node, chunk: self.here.append((node, chunk)))
        self.store = self.chunks.create(LAYER.index_data)
        self.transfers.add(self.store)
        self.transfers.trace([(self.store, 3)])  # a trace is known, so nothing is guessed behind a miss

    def meet(self, *peers: MemorySource, have: int = ALL) -> None:
        for peer in peers:
            self.transfers.join(peer)
            self.transfers.opened(peer, self.store.node, have)

    def fill(self) -> None:
        self.transfers.fill(self.store)
        assert self.complete.wait(10)
        assert image_of(self.store) == WHOLE


def image_of(store: LayerStore) -> bytes:
    return (store.directory / "image").read_bytes()


def require_true(value: bool) -> None:
    assert value


def peer(name: str, *layers: MadeLayer) -> MemorySource:
    return MemorySource(*(layers or (LAYER,)), name=name, kind="peer")


MakeNode = Callable[..., Node]


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[MakeNode]:
    nodes: list[Node] = []

    def make(
        *supernodes: ChunkSource, connect: Callable[[str], ChunkSource | None] = lambda address: None, me: str = ""
    ) -> Node:
        (tmp_path / str(len(nodes))).mkdir()
        nodes.append(Node(tmp_path / str(len(nodes)), list(supernodes), connect, me))
        return nodes[-1]

    yield make
    for node in nodes:
        node.stop()


def redirect_once(source: MemorySource, address: str) -> None:
    """Have its first answer send the node to who is there."""
    redirected: list[int] = []

    def redirect(numbers: tuple[int, ...], priority: Priority) -> None:
        if not redirected:
            redirected.extend(numbers)
            raise RedirectedError("busy", (address,))

    source.before = redirect


def hang(source: MemorySource) -> threading.Event:
    """Let every request to it wait until the source is closed; set once one has come."""
    reached = threading.Event()

    def wait(numbers: tuple[int, ...], priority: Priority) -> None:
        reached.set()
        source.closed.wait(30)
        raise UnreachableError("closed")

    source.before = wait
    return reached


def test_peers_give_what_they_have_and_a_supernode_the_rest_of_its_own_choice(make_node: MakeNode) -> None:
    supernode, other = MemorySource(LAYER), peer("a")
    node = make_node(supernode)
    node.meet(other, have=bits_of([1, 2]))
    node.fill()
    assert set(other.asked_chunks) == {1, 2}
    assert {chunk for chunks in supernode.chosen for chunk in chunks} == {0, 4, 5}
    assert node.figure("imgdist_chunk_bytes_total", source="peer") == sum(len(LAYER.encoded[c][1]) for c in (1, 2))
    assert node.figure("imgdist_chunk_bytes_total", source="supernode") == sum(
        len(LAYER.encoded[chunk][1]) for chunk in (0, 4, 5)
    )
    assert sorted(node.here) == [(node.store.node, chunk) for chunk in (0, 1, 2, 4, 5)]


def test_a_layer_comes_from_peers_alone_without_any_supernode(make_node: MakeNode) -> None:
    node = make_node()
    node.meet(peer("a"), have=bits_of([0, 1, 2]))
    node.meet(peer("b"), have=bits_of([4, 5]))
    node.fill()


def test_what_a_peer_gets_meanwhile_is_taken_from_it(make_node: MakeNode) -> None:
    node, other = make_node(), peer("a")
    node.meet(other, have=0)
    node.transfers.fill(node.store)
    assert other.asked == []
    node.transfers.got_all([(other, node.store.node, 0b111)])
    node.transfers.got_all([(other, node.store.node, 0b110000)])
    assert node.complete.wait(10)


def test_what_a_peer_says_to_have_beyond_the_layer_takes_no_memory(make_node: MakeNode) -> None:
    node, other = make_node(MemorySource(LAYER)), peer("a")
    node.meet(other, have=0)
    transfers, number = node.transfers, node.store.node
    fetch = Fetch(number, (1,), Kind.DEMAND)
    transfers._desk.answered(transfers._jobs[number], fetch, other, Told(0.001, 0, (1, (1 << 32) - 1)))
    assert transfers._policy._tables[number].of(other) == 0b10


def test_bodies_are_kept_as_they_came_for_others(make_node: MakeNode) -> None:
    node = make_node(MemorySource(LAYER))
    node.meet(peer("a"), have=0)
    node.fill()
    frames = node.store.frames
    assert isinstance(frames, Frames)
    for chunk in (0, 1, 2, 4, 5):
        found = frames.find(chunk)
        assert found is not None
        offset, length, encoding = found
        body = (node.store.directory / "frames").read_bytes()[offset : offset + length]
        assert (encoding, body) == (LAYER.encoded[chunk][0], bytes(LAYER.encoded[chunk][1]))


def test_a_node_that_has_met_nobody_keeps_no_bodies(make_node: MakeNode) -> None:
    node = make_node(MemorySource(LAYER))
    node.fill()
    frames = node.store.frames
    assert isinstance(frames, Frames)
    assert not any(frames.find(chunk) for chunk in range(6))


def test_a_lying_peer_is_found_out_and_the_chunk_fetched_elsewhere(make_node: MakeNode) -> None:
    liar, honest = peer("liar"), peer("honest")
    liar.spoil = lambda number, body: bytes([body[0] ^ 1]) + body[1:]
    node = make_node()
    node.meet(liar)
    node.transfers.fetch_now(node.store, [1]).add_done_callback(lambda future: None)
    while not node.figure("imgdist_chunk_rejected_total", source="peer", reason="protocol") + node.figure(
        "imgdist_chunk_rejected_total", source="peer", reason="digest"
    ):
        threading.Event().wait(0.005)
    node.meet(honest)
    node.fill()
    states = {row.source: (row.state, row.lies) for row in node.transfers.sources_rows()}
    assert states["liar"] == ("quarantined", 1) and states["honest"] == ("ok", 0)


def test_a_reader_is_helped_when_its_source_is_slow(make_node: MakeNode) -> None:
    supernode, slow = MemorySource(LAYER), peer("slow")
    hang(slow)
    node = make_node(supernode)
    node.meet(slow)
    node.transfers.miss(node.store.node, START[1], 4096)
    node.view.wait(("written", node.store.node, START[1], END[1]), 5)
    assert slow.asked_chunks == [1] and supernode.asked_chunks[0] == 1
    assert node.figure("imgdist_hedges_total", result="asked") == 1
    assert node.figure("imgdist_hedges_total", result="won") == 1
    assert node.figure("imgdist_read_wait_seconds_count") == 1


def test_a_job_is_helped_when_its_source_is_silent(make_node: MakeNode) -> None:
    supernode, silent = MemorySource(LAYER), peer("silent")
    reached = hang(silent)
    node = make_node(supernode)
    node.meet(silent)
    waiting = node.transfers.fetch_now(node.store, [0, 1, 2])
    assert reached.wait(10)
    waiting.result(10)
    assert sorted(supernode.asked_chunks) == [0, 1, 2] and not silent.closed.is_set()


def test_what_comes_twice_is_counted_and_written_once(make_node: MakeNode) -> None:
    supernode, slow = MemorySource(LAYER), peer("slow")
    go = threading.Event()
    slow.before = lambda numbers, priority: require_true(go.wait(10))
    node = make_node(supernode)
    node.meet(slow)
    node.transfers.miss(node.store.node, START[1], 4096)
    node.view.wait(("written", node.store.node, START[1], END[1]), 5)
    go.set()
    node.transfers.remove(node.store.node)  # returns when the slow one is over, too
    body = len(LAYER.encoded[1][1])
    assert node.figure("imgdist_chunk_repeated_bytes_total", source="peer") == body
    assert node.figure("imgdist_chunk_bytes_total", source="peer") == 0
    assert node.here.count((node.store.node, 1)) == 1


def test_a_peer_that_leaves_is_cut_off_and_its_chunks_come_from_others(make_node: MakeNode) -> None:
    dead, other = peer("dead"), peer("other")
    reached = hang(dead)
    node = make_node()
    node.meet(dead)
    waiting = node.transfers.fetch_now(node.store, [0, 1, 2])
    assert reached.wait(10)
    node.meet(other)
    node.transfers.leave(dead)
    waiting.result(10)
    assert sorted(set(other.asked_chunks)) == [0, 1, 2]
    assert [row.source for row in node.transfers.sources_rows()] == ["other"]


def test_a_peer_that_lacks_what_it_said_to_have_is_not_asked_for_it_again(make_node: MakeNode) -> None:
    empty, full = peer("empty", MadeLayer([1], seed=9)), peer("full")
    node = make_node()
    node.meet(empty, have=bits_of([1]))
    node.transfers.fill(node.store)
    with pytest.raises(FutureTimeoutError):
        node.transfers.fetch_now(node.store, [1]).result(0.3)
    assert {row.source: row.state for row in node.transfers.sources_rows()}["empty"] == "ok", "no fault of it"
    node.meet(full)
    node.fill()
    assert len(empty.asked_chunks) == len(set(empty.asked_chunks))


def test_a_peer_that_has_nothing_of_what_it_tells_is_soon_left_alone(make_node: MakeNode) -> None:
    empty, full = peer("empty", MadeLayer([1], seed=9)), peer("full")
    node = make_node()

    def state() -> str:
        return {row.source: row.state for row in node.transfers.sources_rows()}["empty"]

    node.meet(empty)
    node.transfers.fill(node.store)
    while state() != "quarantined":
        node.meet(empty)  # again and again it tells to have all
        threading.Event().wait(0.005)
    assert len(empty.asked) >= DENIALS_MAX
    node.meet(full)
    node.fill()


def test_the_first_wrong_chunk_of_a_peer_ends_its_answer(make_node: MakeNode) -> None:
    supernode, liar = MemorySource(LAYER), peer("liar")
    node = make_node(supernode)
    node.meet(liar)
    node.transfers.fetch_now(node.store, [0]).result(10)
    assert liar.asked_chunks == [0] and not supernode.asked
    spoiled: list[int] = []

    def spoil(number: int, body: bytes) -> bytes:
        spoiled.append(number)
        return bytes([body[0] ^ 1]) + body[1:]

    liar.spoil = spoil
    node.transfers.fetch_now(node.store, [1, 2, 4, 5]).result(10)
    assert liar.asked[1][1] == (1, 2, 4, 5) and spoiled == [1]
    assert sorted(supernode.asked_chunks) == [1, 2, 4, 5]
    assert {row.source: (row.state, row.lies) for row in node.transfers.sources_rows()}["liar"] == ("quarantined", 1)


def test_a_supernodes_answer_is_read_on_behind_a_wrong_chunk(make_node: MakeNode) -> None:
    supernode = MemorySource(LAYER)
    once = iter([True])
    supernode.spoil = lambda number, body: body[::-1] if number == 1 and next(once, False) else body
    node = make_node(supernode)
    node.transfers.fetch_now(node.store, [0, 1, 2, 4, 5]).result(10)
    assert sorted(supernode.asked_chunks) == [0, 1, 1, 2, 4, 5]


def test_a_busy_supernode_names_who_has_the_chunk(make_node: MakeNode) -> None:
    supernode = MemorySource(LAYER)
    strangers = {"10.0.0.1:1": peer("10.0.0.1:1", MadeLayer([1], seed=9)), "10.0.0.2:1": peer("10.0.0.2:1")}
    named: list[str] = []

    def connect(address: str) -> ChunkSource | None:
        named.append(address)
        return strangers.get(address)

    def redirect(numbers: tuple[int, ...], priority: Priority) -> None:
        raise RedirectedError("busy", ("[fe80::1]:9", *strangers))

    supernode.before = redirect
    node = make_node(supernode, connect=connect)
    for chunk in (1, 2):
        node.transfers.miss(node.store.node, START[chunk], 4096)
        node.view.wait(("written", node.store.node, START[chunk], END[chunk]), 5)
    assert named == ["[fe80::1]:9", *strangers], "each is connected to once"
    assert set(strangers["10.0.0.2:1"].asked_chunks) == {1, 2}  # on a busy machine a late one is asked for twice
    node.transfers.stop()
    assert all(stranger.closed.is_set() for stranger in strangers.values())


def test_who_is_named_may_be_getting_the_chunk_and_whoever_named_it_is_asked_last(make_node: MakeNode) -> None:
    supernode, stranger = MemorySource(LAYER), peer("10.0.0.1:1", MadeLayer([1], seed=9))
    redirect_once(supernode, "10.0.0.1:1")
    node = make_node(supernode, connect=lambda address: stranger)
    node.transfers.miss(node.store.node, START[1], 4096)
    node.view.wait(("written", node.store.node, START[1], END[1]), 5)
    assert (supernode.asked_chunks, supernode.waits) == ([1, 1], [0.0, 0.0])
    assert (stranger.asked_chunks, stranger.waits) == ([1], [PASSED_ON_FIRST_S])


def test_a_reader_stays_with_the_one_before_it_in_the_line(make_node: MakeNode) -> None:
    supernode, before = MemorySource(LAYER), peer("10.0.0.1:1")
    redirect_once(supernode, before.name)
    node = make_node(supernode, connect=lambda address: before, me="10.0.0.2:1")
    for chunk in (1, 2, 4):
        node.transfers.miss(node.store.node, START[chunk], 4096)
        node.view.wait(("written", node.store.node, START[chunk], END[chunk]), 5)
    assert supernode.asked_chunks == [1] and before.asked_chunks == [1, 2, 4]
    assert len(before.waits) == 3 and min(before.waits) >= PASSED_ON_S[0]


def test_a_reader_leaves_the_one_before_it_that_fails(make_node: MakeNode) -> None:
    supernode, before = MemorySource(LAYER), peer("10.0.0.1:1")
    redirect_once(supernode, before.name)
    node = make_node(supernode, connect=lambda address: before, me="10.0.0.2:1")

    def fail(numbers: tuple[int, ...], priority: Priority) -> None:
        if numbers != (1,):
            raise UnreachableError("gone")

    before.before = fail
    for chunk in (1, 2, 4):
        node.transfers.miss(node.store.node, START[chunk], 4096)
        node.view.wait(("written", node.store.node, START[chunk], END[chunk]), 5)
    assert supernode.asked_chunks == [1, 2, 4] and before.asked_chunks == [1, 2]


def test_a_reader_is_not_held_up_by_the_one_before_it_that_is_slow(make_node: MakeNode) -> None:
    supernode, before = MemorySource(LAYER), peer("10.0.0.1:1")
    redirect_once(supernode, before.name)
    node = make_node(supernode, connect=lambda address: before, me="10.0.0.2:1")
    slow = threading.Event()

    def serve_late(numbers: tuple[int, ...], priority: Priority) -> None:
        if numbers == (2,):
            node.view.wait(("written", node.store.node, START[2], END[2]), 5)
            slow.set()

    before.before = serve_late
    for chunk in (1, 2):
        node.transfers.miss(node.store.node, START[chunk], 4096)
        node.view.wait(("written", node.store.node, START[chunk], END[chunk]), 5)
    assert slow.wait(5) and supernode.asked_chunks == [1, 2], "another one helped"
    deadline = time.monotonic() + 5
    while node.transfers._scheduler.in_flight(node.store.node) and time.monotonic() < deadline:
        slow.wait(0.01)
    node.transfers.miss(node.store.node, START[4], 4096)
    node.view.wait(("written", node.store.node, START[4], END[4]), 5)
    assert before.asked_chunks == [1, 2], "and is stayed with no longer"


def test_one_that_lacks_what_is_missed_told_no_lie(make_node: MakeNode) -> None:
    supernode, before = MemorySource(LAYER), peer("10.0.0.1:1")
    redirect_once(supernode, before.name)
    node = make_node(supernode, connect=lambda address: before, me="10.0.0.2:1")
    node.meet(before, have=0)

    def lack(numbers: tuple[int, ...], priority: Priority) -> None:
        if numbers != (1,):
            raise NotFoundError("not here, or not yet")

    before.before = lack
    for chunk in (1, 2, 4, 5):
        node.transfers.miss(node.store.node, START[chunk], 4096)
        node.view.wait(("written", node.store.node, START[chunk], END[chunk]), 5)
    assert {row.source: row.state for row in node.transfers.sources_rows()}[before.name] == "ok"


def test_nobody_waits_for_who_may_wait_for_it(make_node: MakeNode) -> None:
    supernode, behind = MemorySource(LAYER), peer("10.0.0.3:1")
    redirect_once(supernode, behind.name)
    node = make_node(supernode, connect=lambda address: behind, me="10.0.0.2:1")
    for chunk in (1, 2):
        node.transfers.miss(node.store.node, START[chunk], 4096)
        node.view.wait(("written", node.store.node, START[chunk], END[chunk]), 5)
    assert (behind.asked_chunks, behind.waits) == ([1], [0.0]), "asked whether it has it, and not stayed with"


def test_a_peer_sends_a_reader_to_neighbours_only(make_node: MakeNode) -> None:
    connected: list[str] = []
    has, getting, further = peer("b:1"), peer("c:1"), peer("a:1")

    def redirect(numbers: tuple[int, ...], priority: Priority) -> None:
        raise RedirectedError("busy", ("d:1", further.name, getting.name))

    has.before = redirect
    node = make_node(connect=connected.append)
    node.meet(has)
    node.meet(getting, further, have=0)
    node.transfers.miss(node.store.node, START[1], 4096)
    node.view.wait(("written", node.store.node, START[1], END[1]), 5)
    assert (getting.asked_chunks, getting.waits) == ([1], [PASSED_ON_FIRST_S])
    assert not connected and not further.asked, "nor to who stands before the one that says so"
    assert {row.source: row.state for row in node.transfers.sources_rows()}[has.name] == "ok"


@pytest.mark.parametrize("gets_it", [True, False])
def test_who_gets_a_chunk_from_a_peer_is_waited_for_wherever_it_stands(
    make_node: MakeNode, gets_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_alone: list[object] = []
    busy = Policy.busy

    def note(policy: Policy, source: object, now: float, retry_after_s: float | None = None, **more: bool) -> None:
        left_alone.append(source)
        busy(policy, source, now, retry_after_s, **more)

    monkeypatch.setattr(Policy, "busy", note)
    has, getting = peer("b:1"), peer("d:1", *(() if gets_it else (MadeLayer([1], seed=9),)))

    def redirect(numbers: tuple[int, ...], priority: Priority) -> None:
        if len(has.asked) == 1:
            raise RedirectedError("busy", (getting.name,), from_here=True)

    has.before = redirect
    node = make_node(me="c:1")
    node.meet(has)
    node.meet(getting, have=0)
    node.transfers.trace([(node.store, 1)])
    wait_until(lambda: node.store.has(1), "the chunk that a trace foretells", 5)
    assert (getting.asked_chunks, getting.waits) == ([1], [PASSED_ON_FIRST_S])
    assert has.asked_chunks == ([1] if gets_it else [1, 1]), "who named the wrong one is asked again in the end"
    assert left_alone == ([] if gets_it else [has]), "but not for a while after that"


def test_a_reader_is_sent_to_who_is_ahead_and_waits_for_nobody_behind_it(make_node: MakeNode) -> None:
    """They might wait for each other. Who named one that has not got it yet is asked for the next chunk as before."""
    has, ahead = peer("b:1"), peer("d:1", MadeLayer([1], seed=9))

    def redirect(numbers: tuple[int, ...], priority: Priority) -> None:
        if has.asked_chunks == [1]:
            raise RedirectedError("busy", (ahead.name,), from_here=True)

    has.before = redirect
    node = make_node(me="c:1")
    node.meet(has)
    node.meet(ahead, have=0)
    for chunk in (1, 2):
        node.transfers.miss(node.store.node, START[chunk], 4096)
        node.view.wait(("written", node.store.node, START[chunk], END[chunk]), 5)
    assert (ahead.asked_chunks, ahead.waits) == ([1], [0.0])
    assert has.asked_chunks == [1, 1, 2]
    assert {row.source: row.state for row in node.transfers.sources_rows()}[has.name] == "ok"


def test_who_is_named_by_another_and_lacks_the_chunk_has_not_lied(make_node: MakeNode) -> None:
    has, named = peer("has"), peer("named", MadeLayer([1], seed=9))

    def redirect(numbers: tuple[int, ...], priority: Priority) -> None:
        if len(has.asked) % 2:
            raise RedirectedError("busy", ("named",))

    has.before = redirect
    node = make_node()
    node.meet(has)
    node.meet(named, have=0)
    for chunk in (0, 1, 2, 4):
        node.transfers.miss(node.store.node, START[chunk], 4096)
        node.view.wait(("written", node.store.node, START[chunk], END[chunk]), 5)
    assert len(named.asked) >= 3
    assert {row.source: (row.state, row.lies) for row in node.transfers.sources_rows()}["named"] == ("ok", 0)


def test_a_stranger_that_fails_or_lies_is_not_asked_again(make_node: MakeNode) -> None:
    supernode, liar = MemorySource(LAYER), peer("liar")
    liar.spoil = lambda number, body: bytes([body[0] ^ 1]) + body[1:]
    redirected: list[int] = []

    def redirect_once_a_chunk(numbers: tuple[int, ...], priority: Priority) -> None:
        if numbers[0] not in redirected:
            redirected.append(numbers[0])
            raise RedirectedError("busy", ("liar",))

    supernode.before = redirect_once_a_chunk
    node = make_node(supernode, connect=lambda address: liar)
    for chunk in (1, 2):
        node.transfers.miss(node.store.node, START[chunk], 4096)
        node.view.wait(("written", node.store.node, START[chunk], END[chunk]), 5)
    assert liar.asked_chunks == [1] and liar.closed.is_set()
    assert image_of(node.store)[START[1] : END[2]] == LAYER.chunks[1] + LAYER.chunks[2]


def test_strangers_are_few() -> None:
    made: dict[str, MemorySource] = {}

    def connect(address: str) -> ChunkSource:
        made[address] = peer(address)
        return made[address]

    sources = Sources(Policy(lambda: 0.0), connect)
    first = "10.1.0.0:1"
    for number in range(2 * STRANGERS_MAX):
        named = [f"10.0.{number}.{i}:1" for i in range(8)]
        assert [source.name for source in sources.at([first, *named, first], 0.0, strangers=True)] == [
            first, *named[: RECEIVERS_MAX - 1]
        ]  # fmt: skip
    assert sum(not source.closed.is_set() for source in made.values()) == STRANGERS_MAX
    assert not made[first].closed.is_set(), "it was named again and again"
    assert sources.at([first], 0.0, strangers=False) == []


def test_who_was_named_sends_nobody_to_strangers(make_node: MakeNode) -> None:
    supernode, busy = MemorySource(LAYER), peer("10.0.0.1:1")
    connected: list[str] = []

    def connect(address: str) -> ChunkSource | None:
        connected.append(address)
        return busy if address == busy.name else None

    def redirect(numbers: tuple[int, ...], priority: Priority) -> None:
        raise RedirectedError("busy", ("10.0.0.2:1",))

    def redirect_who_may(numbers: tuple[int, ...], priority: Priority) -> None:
        if not supernode.waits[-1]:
            raise RedirectedError("busy", ("10.0.0.1:1",))

    supernode.before, busy.before = redirect_who_may, redirect
    node = make_node(supernode, connect=connect)
    for chunk in (1, 2):
        node.transfers.miss(node.store.node, START[chunk], 4096)
        node.view.wait(("written", node.store.node, START[chunk], END[chunk]), 5)
    assert connected == [busy.name]
    assert len(busy.waits) == 2 and min(busy.waits) >= PASSED_ON_S[0], "once for each"


def test_who_had_no_more_to_name_or_named_enough_serves(make_node: MakeNode) -> None:
    supernode = MemorySource(LAYER)
    strangers = {f"10.0.0.{i}:1": peer(f"10.0.0.{i}:1", MadeLayer([1], seed=9)) for i in range(2 * REDIRECTS_MAX)}
    left = list(strangers)

    def redirect_who_may(numbers: tuple[int, ...], priority: Priority) -> None:
        if not supernode.waits[-1]:
            raise RedirectedError("busy", (left.pop(),))

    supernode.before = redirect_who_may
    node = make_node(supernode, connect=lambda address: strangers[address])
    node.transfers.miss(node.store.node, START[1], 4096)
    node.view.wait(("written", node.store.node, START[1], END[1]), 5)
    assert supernode.waits == [*[0.0] * REDIRECTS_MAX, PASSED_ON_FIRST_S]
    assert [len(stranger.asked) for stranger in strangers.values()] == [0] * REDIRECTS_MAX + [1] * REDIRECTS_MAX


def test_nobody_is_sent_to_a_neighbour_that_failed(make_node: MakeNode) -> None:
    supernode, failing = MemorySource(LAYER), peer("failing")

    def redirect_who_may(numbers: tuple[int, ...], priority: Priority) -> None:
        if not supernode.waits[-1]:
            raise RedirectedError("busy", ("failing",))

    supernode.before = redirect_who_may
    node = make_node(supernode)
    node.meet(failing, have=0)
    node.transfers._policy.failed(failing, time.monotonic(), 60.0)
    node.transfers.miss(node.store.node, START[1], 4096)
    node.view.wait(("written", node.store.node, START[1], END[1]), 5)
    assert supernode.waits == [0.0, PASSED_ON_FIRST_S] and not failing.asked


def test_a_reader_is_helped_when_a_stranger_is_silent(make_node: MakeNode) -> None:
    supernode, stranger = MemorySource(LAYER), peer("10.0.0.1:1")
    reached = hang(stranger)
    redirect_once(supernode, "10.0.0.1:1")
    node = make_node(supernode, connect=lambda address: stranger)
    node.transfers.miss(node.store.node, START[1], 4096)
    assert reached.wait(5)
    node.view.wait(("written", node.store.node, START[1], END[1]), 5)
    assert supernode.asked_chunks == [1, 1] and not stranger.closed.is_set()


def test_busy_is_not_failing(make_node: MakeNode) -> None:
    busy = peer("busy")
    refused = threading.Event()

    def refuse(numbers: tuple[int, ...], priority: Priority) -> None:
        if not refused.is_set():
            refused.set()
            raise TemporaryError("busy", retry_after_s=0.05)

    busy.before = refuse
    node = make_node()
    node.meet(busy)
    node.fill()
    (row,) = node.transfers.sources_rows()
    assert (row.failures, row.state) == (0, "ok")


@pytest.mark.parametrize("error", [NotYetError("later", 0.0001), RedirectedError("ask", ("10.0.0.9:1",))])
def test_a_peer_that_puts_a_node_off_is_asked_seldom(make_node: MakeNode, error: TemporaryError) -> None:
    connected: list[str] = []
    supernode, tease = MemorySource(LAYER), peer("tease")

    def put_off(numbers: tuple[int, ...], priority: Priority) -> None:
        raise error

    def slowly(numbers: tuple[int, ...], priority: Priority) -> None:
        supernode.closed.wait(0.05)

    supernode.before, tease.before = slowly, put_off
    node = make_node(supernode, connect=connected.append)
    node.meet(tease)
    node.fill()
    assert 0 < len(tease.asked) < 10, "not over and over"
    assert not connected, "nobody is asked because a peer says so"


def test_what_another_pack_has_is_copied_though_peers_have_it(make_node: MakeNode) -> None:
    twin = MadeLayer([4, 64, 64, 1, 30, 7], zero=[3])  # all but its metadata is the same
    other = peer("a", LAYER, twin)
    node = make_node()
    node.meet(other)
    node.fill()
    before = len(other.asked_chunks)
    second = node.chunks.create(twin.index_data)
    node.complete.clear()
    node.transfers.add(second)
    node.transfers.opened(other, second.node, ALL)
    node.transfers.fill(second)
    assert node.complete.wait(10)
    same = [chunk for chunk in range(6) if twin.chunks[chunk] in LAYER.chunks and chunk != 3]
    assert same, "the layers share chunks"
    assert set(other.asked_chunks[before:]) == set(range(6)) - {3} - set(same)


def test_removal_waits_for_requests_to_peers(make_node: MakeNode) -> None:
    other = peer("a")
    reached = hang(other)
    node = make_node()
    node.meet(other)
    waiting = node.transfers.fetch_now(node.store, [1])
    assert reached.wait(10)
    threading.Timer(0.05, node.transfers.leave, [other]).start()
    node.transfers.remove(node.store.node)
    with pytest.raises(NotFoundError, match="removed"):
        waiting.result(10)

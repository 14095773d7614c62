"""Agents as sources of each other: real transfers, stores, chunk servers and sockets on loopback, a supernode too."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from made_layers import FakeView, MadeLayer
from prometheus_client import CollectorRegistry

from agent.chunkstore import ChunkStore
from agent.database import Database
from agent.layerstore import LayerStore
from agent.swarm.bitset import bits_of
from agent.swarm.peers import PeerChunks, reach
from agent.swarm.policy import Policy
from agent.swarm.relay import Relay
from agent.swarm.shelf import Shelf
from agent.transfer.sources import ChunkSource
from agent.transfer.transfers import Transfers
from imgdist.errors import NotFoundError, TemporaryError, UnreachableError, UsageError
from imgdist.wire.messages import Priority
from imgdist.wire.ratelimit import RateLimit
from imgdist.wire.requests import AnyRequest, ChunkRequest
from imgdist.wire.server import ChunkServer
from imgdist.wire.uplink import Uplink
from supernode.seeding import Seeding

LAYER = MadeLayer([16] * 160 + [1], dense=True)  # 160 chunks of 64 KiB
COUNT = LAYER.index.chunk_count
SIZE = sum(len(body) for _, body in LAYER.encoded)


class Seed(PeerChunks):
    """A supernode as one agent sees it, which it tells where others reach it."""

    kind = "supernode"

    def __init__(self, address: str, node: str) -> None:
        super().__init__(address, node=lambda: node)


class Member:
    """An agent's transfers with a port of its own; `meet` is what a mesh would do."""

    def __init__(
        self, root: Path, seeds: Sequence[str], rate: float | None = None, seeding: Seeding | None = None
    ) -> None:
        root.mkdir()
        self.database = Database(root / "agent.db")
        self.chunks = ChunkStore(root / "packs", self.database, keep_frames=True)
        self.view = FakeView()
        self.registry = CollectorRegistry()
        self.complete = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        shelf = Shelf(self._find, lambda node, chunk: self.transfers.expects(node, chunk))
        self.server = ChunkServer(
            shelf,
            [self.listener],
            up_limit=RateLimit(rate) if rate else None,
            busy_after_s=0.05,
            seeder=seeding or Relay(lambda: self.address, shelf.has),
        )
        self.transfers = Transfers(
            self.view,
            [Seed(address, self.address) for address in seeds],
            twins=self.chunks.twins,
            on_layer_complete=lambda store: self.complete.set(),
            swarm=True,
            connect=lambda address: reach(address, allow_plain=False, node=lambda: self.address),
            me=lambda: self.address,
            registry=self.registry,
        )
        self.transfers.listen(shelf.arrived)
        self.store = self.chunks.create(LAYER.index_data)
        self.transfers.add(self.store)
        self.server.start()

    def _find(self, name: str) -> LayerStore | None:
        return self.chunks.get(bytes.fromhex(name))

    def meet(self, other: Member) -> PeerChunks:
        """Know what the other one has, now and later."""
        source = PeerChunks(other.address, node=lambda: self.address)
        self.transfers.join(source)
        have = bits_of(range(COUNT)) ^ bits_of(other.store.missing_chunks())
        self.transfers.opened(source, self.store.node, have)
        other.transfers.listen(lambda node, chunk: self.transfers.got_all([(source, self.store.node, 1 << chunk)]))
        return source

    def seed(self) -> None:
        """Have everything, as a supernode has."""
        for chunk, raw in enumerate(LAYER.chunks):
            self.store.write(chunk, memoryview(raw))
            assert self.store.frames is not None
            self.store.frames.append(chunk, *LAYER.encoded[chunk])

    def wait(self) -> None:
        assert self.complete.wait(30)
        whole = LAYER.index.block0() + b"".join(LAYER.chunks)
        assert (self.store.directory / "image").read_bytes() == whole

    def came(self, source: str) -> float:
        return self.registry.get_sample_value("imgdist_chunk_bytes_total", {"source": source}) or 0.0

    def stop(self) -> None:
        self.transfers.stop()
        self.server.stop(1.0)
        self.chunks.close()
        self.database.close()


MakeMember = Callable[..., Member]


@pytest.fixture
def make_member(tmp_path: Path) -> Iterator[MakeMember]:
    members: list[Member] = []

    def make(*seeds: str, rate: float | None = None, seeding: Seeding | None = None) -> Member:
        members.append(Member(tmp_path / str(len(members)), seeds, rate, seeding))
        return members[-1]

    yield make
    for member in members:
        member.stop()


def test_the_third_gets_its_bytes_from_the_first_two(make_member: MakeMember) -> None:
    supernode = make_member(seeding=Seeding())
    supernode.seed()
    first, second, third = [make_member(supernode.address) for _ in range(3)]
    first.transfers.fill(first.store)
    first.wait()
    assert first.came("supernode") == SIZE
    second.meet(first)
    second.transfers.fill(second.store)
    second.wait()
    third.meet(first)
    third.meet(second)
    third.transfers.fill(third.store)
    third.wait()
    assert second.came("peer") + second.came("supernode") == pytest.approx(SIZE, rel=0.1)
    assert third.came("peer") >= 0.6 * SIZE
    rows = {row.source: row for row in third.transfers.sources_rows()}
    assert all(rows[member.address].received_bytes for member in (first, second)), "both served"


def test_nodes_that_start_together_take_the_supernodes_bytes_about_once(make_member: MakeMember) -> None:
    """Its uplink is the narrow place: 10 MB at 8 MB/s each to three of them would take 4 s."""
    supernode = make_member(rate=8e6, seeding=Seeding())
    supernode.seed()
    members = [make_member(supernode.address) for _ in range(3)]
    for member in members:
        for other in members:
            if other is not member:
                member.meet(other)
    for member in members:
        member.transfers.fill(member.store)
    for member in members:
        member.wait()
    assert sum(member.came("supernode") for member in members) <= 1.6 * SIZE
    assert all(member.came("peer") for member in members)


def test_a_member_that_dies_takes_nothing_with_it(make_member: MakeMember) -> None:
    first, second, third = make_member(), make_member(), make_member()
    first.seed()
    second.seed()
    dying = third.meet(first)
    third.meet(second)
    third.transfers.fill(third.store)
    deadline = time.monotonic() + 10
    while not third.came("peer"):
        assert time.monotonic() < deadline, "nothing comes from a peer"
        threading.Event().wait(0.002)
    first.server.stop(0.0)
    third.transfers.leave(dying)
    third.wait()


def test_a_crowd_that_misses_the_same_chunks_passes_them_on(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Uplink, "is_occupied", lambda uplink, node: True)  # as slow links would be
    monkeypatch.setattr(Policy, "hedge_at", lambda policy, asked_at, now: None)  # on a busy machine all are late
    monkeypatch.setattr(Policy, "late_at", lambda policy, source, asked_at: None)
    supernode = make_member(seeding=Seeding())
    supernode.seed()
    members = [make_member(supernode.address) for _ in range(4)]
    for member in members:
        for other in members:
            if other is not member:
                member.meet(other)
    for member in members:
        member.transfers.trace([(member.store, COUNT - 1)])  # a trace is known, so nothing is guessed behind a miss
    for chunk in range(8):
        start = LAYER.index.start(chunk)
        for member in members:
            member.transfers.miss(member.store.node, start, 4096)
        deadline = time.monotonic() + 20
        while not all(member.store.has(chunk) for member in members):
            assert time.monotonic() < deadline, f"chunk {chunk} does not come"
            threading.Event().wait(0.002)
    size = sum(len(LAYER.encoded[chunk][1]) for chunk in (*range(8), COUNT - 1))
    assert sum(member.came("supernode") for member in members) <= 2 * size


def test_misses_are_served_by_a_peer(make_member: MakeMember) -> None:
    first, second = make_member(), make_member()
    first.seed()
    second.meet(first)
    second.transfers.trace([(second.store, COUNT - 1)])
    start = LAYER.index.start(7)
    second.transfers.miss(second.store.node, start, 4096)
    second.view.wait(("written", second.store.node, start, start + LAYER.index.size(7)))
    assert second.view.bytes[second.store.node, start] == LAYER.chunks[7]


# The source itself.


def fetched(source: ChunkSource, numbers: Sequence[int]) -> list[tuple[int, int, bytes]]:
    got: list[tuple[int, int, bytes]] = []
    source.fetch(
        ChunkRequest(LAYER.name, tuple(numbers), Priority.FILL), lambda n, e, body: got.append((n, e, bytes(body)))
    )
    return got


def test_a_peer_serves_what_it_kept_and_leaves_the_choice_to_who_asks(make_member: MakeMember) -> None:
    member = make_member()
    member.seed()
    peer = PeerChunks(member.address)
    try:
        assert fetched(peer, [3, 5]) == [(n, LAYER.encoded[n][0], bytes(LAYER.encoded[n][1])) for n in (3, 5)]
        with pytest.raises(NotFoundError):
            peer.fetch(AnyRequest.among(LAYER.name, 8, 1, Priority.FILL), lambda n, e, body: None)
    finally:
        peer.close()
    with pytest.raises(TemporaryError, match="closed"):
        fetched(peer, [3])


def test_two_of_one_address_are_the_same_peer() -> None:
    one, same, other = PeerChunks("127.0.0.1:7651"), PeerChunks("127.0.0.1:7651"), PeerChunks("127.0.0.1:7652")
    assert one == same and hash(one) == hash(same) and one != other
    assert (one.name, one.kind) == ("127.0.0.1:7651", "peer")
    with pytest.raises(UsageError):
        PeerChunks("localhost:7651")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UnreachableError):
            fetched(PeerChunks(f"127.0.0.1:{unused.getsockname()[1]}"), [1])


@pytest.mark.parametrize("address", ["10.0.0.1:7651", "nonsense", "unix:///run/x", "host:1"])
def test_who_must_not_be_asked_is_not(address: str) -> None:
    assert reach(address, allow_plain=False) is None
    assert (reach(address, allow_plain=True) is None) == (address != "10.0.0.1:7651")
    assert reach("[::1]:7651", allow_plain=False) == PeerChunks("[::1]:7651")

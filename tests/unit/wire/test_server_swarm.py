"""What a chunk server does for a swarm: says what waits, sends members elsewhere, keeps to a rate, lets others choose,
hands over the mesh. Over real sockets."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from imgdist.errors import NotFoundError, NotYetError, ProtocolError, TemporaryError
from imgdist.wire import answer as answer_module
from imgdist.wire import mesh
from imgdist.wire import server as server_module
from imgdist.wire import slots as slots_module
from imgdist.wire.address import Address
from imgdist.wire.answer import ChunkReader, Row
from imgdist.wire.arrivals import Arrivals
from imgdist.wire.client import ChunkClient, RedirectedError, Told
from imgdist.wire.messages import Frame, Priority, encode_frame
from imgdist.wire.precedence import Precedence
from imgdist.wire.ratelimit import RateLimit
from imgdist.wire.requests import AnyRequest, ChunkRequest
from imgdist.wire.responses import SWITCHING, encode_head
from imgdist.wire.server import ChunkServer
from imgdist.wire.serving import WAIT_MAX_S, WAITING_MAX

PACK, BODY = "cd" * 32, os.urandom(100_000)
HELLO = b"GET /v1/hello HTTP/1.1\r\n\r\n"


class Pack:
    """A pack of 100 times the same body; `on_open` lets a test hold a slot."""

    identity, count = 1, 100

    def __init__(self) -> None:
        self.length = len(BODY)
        self.arrivals = Arrivals()
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the fixture
        self.file.write(BODY)
        self.file.flush()
        self.on_open: Callable[[], None] = lambda: None
        self.waits: list[tuple[Sequence[int], float]] = []
        self.on_wait: Callable[[], None] = lambda: None

    def row(self, number: int) -> Row:
        return Row(self.file.fileno(), 0, self.length, 0)

    def wait(self, numbers: Sequence[int], seconds: float) -> bool:
        self.waits.append((numbers, seconds))
        self.on_wait()
        return True

    def open(self, name: str) -> Pack | None:
        self.on_open()
        return self if name == PACK else None


class Choices:
    """A Seeder that answers as it is told, and keeps what it was told."""

    def __init__(self) -> None:
        self.chosen: Sequence[int] | Exception = (5, 3)
        self.others: Sequence[str] = ()
        self.insists = True
        self.has = False
        self.calls: list[tuple[object, ...]] = []

    def choose(self, name: str, reader: ChunkReader, lacks: int, count: int, node: str | None) -> Sequence[int]:
        self.calls.append(("choose", lacks, count, node))
        if isinstance(self.chosen, Exception):
            raise self.chosen
        return self.chosen

    def begun(self, name: str, reader: ChunkReader, numbers: Sequence[int], node: str | None) -> None:
        self.calls.append(("begun", numbers, node))

    def sent(self, name: str, numbers: Sequence[int], node: str | None) -> None:
        self.calls.append(("sent", numbers, node))

    def elsewhere(
        self, name: str, numbers: Sequence[int], node: str, *, waits: bool, foretold: bool = False
    ) -> Sequence[str]:
        return () if waits and self.insists else self.others

    def gives(self, name: str, numbers: Sequence[int]) -> bool:
        return self.has


@pytest.fixture
def pack() -> Iterator[Pack]:
    made = Pack()
    yield made
    made.file.close()


@contextmanager
def serving(pack: Pack, **options: object) -> Iterator[Address]:
    listener = Address.parse("127.0.0.1:0").listen()
    address = Address.parse(f"127.0.0.1:{listener.getsockname()[1]}")
    server = ChunkServer(pack, [listener], **options)  # type: ignore[arg-type]
    server.start()
    try:
        yield address
    finally:
        server.stop()


@contextmanager
def asking(address: Address, node: str | None = None) -> Iterator[ChunkClient]:
    client = ChunkClient(address, read_timeout_s=10, node=node)
    try:
        yield client
    finally:
        client.close()


def fetch(client: ChunkClient, priority: Priority, numbers: Sequence[int] = (0,)) -> Told:
    told: list[Told] = []
    client.fetch(ChunkRequest(PACK, tuple(numbers), priority), lambda number, encoding, body: None, told.append)
    return told[0]


@contextmanager
def held(pack: Pack, address: Address, priority: Priority, count: int) -> Iterator[None]:
    """So many requests of the priority, each of eight chunks, are in slots and do not go on, within the block."""
    release, entered = threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        if not release.is_set() and threading.current_thread().name.startswith(f"chunks-{priority.value}"):
            entered.release()
            release.wait(20)

    pack.on_open = hold
    with asking(address) as client:
        threads = [threading.Thread(target=fetch, args=(client, priority, range(8))) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                assert entered.acquire(timeout=10)
            yield
        finally:
            release.set()
            for thread in threads:
                thread.join()


def test_one_fills_at_a_time_while_a_slow_link_is_for_others(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Precedence, "is_narrow", True)
    with (
        serving(pack, busy_after_s=0.05) as address,
        asking(address, node="10.0.0.1:7651") as member,
        held(pack, address, Priority.FILL, 1),
    ):
        with pytest.raises(TemporaryError) as caught:
            fetch(member, Priority.FILL)
        assert caught.value.retry_after_s == 1.0
        fetch(member, Priority.DEMAND)


def test_an_answer_tells_what_else_waits_and_what_came(pack: Pack) -> None:
    with serving(pack) as address, asking(address) as client:
        pack.arrivals.add(7)
        first = fetch(client, Priority.DEMAND)
        assert (first.queue_bytes, first.have) == (0, (7,))
        with held(pack, address, Priority.TRACE, 2):
            assert fetch(client, Priority.DEMAND).queue_bytes == 0
            queue_bytes = fetch(client, Priority.FILL).queue_bytes
            assert queue_bytes is not None
            assert 16 * len(BODY) / 2 < queue_bytes < 16 * len(BODY) * 2  # the sizes are not known yet
        pack.arrivals.add(9)
        assert fetch(client, Priority.DEMAND).have == (9,)
        assert fetch(client, Priority.DEMAND).have == ()


def test_a_member_is_told_at_once_to_fill_elsewhere(pack: Pack) -> None:
    with serving(pack, busy_after_s=0.05) as address, asking(address, node="") as member, asking(address) as other:
        with held(pack, address, Priority.FILL, slots_module.SLOTS[Priority.FILL]):
            with pytest.raises(TemporaryError, match="busy") as caught:
                fetch(member, Priority.FILL)
            assert caught.value.retry_after_s is not None
            assert 0.01 <= caught.value.retry_after_s <= 1.0
            fetch(member, Priority.DEMAND)
            waiting = threading.Thread(target=fetch, args=(other, Priority.FILL))
            waiting.start()  # who has nowhere else to go waits
            waiting.join(0.1)
            assert waiting.is_alive()
        waiting.join(10)
        assert not waiting.is_alive()
        fetch(member, Priority.FILL)


def test_a_member_waits_for_a_queue_that_is_short(pack: Pack) -> None:
    with serving(pack, busy_after_s=3600.0) as address, asking(address, node="") as member:
        with held(pack, address, Priority.FILL, slots_module.SLOTS[Priority.FILL]):
            waiting = threading.Thread(target=fetch, args=(member, Priority.FILL))
            waiting.start()
            waiting.join(0.1)
            assert waiting.is_alive()
        waiting.join(10)


def test_a_members_demand_is_sent_to_receivers_if_there_are_any(pack: Pack) -> None:
    seeder = Choices()
    slots = {Priority.DEMAND: 2, Priority.TRACE: 1, Priority.FILL: 1}
    with (
        serving(pack, busy_after_s=0.05, seeder=seeder, slots=slots) as address,
        asking(address, node="10.0.0.1:7651") as member,
    ):
        with held(pack, address, Priority.DEMAND, 2):
            seeder.others = ("10.0.0.2:7651", "[::1]:7651")
            with pytest.raises(RedirectedError) as caught:
                fetch(member, Priority.DEMAND)
            assert caught.value.addresses == ("10.0.0.2:7651", "[::1]:7651")
            assert caught.value.from_here == seeder.has
            seeder.others = ()
            waiting = threading.Thread(target=fetch, args=(member, Priority.DEMAND))
            waiting.start()
            waiting.join(0.1)
            assert waiting.is_alive()
        waiting.join(10)


def test_who_was_sent_elsewhere_before_is_served(pack: Pack) -> None:
    seeder = Choices()
    seeder.others = ("10.0.0.2:7651",)
    with (
        serving(pack, busy_after_s=0.05, seeder=seeder) as address,
        asking(address, node="10.0.0.1:7651") as member,
        held(pack, address, Priority.TRACE, 1),
    ):
        with pytest.raises(RedirectedError):
            fetch(member, Priority.DEMAND)
        member.fetch(ChunkRequest(PACK, (0,), Priority.DEMAND, wait_s=1.0), lambda number, encoding, body: None)


def test_who_waits_for_what_comes_takes_nothing_of_the_link(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    release, entered, urgent = threading.Event(), threading.Event(), []

    def wait() -> None:
        entered.set()
        release.wait(20)

    pack.on_wait = wait
    monkeypatch.setattr(Precedence, "stand_back", lambda precedence, sock: urgent.append(precedence._urgent))

    def ask() -> None:
        client.fetch(
            ChunkRequest(PACK, tuple(range(8)), Priority.DEMAND, wait_s=1.0), lambda number, encoding, body: None
        )

    with serving(pack) as address, asking(address) as client:
        waiting = threading.Thread(target=ask)
        waiting.start()
        try:
            assert entered.wait(10)
            assert fetch(client, Priority.FILL).queue_bytes == 0
            assert set(urgent) == {0}, "fill does not stand back for it"
        finally:
            release.set()
            waiting.join()


def test_of_those_who_waited_for_the_same_the_first_in_line_is_served(pack: Pack) -> None:
    seeder = Choices()
    seeder.insists = False

    def name_another() -> None:
        seeder.others, seeder.has = ("10.0.0.2:7651",), True

    pack.on_wait = name_another
    with serving(pack, busy_after_s=0.05, seeder=seeder) as address, asking(address, node="10.0.0.3:7651") as member:
        request = ChunkRequest(PACK, (0,), Priority.DEMAND, wait_s=1.0)
        with pytest.raises(RedirectedError) as caught:
            member.fetch(request, lambda number, encoding, body: None)
        assert caught.value.addresses == ("10.0.0.2:7651",) and caught.value.from_here
        pack.on_wait, seeder.others = lambda: None, ()
        member.fetch(request, lambda number, encoding, body: None)


def test_a_member_is_served_while_nobody_else_is(pack: Pack) -> None:
    seeder = Choices()
    seeder.others = ("10.0.0.2:7651",)
    with (
        serving(pack, busy_after_s=0.05, seeder=seeder) as address,
        asking(address, node="10.0.0.1:7651") as member,
        asking(address) as other,
    ):
        for _ in range(3):  # within a chain of misses, too, whose connection its slot keeps
            fetch(member, Priority.DEMAND)
        fetch(other, Priority.DEMAND)


def test_a_chain_of_misses_is_sent_elsewhere_once_others_are_served(pack: Pack) -> None:
    seeder = Choices()
    with (
        serving(pack, busy_after_s=0.05, seeder=seeder) as address,
        asking(address, node="10.0.0.1:7651") as member,
    ):
        fetch(member, Priority.DEMAND)
        with held(pack, address, Priority.TRACE, 1):
            seeder.others = ("10.0.0.2:7651",)
            for _ in range(2):
                with pytest.raises(RedirectedError):
                    fetch(member, Priority.DEMAND)
            with pytest.raises(RedirectedError):
                fetch(member, Priority.TRACE)
            fetch(member, Priority.FILL)
        fetch(member, Priority.DEMAND)


def test_what_is_on_its_way_is_waited_for_if_that_is_asked(pack: Pack) -> None:
    with serving(pack) as address, asking(address) as client:
        fetch(client, Priority.DEMAND)
        assert pack.waits == []
        client.fetch(ChunkRequest(PACK, (1, 2), Priority.DEMAND, wait_s=0.75), lambda number, encoding, body: None)
        assert pack.waits == [((1, 2), 0.75)]
        client.fetch(ChunkRequest(PACK, (1,), Priority.DEMAND, wait_s=9.5), lambda number, encoding, body: None)
        assert pack.waits[1:] == [((1,), WAIT_MAX_S)]


def test_few_may_wait_at_once(pack: Pack) -> None:
    release, entered = threading.Event(), threading.Semaphore(0)

    def wait() -> None:
        entered.release()
        release.wait(20)

    pack.on_wait = wait

    def ask() -> None:
        client.fetch(ChunkRequest(PACK, (1,), Priority.DEMAND, wait_s=1.0), lambda number, encoding, body: None)

    with serving(pack) as address, asking(address) as client:
        threads = [threading.Thread(target=ask) for _ in range(WAITING_MAX)]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                assert entered.acquire(timeout=10)
            ask()  # is answered at once
        finally:
            release.set()
            for thread in threads:
                thread.join()


def test_the_server_chooses_and_keeps_account(pack: Pack) -> None:
    seeder = Choices()
    with serving(pack, seeder=seeder) as address, asking(address, node="10.0.0.1:7651") as client:
        chosen: list[tuple[int, ...]] = []
        got: list[int] = []

        def ask(lacks: int, count: int = 2) -> None:
            client.fetch(
                AnyRequest.among(PACK, lacks, count, Priority.FILL),
                lambda number, encoding, body: got.append(number),
                on_numbers=chosen.append,
            )

        ask(0b111111)
        assert (chosen, got) == ([(5, 3)], [5, 3])
        fetch(client, Priority.DEMAND, [8])
        seeder.chosen = TemporaryError("only just now", 0.125)
        with pytest.raises(TemporaryError, match="only just") as caught:
            ask(1)
        assert caught.value.retry_after_s == 0.125
        seeder.chosen = NotYetError("others got it", 0.1)
        with pytest.raises(NotYetError, match="others got it") as caught:
            ask(1)
        assert caught.value.retry_after_s == 0.1
        seeder.chosen = NotFoundError("nothing of that")
        with pytest.raises(NotFoundError, match="nothing of that"):
            ask(1)
        for bad, count in (((4,), 2), ((5, 3), 1), ((5, 5), 2)):
            seeder.chosen = bad
            with pytest.raises(ProtocolError, match="that are missing"):
                ask(0b101000, count)
        assert chosen == [(5, 3)]
    node = "10.0.0.1:7651"
    assert seeder.calls[0] == ("choose", 0b111111, 2, node)
    kept = [call for call in seeder.calls if call[0] != "choose"]  # by the thread of each connection
    assert kept[:3] == [("sent", (5, 3), node), ("begun", (8,), node), ("sent", (8,), node)]


def test_who_chooses_nothing_says_so(pack: Pack) -> None:
    with serving(pack) as address, asking(address) as client, pytest.raises(NotFoundError, match="by their numbers"):
        client.fetch(AnyRequest.among(PACK, 1, 1, Priority.FILL), lambda number, encoding, body: None)


def test_the_rate_is_kept_and_demand_goes_first(pack: Pack) -> None:
    with serving(pack, up_limit=RateLimit(2e6)) as address, asking(address) as client:
        fetch(client, Priority.FILL, [0, 1])  # the burst
        began = time.monotonic()
        filling = threading.Thread(target=fetch, args=(client, Priority.FILL, range(10)))
        filling.start()
        fetch(client, Priority.DEMAND)
        assert time.monotonic() - began < 0.3
        filling.join(20)
        took = time.monotonic() - began
    assert took > (11 * len(BODY) - 300_000) / 2e6


def test_a_low_rate_is_no_fault_of_the_readers(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed_s = 1.0  # beside other work two threads that read and write at once may need some of it
    monkeypatch.setattr(answer_module, "REQUEST_S", allowed_s)
    monkeypatch.setattr(answer_module, "RATE_LEAST", 1 << 30)
    with serving(pack, up_limit=RateLimit(1e6)) as address, asking(address) as client:
        began = time.monotonic()
        fetch(client, Priority.FILL, range(40))  # beyond the burst, 1 MB: 3 s
        assert time.monotonic() - began > 2 * allowed_s


def test_threads_begin_when_they_are_needed(pack: Pack) -> None:
    def slots() -> list[str]:
        return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("chunks-"))

    with serving(pack) as address, asking(address) as client:
        assert slots() == ["chunks-watch"]
        fetch(client, Priority.FILL)
        assert slots() == ["chunks-fill-0", "chunks-watch"]
        with held(pack, address, Priority.TRACE, 3):
            assert slots()[1:] == ["chunks-trace-0", "chunks-trace-1", "chunks-trace-2", "chunks-watch"]
    assert slots() == []


def exchange(sock: socket.socket, request: bytes, size: int) -> bytes:
    sock.settimeout(10)
    sock.sendall(request)
    got = b""
    while len(got) < size and (data := sock.recv(65536)):
        got += data
    return got


def test_hello_is_answered_and_the_connection_goes_on(pack: Pack) -> None:
    expected = encode_head(200, 5) + b"it is"
    with serving(pack, hello=lambda: b"it is") as address, address.connect(5) as sock:
        assert exchange(sock, HELLO, len(expected)) == expected
        assert exchange(sock, HELLO + HELLO, 2 * len(expected)) == expected * 2
        request = f"GET /v1/chunks/{PACK}/1 HTTP/1.1\r\n\r\n".encode()
        got = exchange(sock, request, 400)
        assert got.startswith(b"HTTP/1.1 200 ")
        while len(got.partition(b"\r\n\r\n")[2]) < 16 + len(BODY):
            got += sock.recv(65536)
        assert got.endswith(encode_frame(Frame(1, 0, len(BODY), len(BODY))) + BODY)


@pytest.mark.parametrize("request_", [HELLO, mesh.upgrade_request("a:1")])
def test_what_is_not_offered_is_not_found(pack: Pack, request_: bytes) -> None:
    with serving(pack) as address, address.connect(5) as sock:
        assert exchange(sock, request_, 20).startswith(b"HTTP/1.1 404 ")


def test_the_mesh_gets_the_connection_and_what_came_of_it(pack: Pack) -> None:
    taken: list[tuple[socket.socket, bytes]] = []
    came = threading.Event()

    def on_mesh(sock: socket.socket, leftover: bytes) -> None:
        taken.append((sock, leftover))
        came.set()

    with serving(pack, on_mesh=on_mesh, hello=lambda: b"") as address, address.connect(5) as sock:
        got = exchange(sock, HELLO + mesh.upgrade_request("a:1") + b"first", len(encode_head(200, 0) + SWITCHING))
        assert got == encode_head(200, 0) + SWITCHING
        assert came.wait(10)
        ours, leftover = taken[0]
        assert leftover == b"first"
        assert ours.gettimeout() is None
        sock.sendall(b"more")
        assert ours.recv(100) == b"more"
    ours.sendall(b"it outlives the server")  # which has stopped
    ours.close()


def test_a_mesh_that_refuses_costs_one_connection(pack: Pack) -> None:
    def on_mesh(sock: socket.socket, leftover: bytes) -> None:
        raise TemporaryError("enough neighbours")

    with serving(pack, on_mesh=on_mesh) as address, asking(address) as client:
        with address.connect(5) as sock:
            assert exchange(sock, mesh.upgrade_request("a:1"), 10**6) == SWITCHING
        fetch(client, Priority.DEMAND)


def test_who_reads_nothing_and_asks_for_the_mesh_holds_nobody_up(pack: Pack, tmp_path: Path) -> None:
    """Its buffer is full of answers that it did not read: 101 finds no room there."""
    path = str(tmp_path / "s")
    pack.length = 1000
    listener = Address(path=path).listen()
    slots = dict.fromkeys(Priority, 1)
    server = ChunkServer(pack, [listener], on_mesh=lambda sock, leftover: sock.close(), slots=slots)
    server.start()
    request = f"GET /v1/chunks/{PACK}/1 HTTP/1.1\r\n\r\n".encode()
    try:
        with Address(path=path).connect(5) as sock:
            room = fill_unread(sock, request, 10**6)
        with Address(path=path).connect(5) as sock, Address(path=path).connect(5) as other:
            assert fill_unread(sock, request, room) == room
            sock.sendall(mesh.upgrade_request("a:1"))
            other.settimeout(5)
            for _ in range(3):
                assert exchange(other, request, 1000).startswith(b"HTTP/1.1 200 ")
    finally:
        server.stop()


def fill_unread(sock: socket.socket, request: bytes, most: int) -> int:
    """Ask, one by one, without reading; how many answers of more than 1000 bytes there was room for."""
    for count in range(most):
        before = unread(sock)
        sock.sendall(request)
        deadline = time.monotonic() + 0.5
        while unread(sock) <= before + 1000:
            if time.monotonic() > deadline:
                return count
            time.sleep(0.001)
    return most


def unread(sock: socket.socket) -> int:
    (size,) = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))
    return int(size)


def test_readers_that_stall_do_not_make_a_server_busy(pack: Pack) -> None:
    slots = {Priority.DEMAND: 1, Priority.TRACE: 1, Priority.FILL: 2}
    request = f"GET /v1/chunks/{PACK}/0-63?p=fill HTTP/1.1\r\n\r\n".encode()
    with serving(pack, busy_after_s=0.05, slots=slots) as address, asking(address, node="") as member:
        stalled = [address.connect(5) for _ in range(2)]
        try:
            for sock in stalled:
                sock.sendall(request)
                assert sock.recv(9) == b"HTTP/1.1 "
            refused, deadline = 0, time.monotonic() + 5.0
            while True:
                try:
                    fetch(member, Priority.FILL)
                    break
                except TemporaryError as error:
                    assert time.monotonic() < deadline, f"refused {refused} times: {error}"
                    refused += 1
                    time.sleep(error.retry_after_s or 0.0)
        finally:
            for sock in stalled:
                sock.close()


class Full(socket.socket):
    """A listener of a process without a free descriptor, until it `has_room`."""

    has_room = False
    asked = 0

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        self.asked += 1
        if not self.has_room:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_without_a_descriptor_it_is_asked_a_few_times_a_second(pack: Pack) -> None:
    listener = Full()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    address = Address("127.0.0.1", listener.getsockname()[1])
    server = ChunkServer(pack, [listener])
    server.start()
    try:
        with address.connect(5) as sock:
            sock.settimeout(0.7)
            with pytest.raises(TimeoutError):
                exchange_at_once(sock, HELLO)
            assert 1 <= listener.asked < 10
            listener.has_room = True
            assert exchange(sock, HELLO, 20).startswith(b"HTTP/1.1 404 ")
    finally:
        server.stop()


def exchange_at_once(sock: socket.socket, request: bytes) -> bytes:
    sock.sendall(request)
    return sock.recv(100)


def test_connections_are_bounded_and_idle_ones_make_room(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CONNECTIONS_MAX", 2)
    with serving(pack) as address, address.connect(5) as first, address.connect(5) as second:
        for sock in (first, second):
            assert exchange(sock, HELLO, 20).startswith(b"HTTP/1.1 404 ")
        with address.connect(5) as third:
            assert exchange(third, b"", 1) == b""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with address.connect(5) as later, suppress(ConnectionError):
                if exchange(later, HELLO, 20).startswith(b"HTTP/1.1 404 "):
                    break
        assert time.monotonic() < deadline
        assert exchange(first, b"", 1) == b"" or exchange(second, b"", 1) == b""

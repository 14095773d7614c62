"""Chunk client and server against each other over real sockets, and the client against broken servers."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from parts import require

from imgdist.errors import CorruptError, NotFoundError, ProtocolError, TemporaryError
from imgdist.wire import answer as answer_module
from imgdist.wire import connection as connection_module
from imgdist.wire import precedence
from imgdist.wire import server as server_module
from imgdist.wire import slots as slots_module
from imgdist.wire.address import Address
from imgdist.wire.answer import Row
from imgdist.wire.client import ChunkClient
from imgdist.wire.connection import Connection
from imgdist.wire.messages import FRAME_SIZE, Frame, Priority, encode_frame
from imgdist.wire.requests import ChunkRequest, encode
from imgdist.wire.responses import encode_head
from imgdist.wire.server import ChunkServer
from imgdist.wire.session import Session
from imgdist.wire.slots import SLOTS

PACK = "cd" * 32
BODIES = [os.urandom(262144), b"", os.urandom(1), os.urandom(100_000)]


class FileReader:
    """A pack of BODIES in a temporary file."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the fixture
        self.file.write(b"".join(BODIES))
        self.file.flush()

    identity, count, arrivals = 1, len(BODIES), None

    def row(self, number: int) -> Row:
        if number >= len(BODIES):
            raise NotFoundError(f"chunk {number} is not there")
        return Row(self.file.fileno(), sum(map(len, BODIES[:number])), len(BODIES[number]), 0)

    def wait(self, numbers: Sequence[int], seconds: float) -> bool:
        raise NotImplementedError


class Shelf:
    """Knows one pack; `on_open` lets a test hold a slot."""

    def __init__(self) -> None:
        self.reader = FileReader()
        self.on_open: Callable[[], None] = lambda: None

    def open(self, name: str) -> FileReader | None:
        self.on_open()
        return self.reader if name == PACK else None


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    made = Shelf()
    yield made
    made.reader.file.close()


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, shelf: Shelf) -> Iterator[Address]:
    with tempfile.TemporaryDirectory() as directory:
        text = "127.0.0.1:0" if request.param == "tcp" else f"unix://{directory}/s"
        listener = Address.parse(text).listen()
        if request.param == "tcp":
            text = f"127.0.0.1:{listener.getsockname()[1]}"
        server = ChunkServer(shelf, [listener])
        server.start()
        yield Address.parse(text)
        server.stop()


@pytest.fixture
def client(address: Address) -> Iterator[ChunkClient]:
    made = ChunkClient(address, read_timeout_s=5)
    yield made
    made.close()


def fetch(
    client: ChunkClient, numbers: list[int], priority: Priority = Priority.DEMAND, name: str = PACK
) -> list[bytes]:
    got: list[bytes] = []
    client.fetch(ChunkRequest(name, tuple(numbers), priority), lambda number, encoding, body: got.append(bytes(body)))
    return got


def test_chunks_arrive_in_the_order_asked(client: ChunkClient) -> None:
    assert fetch(client, [3, 0, 1, 2]) == [BODIES[3], BODIES[0], BODIES[1], BODIES[2]]
    assert fetch(client, [0, 0, 3], Priority.FILL) == [BODIES[0], BODIES[0], BODIES[3]]


def test_a_miss_takes_the_connection_of_a_trace_and_of_no_fill(
    address: Address, client: ChunkClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Connection] = []

    def count(address: Address, connect_timeout_s: float, read_timeout_s: float) -> Connection:
        made.append(Connection(address, connect_timeout_s, read_timeout_s))
        return made[-1]

    monkeypatch.setattr("imgdist.wire.client.Connection", count)
    expected = {Priority.FILL: 1, Priority.TRACE: 2, Priority.DEMAND: 2}
    for priority, connections in expected.items():
        assert fetch(client, [1], priority) == [BODIES[1]]
        assert len(made) == connections
    assert fetch(client, [1], Priority.TRACE) == [BODIES[1]]
    assert len(made) == 3, "a miss's connection stays free for misses"


@pytest.mark.parametrize("place", ["a slot", "the watcher"])
def test_no_memory_costs_a_connection_and_no_thread(
    client: ChunkClient, shelf: Shelf, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        if place == "a slot":
            patched.setattr(shelf, "on_open", fail)
        else:
            patched.setattr(Session, "take_in", fail)
        for _ in range(2 * SLOTS[Priority.DEMAND]):
            with pytest.raises(TemporaryError):
                fetch(client, [0])
    assert fetch(client, [0]) == BODIES[:1]


def test_what_is_missing_is_said_and_the_connection_lives(client: ChunkClient) -> None:
    with pytest.raises(NotFoundError, match="is not here"):
        fetch(client, [0], name="00" * 32)
    with pytest.raises(NotFoundError, match="chunk 9"):
        fetch(client, [0, 9])
    assert fetch(client, [2]) == [BODIES[2]]


def test_an_exception_of_the_caller_comes_out_and_spoils_nothing(client: ChunkClient) -> None:
    def fail(number: int, encoding: int, body: memoryview) -> None:
        raise OSError(28, "disk full")

    with pytest.raises(OSError, match="disk full"):
        client.fetch(ChunkRequest(PACK, (0, 1), Priority.DEMAND), fail)
    assert fetch(client, [0]) == [BODIES[0]]


def test_many_threads(client: ChunkClient) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in range(20):
            number = (seed + i) % len(BODIES)
            priority = Priority.FILL if seed % 2 else Priority.DEMAND
            if fetch(client, [number], priority) != [BODIES[number]]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_demand_is_served_while_every_fill_slot_is_held(client: ChunkClient, shelf: Shelf) -> None:
    release = threading.Event()
    held = threading.Semaphore(0)

    def hold() -> None:
        if threading.current_thread().name.startswith("chunks-fill"):
            held.release()
            release.wait(20)

    shelf.on_open = hold
    threads = [
        threading.Thread(target=fetch, args=(client, [2], Priority.FILL))
        for _ in range(slots_module.SLOTS[Priority.FILL])
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            assert held.acquire(timeout=10)
        assert fetch(client, [0]) == [BODIES[0]]
    finally:
        release.set()
        for thread in threads:
            thread.join()


def test_fill_waits_between_chunks_while_demand_is_served(
    client: ChunkClient, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precedence, "SHARE_S", 20.0)
    demand_runs, release, filled = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        if threading.current_thread().name.startswith("chunks-demand"):
            demand_runs.set()
            release.wait(20)

    shelf.on_open = hold
    demand = threading.Thread(target=fetch, args=(client, [0]))
    demand.start()
    assert demand_runs.wait(10)

    def fill() -> None:
        fetch(client, [2], Priority.FILL)
        filled.set()

    filler = threading.Thread(target=fill)
    filler.start()
    assert not filled.wait(0.2), "the fill must wait for the demand in progress"
    release.set()
    assert filled.wait(10)
    demand.join()
    filler.join()


def test_too_many_requests_are_refused_with_a_time_to_retry(
    address: Address, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module, "QUEUE_PER_SLOT", 0)
    client = ChunkClient(address)
    with pytest.raises(TemporaryError) as caught:
        fetch(client, [0])
    assert caught.value.retry_after_s == 1.0
    monkeypatch.undo()
    assert fetch(client, [0]) == [BODIES[0]]
    client.close()


def stuck(address: Address, priority: Priority) -> socket.socket:
    """A reader that asks for far more than fits into buffers and reads nothing."""
    sock = address.connect(5)
    sock.sendall(encode(ChunkRequest(PACK, (0,) * 64, priority)))
    return sock


@pytest.mark.parametrize("priority", list(Priority))
def test_readers_without_room_cost_no_slot(address: Address, client: ChunkClient, priority: Priority) -> None:
    readers = [stuck(address, priority) for _ in range(2 * slots_module.SLOTS[priority])]
    try:
        began = time.monotonic()
        assert fetch(client, [0, 3], priority) == [BODIES[0], BODIES[3]]
        assert time.monotonic() - began < 3  # two rounds of turns, not a time-out
        for reader in readers[:2]:  # they get the rest once they read, byte for byte
            reader.settimeout(10)
            received = bytearray()
            while len(received.partition(b"\r\n\r\n")[2]) < 64 * (FRAME_SIZE + len(BODIES[0])):
                received += reader.recv(1 << 22)
            frame = encode_frame(Frame(0, 0, len(BODIES[0]), len(BODIES[0]))) + BODIES[0]
            assert received.partition(b"\r\n\r\n")[2] == frame * 64
    finally:
        for reader in readers:
            reader.close()


def test_a_reader_that_never_has_room_is_given_up(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_module, "REQUEST_S", 0.1)
    monkeypatch.setattr(answer_module, "RATE_LEAST", 1 << 40)
    monkeypatch.setattr(server_module, "SWEEP_S", 0.1)
    given_up = threading.Event()
    monkeypatch.setattr(server_module._log, "info", lambda *args: given_up.set())
    with stuck(address, Priority.DEMAND) as reader:
        assert given_up.wait(10)
        reader.settimeout(10)
        received = 0
        while piece := reader.recv(1 << 22):
            received += len(piece)
        assert received < 64 * len(BODIES[0])


def test_one_host_leaves_room_in_the_queue(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "QUEUE_PER_SLOT", 1)
    release, held = threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        held.release()
        release.wait(20)

    shelf.on_open = hold
    listener = Address.parse("0.0.0.0:0").listen()
    port = listener.getsockname()[1]
    server = ChunkServer(shelf, [listener])
    server.start()
    slots = slots_module.SLOTS[Priority.DEMAND]
    request = encode(ChunkRequest(PACK, (2,), Priority.DEMAND))
    readers = []

    def ask(source: str) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", port), 10, (source, 0))
        readers.append(sock)
        sock.sendall(request)
        return sock

    try:
        for _ in range(slots):
            ask("127.0.0.1")
            assert held.acquire(timeout=10)
        waiting = [ask("127.0.0.1") for _ in range(slots // 2)]
        assert ask("127.0.0.1").recv(4096).startswith(b"HTTP/1.1 503 ")
        other = ask("127.0.0.2")
        release.set()
        for sock in (*waiting, other):
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
    finally:
        release.set()
        for sock in readers:
            sock.close()
        server.stop()


def test_closing_the_client_ends_its_fetches(client: ChunkClient, shelf: Shelf) -> None:
    running, release = threading.Event(), threading.Event()

    def hold() -> None:
        running.set()
        release.wait(20)

    shelf.on_open = hold
    errors: list[Exception] = []

    def work() -> None:
        try:
            fetch(client, [0])
        except TemporaryError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert running.wait(10)
    client.close()
    thread.join(10)
    release.set()
    assert len(errors) == 1
    with pytest.raises(TemporaryError, match="closed"):
        fetch(client, [0])


def test_a_restarted_server_costs_one_silent_retry(shelf: Shelf) -> None:
    listener = Address.parse("127.0.0.1:0").listen()
    address = Address.parse(f"127.0.0.1:{listener.getsockname()[1]}")
    first = ChunkServer(shelf, [listener])
    first.start()
    client = ChunkClient(address)
    assert fetch(client, [2]) == [BODIES[2]]
    first.stop()
    second = ChunkServer(shelf, [address.listen()])
    second.start()
    assert fetch(client, [2]) == [BODIES[2]]
    second.stop()
    with pytest.raises(TemporaryError, match="cannot connect"):
        fetch(client, [2])
    client.close()


def test_stop_with_idle_connections_leaves_no_thread_and_no_descriptor(shelf: Shelf) -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    listener = Address.parse("127.0.0.1:0").listen()
    server = ChunkServer(shelf, [listener])
    server.start()
    client = ChunkClient(Address.parse(f"127.0.0.1:{listener.getsockname()[1]}"))
    fetch(client, [0])
    server.stop()
    client.close()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_one_that_never_began_can_be_stopped(shelf: Shelf) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    ChunkServer(shelf, [listener]).stop()
    assert listener.fileno() == -1


def test_a_shelf_that_breaks_costs_one_request_and_no_slot(client: ChunkClient, shelf: Shelf) -> None:
    def fail() -> None:
        raise CorruptError("bad table")

    shelf.on_open = fail
    for _ in range(slots_module.SLOTS[Priority.DEMAND] + 1):
        with pytest.raises(TemporaryError):
            fetch(client, [0])
    shelf.on_open = lambda: None
    assert fetch(client, [0]) == [BODIES[0]]


def test_curl_can_talk_to_it(shelf: Shelf) -> None:
    require(shutil.which("curl"), "curl")
    listener = Address.parse("127.0.0.1:0").listen()
    port = listener.getsockname()[1]
    server = ChunkServer(shelf, [listener])
    server.start()
    try:
        url = f"http://127.0.0.1:{port}/v1/chunks/{PACK}/2-3"
        got = subprocess.run(["curl", "-sf", url], capture_output=True, check=True, timeout=20).stdout
    finally:
        server.stop()
    expected = [encode_frame(Frame(n, 0, len(BODIES[n]), len(BODIES[n]))) + BODIES[n] for n in (2, 3)]
    assert got == b"".join(expected)


def test_a_chain_of_requests_may_change_its_kind_or_break(address: Address) -> None:
    """After a demand its slot waits for the next request itself: of another priority, in parts, or no request."""
    with address.connect(5) as sock:
        for priority in (Priority.DEMAND, Priority.DEMAND, Priority.FILL, Priority.DEMAND):
            request = encode(ChunkRequest(PACK, (2,), priority))
            sock.sendall(request[:20])
            sock.sendall(request[20:])
            answer = b""
            while len(answer.partition(b"\r\n\r\n")[2]) < FRAME_SIZE + len(BODIES[2]):
                piece = sock.recv(65536)
                assert piece, answer
                answer += piece
            assert answer.startswith(b"HTTP/1.1 200 ")
        sock.sendall(b"no request\r\n\r\n")
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_bad_request_is_answered_and_closed(address: Address) -> None:
    with address.connect(5) as sock:
        sock.sendall(b"BREW /coffee HTTP/1.1\r\n\r\n")
        answer = b""
        while data := sock.recv(4096):
            answer += data
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (encode_head(200, 0), ProtocolError),
        (encode_head(200, 17) + encode_frame(Frame(8, 0, 1, 1)) + b"x", ProtocolError),
        (encode_head(200, 20) + encode_frame(Frame(7, 0, 9, 9)) + b"four", ProtocolError),
        (encode_head(200, 18) + encode_frame(Frame(7, 0, 1, 1)) + b"xy", ProtocolError),
        (encode_head(200, 20) + encode_frame(Frame(7, 0, 4, 4)) + b"th", TemporaryError),
        (encode_head(200, 20)[:30], TemporaryError),
        (b"", TemporaryError),
        (b"garbage\r\n\r\n", ProtocolError),
        (encode_head(404, 10**6), ProtocolError),
    ],
)
def test_broken_answers(answer: bytes, error: type[Exception]) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(4096)
            sock.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    client = ChunkClient(Address.parse(f"127.0.0.1:{listener.getsockname()[1]}"), read_timeout_s=5)
    with pytest.raises(error):
        fetch(client, [7])
    thread.join()
    client.close()
    listener.close()


def test_a_silent_server_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = ChunkClient(Address.parse(f"127.0.0.1:{listener.getsockname()[1]}"), read_timeout_s=0.1)
        with pytest.raises(TemporaryError, match="nothing came"):
            fetch(client, [0])
        client.close()


@pytest.mark.parametrize("head", [b"", encode_head(200, 1 << 20)])
def test_a_source_that_trickles_is_given_up(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then, never a silence as long as the read time-out: in the head, and in a chunk."""
    monkeypatch.setattr(connection_module, "_RATE_LEAST", 1 << 20)
    listener = socket.create_server(("127.0.0.1", 0))
    given_up = threading.Event()

    def trickle() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(4096)
            if head:
                sock.sendall(head + encode_frame(Frame(7, 0, 262144, 262144)))
            while not given_up.wait(0.05):
                sock.sendall(b"H")

    thread = threading.Thread(target=trickle)
    thread.start()
    client = ChunkClient(Address.parse(f"127.0.0.1:{listener.getsockname()[1]}"), read_timeout_s=0.4)
    watchdog = threading.Timer(8, client.close)
    watchdog.start()
    try:
        with pytest.raises(TemporaryError, match="too slow"):
            fetch(client, [7])
    finally:
        watchdog.cancel()
        given_up.set()
        thread.join()
        client.close()
        listener.close()


def test_a_body_that_comes_in_pieces_is_taken_when_its_last_one_is_there() -> None:
    body = bytes(range(256)) * 512
    listener = socket.create_server(("127.0.0.1", 0))

    def dawdle() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(4096)
            answer = encode_head(200, 16 + len(body)) + encode_frame(Frame(7, 0, len(body), len(body))) + body
            for start in range(0, len(answer), 50_000):
                time.sleep(0.1)  # the client waits meanwhile
                sock.sendall(answer[start : start + 50_000])

    thread = threading.Thread(target=dawdle)
    thread.start()
    client = ChunkClient(Address.parse(f"127.0.0.1:{listener.getsockname()[1]}"), read_timeout_s=30.0)
    began = time.monotonic()
    assert fetch(client, [7]) == [body]
    assert time.monotonic() - began < 20
    thread.join()
    client.close()
    listener.close()


def test_a_pack_file_cut_short_never_looks_whole(client: ChunkClient, shelf: Shelf) -> None:
    os.truncate(shelf.reader.file.fileno(), 1000)
    with pytest.raises(TemporaryError, match="short"):
        fetch(client, [0])

"""The channel between a port and its agents over a real socket: bad messages, bad versions, one agent after another."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from viewrig import ImageFile, Misses

from fuse import channel, protocol
from fuse.libfuse import ForgottenTable, Waiters
from fuse.link import ViewLink
from fuse.outbox import Outbox
from fuse.port import Port
from fuse.view import View
from imgdist.errors import CorruptError, TemporaryError
from imgdist.pack import BLOCK

WAIT_S = 10.0


def listening(path: Path) -> socket.socket:
    """The socket that agents find a view by."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()
    return listener


class Bench:
    """A port on a thread, its view, and readers that ask the view directly."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.path = directory, str(directory / "view.sock")
        self.listener = listening(directory / "view.sock")
        self.waiters, self.outbox = Waiters(), Outbox()
        self.view = View(self.waiters, self.outbox, ForgottenTable())
        parent, self.end = os.pipe()
        self.parent = parent
        self.port = Port(self.listener, self.outbox, self.view, 0, parent)
        self.thread = threading.Thread(target=self.port.run)
        self.thread.start()

    def close(self) -> None:
        os.close(self.end)
        self.thread.join(WAIT_S)
        self.port.close()
        self.outbox.close()
        self.listener.close()
        os.close(self.parent)

    def dial(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(WAIT_S)
        connection.connect(self.path)
        return connection

    def greet(self, hello: bytes, ring_size: int = channel.RING_SIZE) -> socket.socket:
        connection = self.dial()
        ring = os.memfd_create("ring")
        os.ftruncate(ring, ring_size)
        socket.send_fds(connection, [hello], [ring])
        os.close(ring)
        return connection

    def link(self, misses: Misses) -> ViewLink:
        link = ViewLink(self.path, misses.on_miss, misses.on_touched, misses.on_failed)
        link.start()
        link.wait_live(WAIT_S)
        return link

    def read(self, node: int, offset: int, size: int) -> bytes:
        data: bytes = self.waiters.ask(self.view, protocol.READ, node, offset, size)
        return data


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    try:
        yield bench
    finally:
        bench.close()


def hung_up(connection: socket.socket) -> bool:
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True
    finally:
        connection.close()


@pytest.mark.parametrize(
    "message", [b"\xff", b"", b"\x05", channel.Ack(1).encode(), channel.Add(2, 4096, b"no-fds").encode()], ids=repr
)
def test_nonsense_costs_an_agent_its_connection_and_nobody_else_anything(bench: Bench, message: bytes) -> None:
    connection = bench.greet(channel.Hello().encode())
    assert channel.decode(connection.recv(100)) == channel.Hello()
    connection.send(message)
    assert hung_up(connection)
    bench.link(Misses()).close()


@pytest.mark.parametrize("theirs", [channel.OLDEST, channel.VERSION, channel.VERSION + 1])
def test_the_lower_version_is_spoken(bench: Bench, theirs: int) -> None:
    connection = bench.greet(channel.Hello(theirs).encode())
    assert channel.decode(connection.recv(100)) == channel.Hello(min(theirs, channel.VERSION))
    connection.close()


def test_an_agent_that_does_not_know_lapses_is_not_told_of_them(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    connection = bench.greet(channel.Hello(channel.OLDEST).encode())
    assert channel.decode(connection.recv(100)) == channel.Hello(channel.OLDEST)
    for message in (channel.Synced(), channel.Remove(99)):
        connection.send(message.encode())
    assert channel.decode(connection.recv(100)) == channel.Removed(99)
    lapsed = channel.Lapsed(5, 0, BLOCK, 2500)
    bench.view.notes.failure("deadline", "5", "no bytes after 2.5 s, EIO", lapsed)
    assert channel.decode(connection.recv(100)) == channel.Failed("deadline", 1)
    assert [record.getMessage() for record in caplog.records] == ["layer 5: no bytes after 2.5 s, EIO"]
    connection.close()


def test_a_miss_that_takes_long_keeps_no_other_message_waiting(bench: Bench, tmp_path: Path) -> None:
    """One thread may linger; the next one is told that it may not, and the link goes on receiving."""
    misses, go_on = Misses(), threading.Event()
    allowed: list[bool] = []
    link = bench.link(misses)
    image, other = (ImageFile(tmp_path, node, os.urandom(2 * BLOCK)) for node in (2, 3))

    def answer(node: int, start: int, length: int) -> None:
        allowed.append(link.linger())
        if allowed[-1]:
            go_on.wait(WAIT_S)
            link.back()
        image.fill(start, start + length)
        link.written(node, start, start + length)

    misses.answer = answer
    image.show(link)
    results: list[bytes] = []

    def read(offset: int) -> None:
        results.append(bench.read(2, offset, BLOCK))

    threads = [threading.Thread(target=read, args=(offset,)) for offset in (0, BLOCK)]
    for count, thread in enumerate(threads, 1):
        thread.start()
        misses.wait_for(lambda count=count: len(misses.all) == count)
    threads[1].join(WAIT_S)
    assert results == [image.content[BLOCK:]]
    other.show(link, WAIT_S)  # its answer is received, too
    go_on.set()
    threads[0].join(WAIT_S)
    link.close()
    assert results[1:] == [image.content[:BLOCK]]
    assert allowed == [True, False]


def test_an_oldest_view_is_found_and_hears_only_what_it_knows(tmp_path: Path) -> None:
    """It hangs up on any other version, and on a message that it does not know."""
    with listening(tmp_path / "view.sock") as listener:
        listener.settimeout(WAIT_S)
        link = ViewLink(str(tmp_path / "view.sock"), lambda *_: None)
        link.start()
        for version, is_known in ((channel.VERSION, False), (channel.OLDEST, True), (channel.VERSION, False)):
            view, _ = listener.accept()
            with view:
                view.settimeout(WAIT_S)
                assert channel.decode(view.recv(100)) == channel.Hello(version)
                if not is_known:
                    continue
                view.send(channel.Hello(channel.OLDEST).encode())
                assert channel.decode(view.recv(100)) == channel.Synced()
                link.wait_live(WAIT_S)
                link.held(2, 0, BLOCK, acquired(link))
                assert isinstance(channel.decode(view.recv(100)), channel.Ready)
        link.close()


def test_bad_hello_is_refused(bench: Bench) -> None:
    assert hung_up(bench.greet(channel.Hello(channel.OLDEST - 1).encode()))
    assert hung_up(bench.greet(channel.Hello().encode(), ring_size=4096))
    silent = bench.dial()
    silent.send(channel.Hello().encode())
    assert hung_up(silent)


def test_new_agent_replaces_the_old(bench: Bench) -> None:
    first = bench.greet(channel.Hello().encode())
    assert first.recv(100)
    second = Misses()
    link = bench.link(second)
    assert hung_up(first)
    image = ImageFile(bench.directory, 2, bytes(BLOCK) * 8)
    image.show(link)
    image.fill_all()
    assert bench.read(2, 0, BLOCK) == bytes(BLOCK)
    link.close()


def test_layer_whose_files_do_not_fit_is_refused(bench: Bench) -> None:
    link = bench.link(Misses())
    image = ImageFile(bench.directory, 2, bytes(BLOCK) * 8)
    image.map_path.write_bytes(b"no map")
    with pytest.raises(CorruptError):
        image.show(link)
    link.wait_live(WAIT_S)  # it does not wait for that layer any more
    link.close()


def test_layer_without_a_view_is_told_so(tmp_path: Path) -> None:
    link = ViewLink(str(tmp_path / "nobody.sock"), lambda *_: None)
    link.start()
    image = ImageFile(tmp_path, 2, bytes(BLOCK))
    with pytest.raises(TemporaryError):
        image.show(link, timeout_s=0.05)
    assert link.acquire_ring() is None
    link.written(2, 0, BLOCK)
    link.close()


def test_ring_buffers_come_back(bench: Bench) -> None:
    link = bench.link(Misses())
    used = [acquired(link)]
    for _ in range(3 * channel.RING_BUFFERS):
        link.ready(99, 0, BLOCK, used[-1])
        used.append(acquired(link))
    assert set(used) <= set(range(channel.RING_BUFFERS))
    link.close()


def acquired(link: ViewLink) -> int:
    """A ring buffer as soon as the view has given one back."""
    deadline = time.monotonic() + WAIT_S
    while (slot := link.acquire_ring()) is None:
        assert time.monotonic() < deadline, "the view keeps the ring"
        time.sleep(0.001)
    return slot


def test_callback_that_fails_does_not_cut_the_link(bench: Bench) -> None:
    misses = Misses()
    link = bench.link(misses)
    image = ImageFile(bench.directory, 2, bytes(BLOCK) * 8)
    image.show(link)

    def answer(node: int, start: int, length: int) -> None:
        image.fill(start, start + length)
        link.written(node, start, start + length)
        raise RuntimeError("a fault in the agent's policy")

    misses.answer = answer
    assert bench.read(2, 0, BLOCK) == bytes(BLOCK)
    assert bench.read(2, BLOCK, BLOCK) == bytes(BLOCK)
    link.close()


def test_descriptors_are_given_back(bench: Bench) -> None:
    link = bench.link(Misses())
    before = len(os.listdir("/proc/self/fd"))
    for node in range(2, 12):
        image = ImageFile(bench.directory, node, bytes(BLOCK))
        image.show(link)
        link.remove(node)
        image.present.close()
    assert len(os.listdir("/proc/self/fd")) <= before  # what earlier tests left may go meanwhile
    link.close()


def test_fault_of_an_answer_is_not_taken_for_the_agents_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The read it happened to ends with EIO; the agent stays, and the next read is answered."""
    misses = Misses()
    link = bench.link(misses)
    image = ImageFile(bench.directory, 2, bytes(BLOCK) * 8)
    image.show(link)

    def answer(node: int, start: int, length: int) -> None:
        image.fill(start, start + length)
        link.written(node, start, start + length)

    def no_memory(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    misses.answer = answer
    with monkeypatch.context() as patch:
        patch.setattr(bench.waiters, "data", no_memory)
        with pytest.raises(OSError) as caught:
            bench.read(2, 0, BLOCK)
    assert caught.value.errno == errno.EIO
    assert bench.read(2, BLOCK, BLOCK) == bytes(BLOCK)
    misses.wait_for(lambda: misses.failed == [("internal", 1)])
    link.close()


def test_layer_that_was_announced_is_not_forgotten_when_adding_it_takes_too_long(tmp_path: Path) -> None:
    link = ViewLink(str(tmp_path / "view.sock"), lambda *_: None)
    image = ImageFile(tmp_path, 2, bytes(BLOCK) * 8)
    image.fill_all()
    image.announce(link)
    with pytest.raises(TemporaryError):
        image.show(link, timeout_s=0.05)
    bench = Bench(tmp_path)
    try:
        link.start()
        link.wait_live(WAIT_S)
        assert bench.read(2, 0, BLOCK) == bytes(BLOCK)
        link.close()
    finally:
        bench.close()


def test_live_is_a_view_that_has_answered_for_every_layer(tmp_path: Path) -> None:
    with listening(tmp_path / "view.sock") as listener:
        listener.settimeout(WAIT_S)
        link = ViewLink(str(tmp_path / "view.sock"), lambda *_: None)
        for node in (2, 3):
            ImageFile(tmp_path, node, bytes(BLOCK)).announce(link)
        with pytest.raises(TemporaryError):
            link.wait_live(0.05)
        link.start()
        for _ in range(2):  # a view, and the one after it: what the first had answered does not count then
            view, _ = listener.accept()
            with view:
                view.send(channel.Hello().encode())
                view.send(channel.Added(2).encode())
                with pytest.raises(TemporaryError, match="1 of 2 wait, connected"):
                    link.wait_live(0.5)
                view.send(channel.Added(3).encode())
                link.wait_live(WAIT_S)
        link.close()

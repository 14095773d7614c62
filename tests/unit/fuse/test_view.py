"""The view's decisions with fake replies and a fake clock: who is answered, when, and how often."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections import UserDict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from fuse import answers, channel, disk, protocol
from fuse.layer import Layer
from fuse.present import PresentMap, current_boot_id
from fuse.protocol import INTERRUPT, LOOKUP, READ, READDIR, UNIQUE_RESEND, Buffer, Request
from fuse.retries import AGAIN_NS
from fuse.slots import PARKED_MAX, ParkedEntry
from fuse.view import View
from imgdist.errors import CorruptError
from imgdist.pack import BLOCK

SIZE = 16 * BLOCK
CONTENT = random.Random(1).randbytes(SIZE)


class Fakes:
    """Replies, agent and table in one: everything is written down."""

    def __init__(self) -> None:
        self.answers: dict[int, object] = {}
        self.repeated: list[int] = []
        self.sent: list[channel.Message] = []
        self.rings = 0
        self.now = 0
        self.no_memory_for: tuple[type, ...] = ()
        self._answered = threading.Condition()

    def _answer(self, unique: int, answer: object) -> None:
        if isinstance(answer, self.no_memory_for):
            raise OSError(errno.ENOMEM, "no memory for an answer")
        with self._answered:
            if unique in self.answers:
                self.repeated.append(unique)
            self.answers[unique] = answer
            self._answered.notify_all()

    def wait_for(self, *uniques: int) -> None:
        """Until a disk thread has answered these."""
        with self._answered:
            assert self._answered.wait_for(lambda: set(uniques) <= self.answers.keys(), 10), self.answers

    def data(self, unique: int, *pieces: Buffer) -> None:
        self._answer(unique, b"".join(pieces))

    def error(self, unique: int, number: int) -> None:
        self._answer(unique, -number)

    def entry(self, unique: int, node: int, size: int) -> None:
        self._answer(unique, ("entry", node, size))

    def attr(self, unique: int, node: int, size: int) -> None:
        self._answer(unique, ("attr", node, size))

    def opened(self, unique: int, node: int) -> None:
        self._answer(unique, ("opened", node))

    def listing(self, unique: int, entries: Iterable[tuple[int, bytes]], offset: int, size: int) -> None:
        self._answer(unique, list(entries))

    def statfs(self, unique: int, blocks: int, files: int) -> None:
        self._answer(unique, (blocks, files))

    def put(self, message: bytes) -> None:  # the agent's; the table's is `put_entry`
        self.sent.append(channel.decode(message))

    def ring(self) -> None:
        self.rings += 1


class Table:
    def __init__(self) -> None:
        self.entries: dict[int, Request] = {}

    def put(self, index: int, request: Request, since_ns: int) -> None:
        assert index not in self.entries, "an entry in use was overwritten"
        self.entries[index] = request

    def drop(self, index: int) -> None:
        del self.entries[index]


class Bench:
    def __init__(self, directory: Path, adopted: Iterable[ParkedEntry] = ()) -> None:
        self.fakes, self.table = Fakes(), Table()
        adopted = list(adopted)
        self.table.entries.update((entry.number, entry.request) for entry in adopted)
        self.view = View(self.fakes, self.fakes, self.table, adopted, lambda: self.fakes.now)
        self.directory = directory
        (directory / "image").write_bytes(CONTENT)
        self.present = PresentMap.create(directory / "present", SIZE // BLOCK, current_boot_id())
        self.buffer = memoryview(bytearray(protocol.MAX_READ))

    def layer(self, node: int = 5) -> Layer:
        image = os.open(self.directory / "image", os.O_RDONLY)
        return Layer(node, SIZE, b"five", image, os.open(self.directory / "present", os.O_RDWR))

    def connect(self) -> None:
        self.view.add(self.layer())
        self.view.synced()

    def handle(self, *fields: object, **more: object) -> None:
        self.view.handle(Request(*fields, **more), self.buffer)  # type: ignore[arg-type]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_notices_for_unknown_layers_change_nothing(bench: Bench) -> None:
    """A chunk's notice may overtake its layer, or come after its end."""
    bench.view.ready(9, 0, memoryview(CONTENT[:BLOCK]))
    bench.view.written(9, 0, BLOCK)
    bench.view.fail(9, 0, BLOCK, errno.EIO)
    bench.view.remove(9)
    bench.connect()
    assert not bench.fakes.answers


def test_what_the_map_does_not_have_is_not_answered_by_a_notice(bench: Bench) -> None:
    """`Written` alone shows nobody bytes that were not marked."""
    bench.connect()
    bench.handle(READ, 1, 5, 0, BLOCK)
    bench.view.written(5, 0, SIZE)
    assert 1 not in bench.fakes.answers
    bench.present.mark(0, 1)
    bench.view.written(5, 0, SIZE)
    assert bench.fakes.answers[1] == CONTENT[:BLOCK]
    assert not bench.table.entries


def test_before_the_first_sync_everything_unknown_waits(bench: Bench) -> None:
    bench.handle(LOOKUP, 1, 1, name=b"five")
    bench.handle(LOOKUP, 2, 1, name=b"six")
    bench.handle(READ, 3, 5, 0, BLOCK)
    bench.handle(READ, 4, 6, 0, BLOCK)
    bench.handle(READDIR, 5, 1, 0, 4096)
    assert not bench.fakes.answers and len(bench.table.entries) == 5
    bench.connect()
    assert bench.fakes.answers == {
        1: ("entry", 5, SIZE),
        2: -errno.ENOENT,
        4: -errno.EIO,
        5: [(5, b"five")],
    }
    assert channel.Miss(5, 0, BLOCK) in bench.fakes.sent
    assert list(bench.table.entries.values()) == [Request(READ, 3, 5, 0, BLOCK)]


def test_adopted_entries_are_answered_or_asked_again(tmp_path: Path) -> None:
    adopted = [ParkedEntry(7, Request(READ, 11, 5, 0, BLOCK), 0), ParkedEntry(9, Request(READ, 12, 5, BLOCK, BLOCK), 0)]
    bench = Bench(tmp_path, adopted)
    bench.present.mark(0, 1)
    bench.connect()
    assert bench.fakes.answers == {11: CONTENT[:BLOCK]}
    assert list(bench.table.entries) == [9] and bench.present.parked == 1
    assert bench.fakes.sent == [channel.Miss(5, BLOCK, BLOCK)]


def test_resent_copy_is_answered_with_its_own_unique(bench: Bench) -> None:
    bench.connect()
    bench.handle(READ, 1, 5, 0, BLOCK)
    bench.handle(READ, 1 | UNIQUE_RESEND, 5, 0, BLOCK)
    assert len(bench.table.entries) == 1
    bench.present.mark(0, 1)
    bench.view.written(5, 0, BLOCK)
    assert bench.fakes.answers == {1 | UNIQUE_RESEND: CONTENT[:BLOCK]}


def test_resent_copy_that_comes_between_look_and_claim(bench: Bench) -> None:
    """Whoever claims answers the request as it stands then: the old unique is dead, its reader would hang."""
    bench.connect()
    bench.handle(READ, 1, 5, 0, BLOCK)
    (parked,) = bench.view.parking.waiting(5)
    bench.handle(READ, 1 | UNIQUE_RESEND, 5, 0, BLOCK)
    assert bench.view.parking.claim(parked)
    assert parked.request.unique == 1 | UNIQUE_RESEND
    assert not bench.view.parking.claim(parked)


def test_new_agent_drops_what_it_does_not_name(bench: Bench) -> None:
    bench.connect()
    bench.view.add(bench.layer(6))
    bench.handle(READ, 1, 6, 0, BLOCK)
    bench.view.agent_gone()
    bench.handle(READ, 2, 5, 0, BLOCK)
    assert channel.Miss(5, 0, BLOCK) not in bench.fakes.sent, "there was nobody to ask"
    bench.connect()
    assert bench.fakes.answers == {1: -errno.EIO}
    assert channel.Miss(5, 0, BLOCK) in bench.fakes.sent


def test_deadline_is_named_and_counted_and_not_sticky(bench: Bench) -> None:
    bench.connect()
    bench.handle(READ, 1, 5, 0, BLOCK)
    bench.fakes.now = 59
    bench.view.expire(60)
    assert not bench.fakes.answers
    bench.fakes.now = 60
    bench.view.expire(60)
    assert bench.fakes.answers == {1: -errno.EIO}
    bench.view.flush_notes()
    assert channel.Failed("deadline", 1) in bench.fakes.sent and bench.present.parked == 0
    bench.present.mark(0, 1)
    bench.handle(READ, 2, 5, 0, BLOCK)
    assert bench.fakes.answers[2] == CONTENT[:BLOCK]


def test_the_kernels_second_try_does_not_wait_for_a_second_deadline(bench: Bench) -> None:
    """After readahead failed, a page is read again by itself: it has AGAIN_NS left, then counts as new again."""
    deadline = 60 * 10**9
    bench.connect()
    bench.handle(READ, 1, 5, 0, 2 * BLOCK)
    bench.fakes.now = deadline
    bench.view.expire(deadline)
    bench.handle(READ, 2, 5, BLOCK, BLOCK)
    bench.handle(READ, 3, 5, 2 * BLOCK, BLOCK)  # others wait as long as any
    bench.fakes.now += AGAIN_NS - 1
    bench.view.expire(deadline)
    assert bench.fakes.answers == {1: -errno.EIO}
    bench.fakes.now += 1
    bench.view.expire(deadline)
    assert bench.fakes.answers == {1: -errno.EIO, 2: -errno.EIO}
    bench.fakes.now += 9 * 10**8
    bench.handle(READ, 5, 5, BLOCK, BLOCK)  # a third one, after a pause: it is not failed at once
    bench.view.expire(deadline)
    assert 5 not in bench.fakes.answers
    bench.fakes.now += AGAIN_NS
    bench.view.expire(deadline)
    assert bench.fakes.answers.pop(5) == -errno.EIO
    bench.fakes.now += 2 * 10**9
    bench.handle(READ, 4, 5, BLOCK, BLOCK)
    bench.fakes.now += deadline - 1
    bench.view.expire(deadline)
    assert bench.fakes.answers == {1: -errno.EIO, 2: -errno.EIO, 3: -errno.EIO}


def test_a_second_try_gets_bytes_that_have_come(bench: Bench) -> None:
    bench.connect()
    bench.handle(READ, 1, 5, 0, BLOCK)
    bench.fakes.now = 10**9
    bench.view.expire(10**9)
    bench.handle(READ, 2, 5, 0, BLOCK)
    assert bench.fakes.sent.count(channel.Miss(5, 0, BLOCK)) == 2, "it is asked for like any"
    bench.present.mark(0, 1)
    bench.view.written(5, 0, BLOCK)
    assert bench.fakes.answers[2] == CONTENT[:BLOCK]


def test_a_lapsed_read_is_told_to_the_agent_or_else_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.connect()
    bench.handle(READ, 1, 5, 0, BLOCK)
    bench.fakes.now = 2_500_000_000
    bench.view.expire(1)
    bench.view.flush_notes()
    assert channel.Lapsed(5, 0, BLOCK, 2500) in bench.fakes.sent and not caplog.records
    bench.view.agent_gone()
    for unique in (2, 3):
        bench.handle(READ, unique, 5, 7 * BLOCK, BLOCK)
    bench.fakes.now += 3_000_000_000
    bench.view.expire(1)
    bench.view.flush_notes()
    (record,) = caplog.records  # one line of a layer in a while
    assert record.getMessage() == "layer five: 4096 bytes at 28672: no bytes, and no agent to say why, after 3.0 s, EIO"


def test_killed_reader_is_let_go(bench: Bench) -> None:
    bench.connect()
    bench.handle(READ, 2, 5, 0, BLOCK)
    bench.handle(INTERRUPT, 3, 5, target=2)
    assert bench.fakes.answers == {2: -errno.EINTR} and not bench.table.entries
    bench.handle(INTERRUPT, 5, 5, target=4)
    assert bench.fakes.answers[5] == -errno.EAGAIN


def test_full_table_fails_the_newest_read_and_hurts_no_other(bench: Bench) -> None:
    bench.connect()
    for unique in range(1, PARKED_MAX + 2):
        bench.handle(READ, unique, 5, 0, BLOCK)
    assert bench.fakes.answers == {PARKED_MAX + 1: -errno.EIO}
    bench.present.mark(0, 1)
    bench.view.written(5, 0, BLOCK)
    assert len(bench.fakes.answers) == PARKED_MAX + 1 and not bench.fakes.repeated


def test_image_that_is_shorter_than_its_map_says(bench: Bench) -> None:
    bench.connect()
    bench.present.mark(0, 16)
    os.truncate(bench.directory / "image", BLOCK)
    bench.handle(READ, 1, 5, 0, 2 * BLOCK)
    bench.fakes.wait_for(1)
    bench.view.flush_notes()
    assert bench.fakes.answers == {1: -errno.EIO} and channel.Failed("image", 1) in bench.fakes.sent
    with pytest.raises(CorruptError):
        bench.layer()


def test_no_read_is_lost_between_readers_and_notices(bench: Bench) -> None:
    """Readers and the agent's notices race on the same blocks; everyone is answered exactly once."""
    bench.connect()
    uniques = iter(range(1, 10_000))
    lock = threading.Lock()
    rounds = 40

    def read() -> None:
        buffer = memoryview(bytearray(SIZE))
        for block in range(SIZE // BLOCK):
            with lock:
                unique = next(uniques)
            bench.view.handle(Request(READ, unique, 5, block * BLOCK, BLOCK), buffer)

    for _ in range(rounds):
        bench.present.clear(0, SIZE // BLOCK)
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for block in range(SIZE // BLOCK):
            bench.present.mark(block, 1)
            bench.view.written(5, block * BLOCK, (block + 1) * BLOCK)
        for reader in readers:
            reader.join()
        assert not len(bench.view.parking)
    assert len(bench.fakes.answers) == rounds * 2 * SIZE // BLOCK and not bench.fakes.repeated
    assert not bench.table.entries


class OfAStalledDisk(Layer):
    """Nothing of its image is cached, and reading it waits for `disk`."""

    disk: threading.Event
    __slots__ = ("disk",)

    def read_now(self, buffer: memoryview, offset: int) -> bool:
        return False

    def read_into(self, buffer: memoryview, offset: int) -> None:
        assert self.disk.wait(20)
        super().read_into(buffer, offset)


@pytest.fixture
def stalled(bench: Bench) -> Iterator[OfAStalledDisk]:
    """Layer 6, complete, on a disk that answers nobody until its event is set; layer 5 beside it is cached."""
    image, present = (os.open(bench.directory / name, os.O_RDWR) for name in ("image", "present"))
    layer = OfAStalledDisk(6, SIZE, b"six", image, present)
    layer.disk = threading.Event()
    bench.present.mark(0, 8)
    bench.view.add(layer)
    bench.connect()
    yield layer
    layer.disk.set()


def test_stalled_disk_holds_up_its_own_reads_only(bench: Bench, stalled: OfAStalledDisk) -> None:
    uniques = range(1, 3 * disk.THREADS)
    for unique in uniques:
        bench.handle(READ, unique, 6, 0, BLOCK)
    bench.view.written(6, 0, BLOCK)  # the agent's notices look at the image too
    bench.view.synced()
    assert not bench.fakes.answers
    bench.handle(READ, 100, 5, BLOCK, BLOCK)
    assert bench.fakes.answers == {100: CONTENT[BLOCK : 2 * BLOCK]}
    bench.handle(READ, 101, 5, 8 * BLOCK, BLOCK)
    assert channel.Miss(5, 8 * BLOCK, BLOCK) in bench.fakes.sent
    stalled.disk.set()
    bench.fakes.wait_for(*uniques)
    assert all(bench.fakes.answers[unique] == CONTENT[:BLOCK] for unique in uniques) and not bench.fakes.repeated


def test_read_of_a_stalled_disk_can_be_interrupted_and_has_a_deadline(bench: Bench, stalled: OfAStalledDisk) -> None:
    for unique in (2, 4, 6):
        bench.handle(READ, unique, 6, 0, BLOCK)
        bench.fakes.now += 1
    bench.handle(INTERRUPT, 9, 6, target=2)
    bench.view.expire(2)
    assert bench.fakes.answers == {2: -errno.EINTR, 4: -errno.EIO}
    stalled.disk.set()
    bench.fakes.wait_for(6)
    assert bench.fakes.answers[6] == CONTENT[:BLOCK] and not bench.fakes.repeated


def test_ring_answers_a_read_whose_rest_is_on_a_stalled_disk(bench: Bench, stalled: OfAStalledDisk) -> None:
    """The ring's bytes are kept for it: the agent has its buffer back long before the disk answers."""
    bench.handle(READ, 1, 6, 7 * BLOCK, 2 * BLOCK)
    ring = bytearray(CONTENT[8 * BLOCK : 9 * BLOCK])
    bench.view.ready(6, 8 * BLOCK, memoryview(ring))
    ring[:] = bytes(BLOCK)
    stalled.disk.set()
    bench.fakes.wait_for(1)
    assert bench.fakes.answers[1] == CONTENT[7 * BLOCK : 9 * BLOCK]


def test_answer_that_the_kernel_does_not_take_becomes_an_error(bench: Bench) -> None:
    """ENOMEM for the bytes of a claimed read: nobody else would answer it."""
    bench.connect()
    bench.handle(READ, 1, 5, 0, BLOCK)
    bench.handle(READ, 2, 5, BLOCK, BLOCK)
    bench.fakes.no_memory_for = (bytes,)
    bench.present.mark(0, 1)
    bench.view.written(5, 0, BLOCK)
    bench.view.ready(5, BLOCK, memoryview(CONTENT[BLOCK : 2 * BLOCK]))
    bench.view.flush_notes()
    assert bench.fakes.answers == {1: -errno.EIO, 2: -errno.EIO}
    assert not bench.table.entries and bench.present.parked == 0
    assert channel.Failed("internal", 2) in bench.fakes.sent


def test_read_that_cannot_even_be_failed_is_left_to_the_next_view(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(BaseException):
        pass

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    bench.connect()
    bench.handle(READ, 1, 5, 0, BLOCK)
    bench.fakes.no_memory_for = (bytes, int)
    bench.present.mark(0, 1)
    with pytest.raises(Ended):
        bench.view.written(5, 0, BLOCK)
    assert list(bench.table.entries.values()) == [Request(READ, 1, 5, 0, BLOCK)]


def test_layer_that_is_named_again_never_disappears(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    uniques = iter(range(1, 100))

    class Watched(UserDict[bytes, int]):
        def __delitem__(self, name: bytes) -> None:
            super().__delitem__(name)
            bench.handle(LOOKUP, next(uniques), 1, name=b"five")

    bench.connect()
    monkeypatch.setattr(bench.view, "_nodes", Watched({b"five": 5}))
    bench.connect()
    bench.handle(LOOKUP, next(uniques), 1, name=b"five")
    assert set(bench.fakes.answers.values()) == {("entry", 5, SIZE)}


def test_failures_are_counted_until_an_agent_listens(bench: Bench) -> None:
    bench.connect()
    for unique in (1, 2):
        bench.handle(READ, unique, 77, 0, BLOCK)
    bench.handle(READ, 3, 5, 0, BLOCK)
    bench.view.agent_gone()
    bench.view.remove(5)
    bench.view.flush_notes()
    assert not any(isinstance(message, channel.Failed) for message in bench.fakes.sent)
    bench.connect()
    bench.handle(READ, 4, 5, 0, BLOCK)
    bench.view.fail(5, 0, BLOCK, errno.EIO)
    for _ in range(2):
        bench.view.flush_notes()
    told = [message for message in bench.fakes.sent if isinstance(message, channel.Failed)]
    assert told == [channel.Failed("source", 1), channel.Failed("removed", 1), channel.Failed("unknown_layer", 2)]


def test_a_read_gathers_what_the_image_will_not_have(bench: Bench) -> None:
    """Two chunks that a full disk refused and one that is here, read at once; in whatever order they come."""
    bench.connect()
    bench.present.mark(4, 4)
    bench.handle(READ, 1, 5, BLOCK, 14 * BLOCK)
    bench.view.held(5, 8 * BLOCK, memoryview(CONTENT[8 * BLOCK :]))
    assert 1 not in bench.fakes.answers
    bench.view.held(5, 0, memoryview(CONTENT[: 4 * BLOCK]))
    bench.fakes.wait_for(1)
    assert bench.fakes.answers[1] == CONTENT[BLOCK : 15 * BLOCK]
    assert not bench.present.missing(4, 4) and bench.present.missing(0, 1), "it is no less absent than before"


def test_what_was_gathered_and_what_the_disk_took_after_all_make_an_answer(bench: Bench) -> None:
    bench.connect()
    bench.handle(READ, 1, 5, 0, SIZE)
    bench.view.held(5, 0, memoryview(CONTENT[: 8 * BLOCK]))
    bench.present.mark(8, 8)
    bench.view.written(5, 8 * BLOCK, SIZE)
    bench.fakes.wait_for(1)
    assert bench.fakes.answers[1] == CONTENT


def test_gathering_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "GATHERED_MAX", 8 * BLOCK)
    bench.connect()
    bench.handle(READ, 1, 5, 0, SIZE)
    bench.handle(READ, 2, 5, 0, SIZE)
    bench.view.held(5, 0, memoryview(CONTENT[: 8 * BLOCK]))
    kept = [len(piece) for parked in bench.view.parking.all() for piece in parked.pieces.values()]
    assert kept == [8 * BLOCK]

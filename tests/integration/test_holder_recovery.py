"""The view under loop and EROFS on the real kernel: right bytes, and no read lost however its processes die."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import require
from viewrig import ImageFile, Misses, Mounted, Readers, raw_view, read_direct

from fuse.link import ViewLink
from imgdist.pack import BLOCK

SIZE = 8 << 20
CHUNK = 256 * 1024


class Bench:
    """A view in the hands of the real holder, and one agent with one layer."""

    def __init__(self, directory: Path, mounted: Mounted, content: bytes) -> None:
        self.mounted, self.misses = mounted, Misses()
        self.link: ViewLink = mounted.link(self.misses)
        self.image = ImageFile(directory, 2, content)
        self.image.show(self.link)
        self.path = mounted.directory / self.image.name

    def restart_agent(self) -> None:
        """The old agent is gone; the new one knows the layer from its disk."""
        self.link.close()
        self.link = ViewLink(str(self.mounted.socket_path), self.misses.on_miss)
        self.image.announce(self.link)
        self.link.start()
        self.link.wait_live(20)

    def answer_chunk(self, node: int, start: int, length: int) -> None:
        """Fill the chunks of a miss."""
        low, high = start // CHUNK * CHUNK, -(-(start + length) // CHUNK) * CHUNK
        self.image.fill(low, high)
        self.link.written(node, low, high)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with raw_view(tmp_path) as mounted:
        bench = Bench(tmp_path, mounted, random.Random(1).randbytes(SIZE))
        try:
            yield bench
        finally:
            bench.link.close()


@contextlib.contextmanager
def loop_device(file: Path) -> Iterator[str]:
    """A read-only loop device with direct I/O and 4 KiB blocks over `file`."""
    require(os.path.exists("/dev/loop-control"), "loop devices")
    command = ["losetup", "--find", "--show", "--read-only", "--direct-io=on", "--sector-size", str(BLOCK), file]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextlib.contextmanager
def erofs(device: str, target: Path) -> Iterator[Path]:
    target.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "ro", device, target], check=True, timeout=60)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True, timeout=60)


@pytest.mark.parametrize("through_loop", [False, True], ids=["file", "loop"])
def test_a_hit_passes_a_hundred_waiting_misses(bench: Bench, through_loop: bool) -> None:
    """Also through a loop device, whose reads are background requests: INIT must allow enough of them."""
    with loop_device(bench.path) if through_loop else contextlib.nullcontext(bench.path) as path:
        _hit_passes_misses(bench, path)


def _hit_passes_misses(bench: Bench, path: Path | str) -> None:
    bench.image.fill(0, CHUNK)
    waiting = [(CHUNK + index * BLOCK, BLOCK) for index in range(100)]
    readers = Readers(path, waiting)
    bench.misses.wait_for(lambda: len(bench.misses.all) == 100)
    assert bench.image.present.parked == 100
    times = []
    for index in range(50):
        started = time.perf_counter()
        assert read_direct(path, index * BLOCK, BLOCK) == bench.image.content[index * BLOCK : (index + 1) * BLOCK]
        times.append(time.perf_counter() - started)
    assert sorted(times)[25] < 0.010, f"median {sorted(times)[25]:.4f} s, worst {max(times):.4f} s"
    bench.answer_chunk(2, CHUNK, 100 * BLOCK)
    assert readers.join() == {(at, size): bench.image.content[at : at + size] for at, size in waiting}


def test_killed_view_owes_nothing(bench: Bench) -> None:
    """Ten times: kill -9 while 24 O_DIRECT reads are parked; the successor answers them all, with the right bytes."""
    rng = random.Random(4)
    for round_number in range(10):
        blocks = rng.sample(range(SIZE // BLOCK), 24)
        bench.image.present.clear(0, SIZE // BLOCK)
        before = len(bench.misses.all)
        readers = Readers(bench.path, [(block * BLOCK, BLOCK) for block in blocks])
        bench.misses.wait_for(lambda before=before: len(bench.misses.all) >= before + 24)
        bench.misses.answer = bench.answer_chunk
        bench.mounted.kill_view()
        for (offset, size), data in readers.join().items():
            assert data == bench.image.content[offset : offset + size], (round_number, offset)
        bench.misses.answer = lambda node, start, length: None
        bench.image.fill_all()
        recovered = time.monotonic()
        while time.monotonic() - recovered < 0.2:  # a view that is killed at once again is restarted ever later
            offset = rng.randrange(SIZE // BLOCK) * BLOCK
            assert read_direct(bench.path, offset, BLOCK) == bench.image.content[offset : offset + BLOCK]
        assert bench.image.present.parked == 0


def test_view_killed_at_any_moment_under_load(bench: Bench) -> None:
    """Kills that hit reads in flight, not only parked ones; a third of the reads miss."""
    bench.misses.answer = bench.answer_chunk
    stop, wrong = threading.Event(), []
    done = [0] * 4

    def read(number: int) -> None:
        rng = random.Random(number)
        while not stop.is_set():
            offset, size = rng.randrange(SIZE // BLOCK) * BLOCK, rng.choice((BLOCK, 16 * BLOCK))
            try:
                good = read_direct(bench.path, offset, size) == bench.image.content[offset : offset + size]
            except OSError as error:
                wrong.append(f"{offset}: {error}")
                return
            done[number] += 1
            if not good:
                wrong.append(f"{offset}: wrong bytes")
            if rng.random() < 0.3:
                bench.image.present.clear(offset // BLOCK, 1)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(5):
            wait_for_progress(done)
            bench.mounted.kill_view()
            wait_for_progress(done)
    finally:
        stop.set()
        for reader in readers:
            reader.join(30)
    assert not wrong, wrong
    assert not any(reader.is_alive() for reader in readers)


def test_new_agent_hears_of_what_the_old_one_left(bench: Bench) -> None:
    blocks = random.Random(5).sample(range(SIZE // BLOCK), 24)
    readers = Readers(bench.path, [(block * BLOCK, BLOCK) for block in blocks])
    bench.misses.wait_for(lambda: len(bench.misses.all) == 24)
    bench.misses.answer = bench.answer_chunk
    bench.restart_agent()
    for (offset, size), data in readers.join().items():
        assert data == bench.image.content[offset : offset + size]


def test_reads_and_look_ups_without_any_agent_wait_for_one(bench: Bench) -> None:
    """View and agent both gone: hits, misses and look-ups all end well once a new agent is there."""
    bench.image.fill(0, CHUNK)
    bench.link.close()
    bench.mounted.kill_view()
    readers = Readers(bench.path, [(0, BLOCK), (CHUNK, BLOCK)])
    listing: list[str] = []
    lister = threading.Thread(target=lambda: listing.extend(os.listdir(bench.mounted.directory)))
    lister.start()
    bench.misses.answer = bench.answer_chunk
    bench.restart_agent()
    assert readers.join() == {(at, BLOCK): bench.image.content[at : at + BLOCK] for at in (0, CHUNK)}
    lister.join(20)
    assert listing == [bench.image.name]


def test_erofs_through_the_view_while_it_is_killed(tmp_path: Path) -> None:
    """mkfs.erofs -> image -> view file -> loop (direct I/O) -> EROFS: a tree read with random fills and two kills."""
    tree, image = tmp_path / "tree", tmp_path / "made.erofs"
    files = make_tree(tree)
    require(not subprocess.run(["which", "mkfs.erofs"], capture_output=True, check=False).returncode, "mkfs.erofs")
    subprocess.run(["mkfs.erofs", "-T0", image, tree], check=True, capture_output=True)
    content = image.read_bytes()
    content += bytes(-len(content) % BLOCK)
    with raw_view(tmp_path) as mounted:
        bench = Bench(tmp_path, mounted, content)
        bench.misses.answer = answer_by_ring_or_file(bench)
        try:
            with loop_device(bench.path) as device, erofs(device, tmp_path / "layer") as layer:
                for number, (name, data) in enumerate(files.items()):
                    assert (layer / name).read_bytes() == data
                    if number in (20, 60):
                        mounted.kill_view()
                assert sorted(path.name for path in layer.iterdir()) == sorted(files)
        finally:
            bench.link.close()
    assert bench.misses.all


def make_tree(directory: Path) -> dict[str, bytes]:
    rng = random.Random(9)
    directory.mkdir()
    files = {f"file{number}": rng.randbytes(rng.choice((10, 4096, 70_000, 300_000))) for number in range(80)}
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return files


def answer_by_ring_or_file(bench: Bench) -> object:
    rng = random.Random(8)

    def answer(node: int, start: int, length: int) -> None:
        low, high = start // CHUNK * CHUNK, min(-(-(start + length) // CHUNK) * CHUNK, len(bench.image.content))
        slot = bench.link.acquire_ring() if high - low <= CHUNK and rng.random() < 0.5 else None
        if slot is not None:
            bench.link.ring(slot)[: high - low] = bench.image.content[low:high]
            bench.link.ready(node, low, high, slot)
        bench.image.fill(low, high)
        bench.link.written(node, low, high)

    return answer


def wait_for_progress(done: list[int]) -> None:
    """Until every reader has come 20 reads further."""
    goal = [count + 20 for count in done]
    deadline = time.monotonic() + 20
    while any(count < target for count, target in zip(done, goal, strict=True)):
        assert time.monotonic() < deadline, "readers are stuck"
        time.sleep(0.005)


def test_lost_mount_is_made_anew(tmp_path: Path) -> None:
    """Somebody unmounts the view: the holder makes a new session, and a new agent shows its layers there."""
    with raw_view(tmp_path) as mounted:
        bench = Bench(tmp_path, mounted, random.Random(1).randbytes(CHUNK))
        bench.image.fill_all()
        try:
            subprocess.run(["umount", mounted.directory], check=True)
            bench.link.remove(2)
            while not bench.mounted.directory.is_mount():
                time.sleep(0.01)
            bench.image.show(bench.link)
            assert read_direct(bench.path, 0, BLOCK) == bench.image.content[:BLOCK]
        finally:
            bench.link.close()


def test_holder_holds_no_memory_but_the_slots(bench: Bench) -> None:
    """A ring is its agent's: one that ends takes it along, and its successor never writes where it was."""
    links = [os.readlink(fd) for fd in Path(f"/proc/{bench.mounted.process.pid}/fd").iterdir()]
    assert [link for link in links if link.startswith("/memfd:")] == ["/memfd:imgdist-slots (deleted)"]

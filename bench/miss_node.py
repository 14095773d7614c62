"""The node of miss-latency: an agent with the image mounted, and single reads of chosen chunks."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from bench.miss_image import BLOB
from fuse.present import PresentMap
from imgdist import mountinfo
from imgdist.demo.agent import IMGDIST, Agent, Supernode
from imgdist.demo.image import Image
from imgdist.demo.processes import command, wait_until
from imgdist.pack import BLOCK, CHUNK_MAX
from imgdist.pack.index import Index
from supernode.store.reader import PackReader


class Node:
    """A fresh agent that shows the image (miss_image.make, pushed as `reference`) at `mount`; a context manager."""

    def __init__(self, directory: Path, supernode: Supernode, image: Image, reference: str, *, fill: bool) -> None:
        self._directory = directory
        self._supernode = supernode
        self._reference = reference
        self._content = image.directory / "content"
        self._digest = image.layers[0].digest
        settings = ["stop_timeout_s=0", "trace.enabled=false", f"fill.mode={'full' if fill else 'none'}"]
        self._agent = Agent(directory, [supernode.url], settings=settings)
        self._buffer = memoryview(bytearray(BLOCK))
        self._undo = ExitStack()
        self.mount = directory / "image"

    def __enter__(self) -> Node:
        with ExitStack() as undo:
            self.mount.mkdir(parents=True)
            undo.enter_context(self._agent)
            run = ("--run", str(self._agent.run))
            command(*IMGDIST, "mount", self._reference, self.mount, *run)
            undo.callback(command, *IMGDIST, "umount", self.mount, *run)
            self._fd = os.open(self.mount / BLOB, os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, self._fd)
            # A read of 4 KiB shall ask for 4 KiB.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
            expected = os.open(self._content, os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, expected)
            self._expected = expected
            pack_id = next(layer["pack_id"] for layer in self._agent.layers() if layer["digest"] == self._digest)
            pack = self._agent.root / "packs" / pack_id
            self._index = Index.load((pack / "index").read_bytes())
            self._present = PresentMap.open(pack / "present")
            undo.callback(self._present.close)
            self._table = PackReader(self._supernode.root / "packs" / pack_id)
            pieces = os.fstat(self._fd).st_size // CHUNK_MAX
            assert all(self._index.size(chunk) == CHUNK_MAX for chunk in range(pieces)), "one piece is one chunk"
            self._untouched = [chunk for chunk in range(pieces) if not self._index.is_zero(chunk)]
            random.Random(pieces).shuffle(self._untouched)
            self._touched: list[int] = []
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def miss(self) -> tuple[float, int]:
        """Read from a chunk that is not there: milliseconds, and the bytes of its body on the wire."""
        chunk = self._absent()
        self._touched.append(chunk)
        return self._read(chunk * CHUNK_MAX), self._table.row(chunk).length

    def hit(self) -> float:
        """Read a block, of a chunk that an earlier miss brought, that no cache of the kernel's has: milliseconds."""
        chunk = self._touched.pop(0)
        return self._read(chunk * CHUNK_MAX + CHUNK_MAX // 2)

    def start_misses(self, count: int) -> list[threading.Thread]:
        """Begin as many misses at once; the threads end when they are answered. Ends when the view waits for all."""

        def read(chunk: int) -> None:
            os.pread(self._fd, BLOCK, chunk * CHUNK_MAX)

        threads = [threading.Thread(target=read, args=(self._absent(),)) for _ in range(count)]
        for thread in threads:
            thread.start()
        wait_until(lambda: self.waiting == count, f"{count} reads that wait, now {self.waiting}")
        return threads

    @property
    def waiting(self) -> int:
        """Reads of the layer that wait for bytes."""
        return self._present.parked

    @property
    def is_filling(self) -> bool:
        """Whether chunks come that nobody reads, and more of them are absent."""
        return not self._present.all_present() and self._present.count() > self._index.image_size // BLOCK // 50

    def wait_filling(self) -> None:
        """Return when fill is under way."""
        wait_until(lambda: self.is_filling, "fill under way")

    def view_reads(self) -> int:
        """Reads that the loop devices of this node's layers have sent to the view (they read without a cache)."""
        root = f"{self._agent.root}/l/"
        devices = [entry.source for entry in mountinfo.entries() if entry.path.startswith(root)]
        # Documentation/block/stat.rst: the first field counts read I/Os.
        stats = [Path("/sys/block", Path(device).name, "stat").read_text() for device in devices]
        return sum(int(stat.split()[0]) for stat in stats)

    def _absent(self) -> int:
        while True:
            chunk = self._untouched.pop()
            if self._present.missing(self._index.start(chunk) // BLOCK, CHUNK_MAX // BLOCK):
                return chunk

    def _read(self, offset: int) -> float:
        started = time.perf_counter()
        count = os.preadv(self._fd, [self._buffer], offset)
        took = time.perf_counter() - started
        if count != BLOCK or self._buffer != os.pread(self._expected, BLOCK, offset):
            raise RuntimeError(f"wrong bytes at {offset} of {self.mount / BLOB}")
        return took * 1e3


@contextmanager
def stopped_chunk_server(supernode: Supernode) -> Iterator[None]:
    """The supernode's chunk server does not run inside (SIGSTOP)."""
    children = Path(f"/proc/{supernode.pid}/task/{supernode.pid}/children").read_text().split()
    servers = [int(pid) for pid in children if b"supernode.chunkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    if not servers:
        raise RuntimeError(f"supernode {supernode.pid} has no chunk server among {children}")
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in servers:
            os.kill(pid, signal.SIGCONT)

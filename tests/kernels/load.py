"""Readers that never stop and believe nothing: every byte that they read is compared with what belongs there."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from viewrig import read_direct

from imgdist.pack import BLOCK

Reader = Callable[[random.Random], str]
"""One read at a random place: "" or what was wrong about it. OSError counts as wrong, too."""

KILLS = int(os.environ.get("IMGDIST_KILLS", "6"))
"""Of each kind; scripts/kernels asks for 30."""
PATIENCE_S = 120.0
"""How long a reader may wait: emulated processors take seconds for what a real one does at once."""
_BLOCKS = (1, 4, 16)


def direct(path: Path | str, content: bytes, done: Callable[[int, int], None] = lambda offset, size: None) -> Reader:
    """O_DIRECT reads of a file or device that has `content`; `done(offset, size)` after each right one."""

    def read(rng: random.Random) -> str:
        size = rng.choice(_BLOCKS) * BLOCK
        offset = rng.randrange((len(content) - size) // BLOCK) * BLOCK
        if read_direct(path, offset, size) != content[offset : offset + size]:
            return f"wrong bytes at {offset} of {path}"
        done(offset, size)
        return ""

    return read


def cached(files: Sequence[tuple[Path, bytes]]) -> Reader:
    """Ordinary reads of whole files that have this content, after the page cache was asked to forget them."""

    def read(rng: random.Random) -> str:
        path, content = rng.choice(files)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            right = os.read(descriptor, len(content) + 1) == content
        finally:
            os.close(descriptor)
        return "" if right else f"wrong bytes in {path}"

    return read


class Load:
    """A thread for each reader."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.wrong: list[str] = []
        self._done = [0] * len(readers)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number, reader), daemon=True)
            for number, reader in enumerate(readers)
        ]

    @property
    def reads(self) -> int:
        """Right reads so far."""
        return sum(self._done)

    def wait_for_progress(self, reads: int) -> None:
        """Until every reader has come so many reads further."""
        goals = [count + reads for count in self._done]
        deadline = time.monotonic() + PATIENCE_S
        while any(count < goal for count, goal in zip(self._done, goals, strict=True)):
            assert not self.wrong, self.wrong
            assert time.monotonic() < deadline, f"readers are stuck at {self._done}"
            time.sleep(0.01)

    def _run(self, number: int, reader: Reader) -> None:
        rng = random.Random(number)
        while not self._stop.is_set():
            try:
                wrong = reader(rng)
            except OSError as error:
                wrong = str(error)
            if wrong:
                self.wrong.append(wrong)
                return
            self._done[number] += 1

    def _end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a read was never answered"

    @contextlib.contextmanager
    def running(self) -> Iterator[Load]:
        """The readers read; at the end each has, and nothing was wrong."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
            self.wait_for_progress(1)
        finally:
            self._end()
        assert not self.wrong, self.wrong

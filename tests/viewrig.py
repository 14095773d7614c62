"""A view with a test as its agent: real processes, real mounts, layers with random bytes."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from parts import require

from fuse.link import ViewLink
from fuse.present import PresentMap, current_boot_id
from imgdist.errors import TemporaryError
from imgdist.pack import BLOCK

TOP = Path(__file__).parents[1]
START_S = 20.0


class ImageFile:
    """A layer's files on disk, empty at first, and the bytes that belong there."""

    def __init__(self, directory: Path, node: int, content: bytes) -> None:
        assert len(content) % BLOCK == 0
        self.node, self.name, self.content = node, f"layer{node}", content
        self.image, self.map_path = directory / f"{self.name}.image", directory / f"{self.name}.present"
        with self.image.open("wb") as file:
            file.truncate(len(content))
        self.present = PresentMap.create(self.map_path, len(content) // BLOCK, current_boot_id())

    def fill(self, start: int, end: int) -> None:
        """Write the blocks of [start, end) and mark them, as an agent does with a verified chunk."""
        first, last = start // BLOCK, -(-min(end, len(self.content)) // BLOCK)
        with self.image.open("r+b") as file:
            file.seek(first * BLOCK)
            file.write(self.content[first * BLOCK : last * BLOCK])
        self.present.mark(first, last - first)

    def fill_all(self) -> None:
        self.fill(0, len(self.content))

    def show(self, link: ViewLink, timeout_s: float = START_S) -> None:
        with self._files() as (image, present):
            link.add(self.node, len(self.content), self.name, image, present, timeout_s)

    def announce(self, link: ViewLink) -> None:
        with self._files() as (image, present):
            link.announce(self.node, len(self.content), self.name, image, present)

    @contextlib.contextmanager
    def _files(self) -> Iterator[tuple[int, int]]:
        image, present = os.open(self.image, os.O_RDONLY), os.open(self.map_path, os.O_RDWR)
        try:
            yield image, present
        finally:
            os.close(image)
            os.close(present)


class Misses:
    """The misses that came, and what to do with them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.all: list[tuple[int, int, int]] = []
        self.touched: list[tuple[int, int, int]] = []
        self.failed: list[tuple[str, int]] = []
        self.answer: Callable[[int, int, int], None] = lambda node, start, length: None

    def on_miss(self, node: int, start: int, length: int) -> None:
        with self._changed:
            self.all.append((node, start, length))
            self._changed.notify_all()
        self.answer(node, start, length)

    def on_touched(self, entries: list[tuple[int, int, int]]) -> None:
        with self._changed:
            self.touched += entries
            self._changed.notify_all()

    def on_failed(self, reason: str, reads: int) -> None:
        with self._changed:
            self.failed.append((reason, reads))
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout_s), f"{len(self.all)} misses: {self.all[-5:]}"


class Mounted:
    """A running view: `directory` is its mount."""

    def __init__(self, directory: Path, socket_path: Path, process: subprocess.Popen[bytes]) -> None:
        self.directory, self.socket_path, self.process = directory, socket_path, process

    def link(self, misses: Misses) -> ViewLink:
        """A new agent, connected."""
        link = ViewLink(str(self.socket_path), misses.on_miss, misses.on_touched, misses.on_failed)
        link.start()
        try:
            link.wait_live(START_S)
        except TemporaryError:
            link.close()
            raise
        return link

    def view_pid(self) -> int:
        """The view among the holder's children, once it runs."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):
                if b"fuse.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        raise AssertionError("the holder has no view")

    def kill_view(self) -> None:
        """kill -9, and wait for its end (not for its successor)."""
        pid = self.view_pid()
        descriptor = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            assert select.select([descriptor], [], [], 10)[0]
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def raw_view(directory: Path, deadline_s: float = 60.0) -> Iterator[Mounted]:
    """The real holder with the real view; the session is ended whatever happened."""
    require(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "root and /dev/fuse")
    run = directory / "run"
    plan = {
        "run": str(run),
        "root": str(directory / "root"),
        "sockets": [{"name": "view", "path": str(run / "view.sock"), "type": "seqpacket"}],
        "children": [{"role": "view", "argv": [sys.executable, "-m", "fuse.main", "--deadline", str(deadline_s)]}],
        "stop_timeout_s": 1,
    }
    process = start_holder(plan)
    try:
        wait_ready(process)
        yield Mounted(run / "view", run / "view.sock", process)
    finally:
        stop(process, run / "view")


def start_holder(plan: dict[str, object]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "agent.holder", json.dumps(plan)], cwd=TOP, stderr=subprocess.PIPE, bufsize=0
    )


def wait_ready(process: subprocess.Popen[bytes]) -> None:
    """Read standard error until the line `ready`, then pass it on in the background."""
    lines = read_until(process, b"ready")
    assert lines[-1] == b"ready", b"\n".join(lines).decode()
    assert process.stderr is not None
    threading.Thread(target=_drain, args=(process.stderr,), name=f"stderr-{process.pid}", daemon=True).start()


def read_until(process: subprocess.Popen[bytes], text: bytes) -> list[bytes]:
    """Lines of standard error up to the first that has `text`, or to the end."""
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line.rstrip(b"\n"))
        if text in line:
            break
    return lines


def stop(process: subprocess.Popen[bytes], mount_point: Path) -> None:
    """SIGTERM, then SIGKILL, then an abort of this one connection: what still hangs in it must end."""
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(15)
    for thread in threading.enumerate():
        if thread.name == f"stderr-{process.pid}":
            thread.join(10)
    if process.stderr is not None:
        process.stderr.close()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[4] == str(mount_point):
            abort(int(fields[2].partition(":")[2]))
            libc = ctypes.CDLL(None)
            libc.umount2(os.fsencode(mount_point), 2)


def abort(minor: int) -> None:
    """End the FUSE connection of the mount with that minor device number, and with it every request."""
    control = Path("/sys/fs/fuse/connections")
    if not any(control.iterdir()):
        subprocess.run(["mount", "-t", "fusectl", "none", control], check=False)
    file = control / str(minor) / "abort"
    if file.exists():
        file.write_text("1")


@contextlib.contextmanager
def libfuse_view(directory: Path, deadline_s: float = 60.0) -> Iterator[Mounted]:
    """The transport over libfuse."""
    require(os.path.exists("/dev/fuse") and _has_libfuse(), "libfuse and /dev/fuse")
    mount_point, socket_path = directory / "view", directory / "view.sock"
    mount_point.mkdir()
    command = [sys.executable, "-m", "fuse.libfuse", str(mount_point), str(socket_path), "--deadline", str(deadline_s)]
    process = subprocess.Popen(command, cwd=TOP)
    try:
        yield Mounted(mount_point, socket_path, process)
    finally:
        subprocess.run(["umount", "-l", mount_point], check=False, capture_output=True)
        stop(process, mount_point)


def _has_libfuse() -> bool:
    from ctypes.util import find_library

    return bool(find_library("fuse3") or find_library("fuse"))


def _drain(stream: object) -> None:
    for line in stream:  # type: ignore[attr-defined]
        sys.stderr.write(line.decode(errors="replace"))


def read_direct(path: Path | str, offset: int, size: int) -> bytes:
    """O_DIRECT: each call reaches the view, whatever the page cache has."""
    buffer = mmap.mmap(-1, -(-size // BLOCK) * BLOCK)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        return buffer[: os.preadv(descriptor, [memoryview(buffer)[:size]], offset)]
    finally:
        os.close(descriptor)


class Readers:
    """Threads that each read one range, O_DIRECT, and keep bytes or OSError. Threads, so that a test can go on."""

    def __init__(self, path: Path | str, ranges: list[tuple[int, int]]) -> None:
        self.results: dict[tuple[int, int], bytes | OSError] = {}
        self._threads = [threading.Thread(target=self._read, args=(path, *item), daemon=True) for item in ranges]
        for thread in self._threads:
            thread.start()

    def _read(self, path: Path | str, offset: int, size: int) -> None:
        try:
            self.results[(offset, size)] = read_direct(path, offset, size)
        except OSError as error:
            self.results[(offset, size)] = error

    def join(self, timeout_s: float = 20.0) -> dict[tuple[int, int], bytes | OSError]:
        for thread in self._threads:
            thread.join(timeout_s)
            assert not thread.is_alive(), "a read was never answered"
        return self.results

"""The second transport: libfuse through mfusepy, for mounts without root (fusermount3).

`python -m fuse.libfuse MOUNTPOINT SOCKET [--deadline SECONDS]` listens at SOCKET for an agent and serves in the
foreground. The same View decides; but libfuse hands out no request that could be answered later by someone else: a
miss holds one of its threads, and a killed process takes its session along. Hence the raw transport for daemons.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import logging
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterable
from typing import Any

from fuse import protocol
from fuse.outbox import Outbox
from fuse.port import Port
from fuse.protocol import ROOT_NODE, Buffer, Request
from fuse.view import View

DEADLINE_S = 60.0


class _Waiter:
    """One callback of libfuse that waits for its answer."""

    __slots__ = ("answered", "number", "value")

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.value: Any = None
        self.number = 0


class Waiters:
    """Answers for threads that wait for them."""

    def __init__(self) -> None:
        self._unique = itertools.count(1)
        self._waiting: dict[int, _Waiter] = {}

    def ask(self, view: View, opcode: int, node: int = ROOT_NODE, at: int = 0, size: int = 0, name: str = "") -> Any:
        """Put one request to the view and wait for the answer's value. Raises OSError."""
        unique, waiter = next(self._unique), _Waiter()
        self._waiting[unique] = waiter
        request = Request(opcode, unique, node, at, size, os.fsencode(name))
        view.handle(request, memoryview(bytearray(size if opcode == protocol.READ else 0)))
        waiter.answered.wait()
        if waiter.number:
            raise OSError(waiter.number, os.strerror(waiter.number))
        return waiter.value

    def data(self, unique: int, *pieces: Buffer) -> None:
        self._answer(unique, b"".join(pieces))

    def error(self, unique: int, number: int) -> None:
        self._answer(unique, None, number)

    def entry(self, unique: int, node: int, size: int) -> None:
        self._answer(unique, (node, size))

    def attr(self, unique: int, node: int, size: int) -> None:
        self._answer(unique, (node, size))

    def opened(self, unique: int, node: int) -> None:
        self._answer(unique, node)

    def listing(self, unique: int, entries: Iterable[tuple[int, bytes]], offset: int, size: int) -> None:
        self._answer(unique, [os.fsdecode(name) for _, name in entries])

    def statfs(self, unique: int, blocks: int, files: int) -> None:
        self._answer(unique, (blocks, files))

    def _answer(self, unique: int, value: Any, number: int = 0) -> None:
        waiter = self._waiting.pop(unique, None)
        if waiter is not None:
            waiter.value, waiter.number = value, number
            waiter.answered.set()


class Operations:
    """libfuse's callbacks, each a request to the view. Paths are "/" and "/<layer name>"."""

    use_ns = True

    def __init__(self, view: View, waiters: Waiters) -> None:
        self._view, self._waiters = view, waiters

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o500, "st_nlink": 2}
        _, size = self._find(path)
        return {
            "st_mode": stat.S_IFREG | 0o400,
            "st_nlink": 1,
            "st_size": size,
            "st_blocks": size // 512,
        }

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self._waiters.ask(self._view, protocol.READDIR)]

    def open(self, path: str, flags: int) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self._find(path)[0]

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        data: bytes = self._waiters.ask(self._view, protocol.READ, fh, offset, size)
        return data

    def statfs(self, path: str) -> dict[str, int]:
        blocks, files = self._waiters.ask(self._view, protocol.STATFS)
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": blocks, "f_files": files, "f_namemax": 255}

    def _find(self, path: str) -> tuple[int, int]:
        found: tuple[int, int] = self._waiters.ask(self._view, protocol.LOOKUP, name=path.removeprefix("/"))
        return found


class ForgottenTable:
    """A table that nobody will inherit."""

    def put(self, index: int, request: Request, since_ns: int) -> None:
        """Nothing outlives this process."""

    def drop(self, index: int) -> None:
        """Nothing to free."""


def main() -> int:
    """Mount, serve until unmounted or told to end."""
    parser = argparse.ArgumentParser(prog="python -m fuse.libfuse", description=__doc__.partition("\n")[0])
    parser.add_argument("mountpoint")
    parser.add_argument("socket")
    parser.add_argument("--deadline", type=float, default=DEADLINE_S, help="seconds a read may wait; 0: for ever")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    import mfusepy  # loads libfuse, which this machine may lack: only who asks for this transport needs it

    waiters, outbox = Waiters(), Outbox()
    view = View(waiters, outbox, ForgottenTable())
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(arguments.socket)
    listener.listen()
    never, _open = os.pipe()  # our parent is whoever mounted; libfuse ends when unmounted
    port = Port(listener, outbox, view, arguments.deadline, never)
    threading.Thread(target=port.run, name="port", daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    mfusepy.FUSE(
        Operations(view, waiters),
        arguments.mountpoint,
        foreground=True,
        fsname="imgdist",
        ro=True,
    )
    os.unlink(arguments.socket)
    return 0


if __name__ == "__main__":
    sys.exit(main())

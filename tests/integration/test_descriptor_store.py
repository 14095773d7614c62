"""The service manager's descriptor store, played by a test: what a holder puts there, the next one goes on with."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import require
from viewrig import TOP, ImageFile, Misses, Readers, read_direct, start_holder, stop, wait_ready

from fuse.link import ViewLink
from imgdist.pack import BLOCK

SIZE = 64 * BLOCK

# As systemd starts a process with stored descriptors: they are 3 and following, LISTEN_PID is its own.
_START = """
import os, sys
if not sys.stdin.readline():
    sys.exit()
fds = [os.dup(int(number)) for number in sys.argv[1].split(",")]
fds = [os.dup2(fd, 200 + index) for index, fd in enumerate(fds)]
for index, fd in enumerate(fds):
    os.dup2(fd, 3 + index, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.executable, [sys.executable, "-m", "agent.holder", sys.argv[3]])
"""


class Manager:
    """Keeps what it is sent with FDSTORE=1, by name."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(15)
        self.stored: dict[str, int] = {}

    def receive_until(self, wanted: str) -> None:
        """Take messages up to `wanted`."""
        while True:
            data, fds, _, _ = socket.recv_fds(self._socket, 4096, 8)
            lines = dict(line.partition("=")[::2] for line in data.decode().splitlines())
            if "FDSTOREREMOVE" in lines and lines["FDNAME"] in self.stored:
                os.close(self.stored.pop(lines["FDNAME"]))
            elif "FDSTORE" in lines:
                self.stored[lines["FDNAME"]] = fds[0]
            if data.decode() == wanted:
                return

    def prepare(self, plan: dict[str, object]) -> subprocess.Popen[bytes]:
        """A holder that gets it all back, once it is written a line. Forked while no file of the view is open here: the
        fork would close it, which waits for a view (fuse_flush), and there is none between two holders."""
        numbers, names = ",".join(map(str, self.stored.values())), ":".join(self.stored)
        argv = [sys.executable, "-c", _START, numbers, names, json.dumps(plan)]
        fds = tuple(self.stored.values())
        environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}  # leaves nothing
        return subprocess.Popen(
            argv, cwd=TOP, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, pass_fds=fds
        )

    def close(self) -> None:
        self._socket.close()
        while self.stored:
            os.close(self.stored.popitem()[1])


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    require(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "root and /dev/fuse")
    made = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield made
    made.close()


def plan(directory: Path) -> dict[str, object]:
    run = directory / "run"
    return {
        "run": str(run),
        "root": str(directory / "root"),
        "sockets": [
            {"name": "view", "path": str(run / "view.sock"), "type": "seqpacket"},
            {"name": "peer", "tcp": "127.0.0.1:0", "type": "stream"},
        ],
        "children": [{"role": "view", "argv": [sys.executable, "-m", "fuse.main"]}],
        "stop_timeout_s": 1,
    }


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_read_outlives_the_restart_of_the_service(tmp_path: Path, manager: Manager, end: signal.Signals) -> None:
    """Ended in order or killed: the read waits for the next holder's view, and the mount is the same."""
    run, misses = tmp_path / "run", Misses()
    image = ImageFile(tmp_path, 2, random.Random(1).randbytes(SIZE))
    path = run / "view" / image.name
    first = start_holder(plan(tmp_path))
    wait_ready(first)
    manager.receive_until("READY=1")
    assert set(manager.stored) == {"fuse", "slots", "socket-view", "socket-peer"}
    second = manager.prepare(plan(tmp_path))
    link = ViewLink(str(run / "view.sock"), misses.on_miss)
    link.start()
    image.show(link)
    image.fill(0, BLOCK)
    device, port = os.stat(run / "view").st_dev, _port(manager.stored["socket-peer"])
    readers = Readers(path, [(BLOCK, BLOCK)])
    misses.wait_for(lambda: bool(misses.all))
    first.send_signal(end)
    first.wait(15)
    try:
        assert second.stdin is not None
        second.stdin.write(b"\n")
        second.stdin.close()
        wait_ready(second)
        link.wait_live(15)
        assert os.stat(run / "view").st_dev == device
        assert read_direct(path, 0, BLOCK) == image.content[:BLOCK]
        image.fill_all()
        link.written(2, 0, SIZE)
        assert readers.join() == {(BLOCK, BLOCK): image.content[BLOCK : 2 * BLOCK]}
        socket.create_connection(("127.0.0.1", port), 5).close()
    finally:
        link.close()
        manager.close()
        stop(second, run / "view")
        _drained(first)


def _drained(process: subprocess.Popen[bytes]) -> None:
    for thread in threading.enumerate():
        if thread.name == f"stderr-{process.pid}":
            thread.join(10)
    assert process.stderr is not None
    process.stderr.close()


def _port(fd: int) -> int:
    with socket.socket(fileno=os.dup(fd)) as listener:
        return int(listener.getsockname()[1])

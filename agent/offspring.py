"""A process that the holder starts, restarts and stops, and the socket on which it talks to the holder."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

FD_VARIABLE, ROLE_VARIABLE, VERSION = "IMGDIST_HOLDER_FD", "IMGDIST_HOLDER_ROLE", 2
"""As in imgdist/holder_client.py, which the holder does not import: it must run beside a newer one."""

_BACKOFF_LEAST_S, _BACKOFF_MOST_S = 0.05, 5.0
_STEADY_S = 0.1
"""A child that served this long had a good start: its next death is a new story. Readers wait for a killed view, so a
second kill soon after the first must not cost them more than the first."""
_MESSAGE_MAX = 65536
_PR_SET_PDEATHSIG = 1
_EXIT_NOT_FOUND = 127  # as a shell says it
_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """One child in the plan, over all its restarts. Times are CLOCK_MONOTONIC seconds.

    A view is `settled` when an agent has named its layers to it.
    With `standby` it is started beside a predecessor: it says when it `stands_by`, loaded, and is told to go when the
    other one has ended.
    """

    def __init__(self, role: str, argv: list[str], environment: dict[str, str]) -> None:
        """`environment`: variables of its own beside ours."""
        self.role, self.argv, self.environment = role, argv, environment
        self.standby = self.stands_by = self.settled = False
        self.status = 0
        """How its last process ended (negative: the signal)."""
        self.connection: socket.socket | None = None
        self.ready = self.ever_ready = False
        self.restart_at = 0.0
        self.pid = 0
        self.running = False
        self._backoff_s = 0.0
        self._ready_at = 0.0

    def take_up(self, pid: int, connection: socket.socket, ready: bool) -> None:
        """A process that runs already, started by the holder that this one was."""
        self.pid, self.connection = pid, connection
        self.running, self.ready, self.ever_ready = True, ready, ready
        self._ready_at = time.monotonic()

    def start(self) -> socket.socket:
        """Start the process; returns our end of its socket.

        A plain fork: this process has one thread, and the subprocess module would cost 2 MiB that are never given back.
        """
        self.ready = self.stands_by = self.settled = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            sys.stderr.flush()
            self.pid = os.fork()
            if self.pid == 0:
                contact = {FD_VARIABLE: str(theirs.fileno()), ROLE_VARIABLE: self.role}
                _become(self.argv, self.environment | contact, theirs.fileno())
        self.running = True
        self.connection = ours
        return ours

    def receive(self) -> dict[str, object] | None:
        """The next message; None when the child has hung up, talks nonsense or has nothing to say."""
        assert self.connection is not None
        try:
            data = self.connection.recv(_MESSAGE_MAX, socket.MSG_DONTWAIT)
            message = json.loads(data) if data else None
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def welcome(self, spoken: object, names: list[str], fds: list[int]) -> None:
        """Answer a hello, in the latest version that both sides speak, with descriptors."""
        version = min(spoken, VERSION) if isinstance(spoken, int) else VERSION
        self._send({"v": version, "names": names, "standby": self.standby}, fds)

    def tell(self, word: str) -> None:
        """ "go": begin to serve; "retire": let your successor serve, and end."""
        self._send({word: True})

    def _send(self, message: dict[str, object], fds: Sequence[int] = ()) -> None:
        if self.connection is None:
            return
        try:
            socket.send_fds(self.connection, [json.dumps(message).encode()], fds, socket.MSG_NOSIGNAL)
        except ConnectionError:
            return  # it died meanwhile; SIGCHLD follows

    def is_ready(self) -> None:
        """The child says that it serves."""
        self.ready = self.ever_ready = True
        self._ready_at = time.monotonic()

    def reap(self) -> int | None:
        """The status of a child that has just ended (negative: the signal), else None."""
        if not self.running:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        self.running = False
        self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def has_ended(self) -> bool:
        """Whether its process is gone; for one that nobody else reaps."""
        self.reap()
        return not self.running

    def plan_restart(self) -> float:
        """Set `restart_at`; returns the delay in seconds: none, then 0.05 and doubled at each death soon after a start.
        Readers and containerd wait for who is started again."""
        now = time.monotonic()
        if self.ready and now - self._ready_at >= _STEADY_S:
            self._backoff_s = 0.0
        delay_s = self._backoff_s
        self._backoff_s = min(max(2 * delay_s, _BACKOFF_LEAST_S), _BACKOFF_MOST_S)
        self.ready = False
        self.restart_at = now + delay_s
        return delay_s

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it (SIGKILL)."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait for its end, which was made sure."""
        os.waitpid(self.pid, 0)
        self.running = False

    def disconnect(self) -> None:
        """Close our end of its socket."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def run_aside(argv: list[str], environment: dict[str, str]) -> int:
    """Start a program that is no child of the plan and knows nothing of the holder; its process id."""
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become(argv, environment, None)
    return pid


def _become(argv: list[str], variables: dict[str, str], keep: int | None) -> None:
    """In the child: turn into the program, with standard input from nowhere and descriptor `keep`, if any, left open.

    It ends when the holder does: two holders' children must never share a root directory.
    """
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setpgid(0, 0)  # Ctrl-C at a terminal is for the holder, which ends its children one after the other
        if keep is not None:
            os.set_inheritable(keep, True)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvpe(argv[0], argv, {**os.environ, **variables})
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(_EXIT_NOT_FOUND)

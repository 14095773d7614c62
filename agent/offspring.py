"""A process that the holder starts, restarts and stops, and the socket on which it talks to the holder."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import time

FD_VARIABLE, ROLE_VARIABLE, VERSION = "IMGDIST_HOLDER_FD", "IMGDIST_HOLDER_ROLE", 1
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
    """One child in the plan, over all its restarts. Times are CLOCK_MONOTONIC seconds."""

    def __init__(self, role: str, argv: list[str], environment: dict[str, str]) -> None:
        """`environment`: variables of its own beside ours."""
        self.role, self._argv, self._environment = role, argv, environment
        self.connection: socket.socket | None = None
        self.ready = self.ever_ready = False
        self.restart_at = 0.0
        self.pid = 0
        self.running = False
        self._backoff_s = 0.0
        self._ready_at = 0.0

    def start(self) -> socket.socket:
        """Start the process; returns our end of its socket.

        A plain fork: this process has one thread, and the subprocess module would cost 2 MiB that are never given back.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            sys.stderr.flush()
            self.pid = os.fork()
            if self.pid == 0:
                contact = {FD_VARIABLE: str(theirs.fileno()), ROLE_VARIABLE: self.role}
                _become(self._argv, self._environment | contact, theirs.fileno())
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

    def send(self, names: list[str], fds: list[int]) -> None:
        """Hand over descriptors."""
        assert self.connection is not None
        answer = json.dumps({"v": VERSION, "names": names}).encode()
        try:
            socket.send_fds(self.connection, [answer], fds, socket.MSG_NOSIGNAL)
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
        return os.waitstatus_to_exitcode(status)

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


def _become(argv: list[str], variables: dict[str, str], keep: int) -> None:
    """In the child: turn into the program, with standard input from nowhere and descriptor `keep` left open.

    It ends when the holder does: two holders' children must never share a root directory.
    """
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        os.setpgid(0, 0)  # Ctrl-C at a terminal is for the holder, which ends its children one after the other
        os.set_inheritable(keep, True)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvpe(argv[0], argv, {**os.environ, **variables})
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(_EXIT_NOT_FOUND)

"""A process that the holder starts, restarts and stops, and the socket on which it talks to the holder."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
from typing import Any

FD_VARIABLE, ROLE_VARIABLE, VERSION = "IMGDIST_HOLDER_FD", "IMGDIST_HOLDER_ROLE", 1
"""As in imgdist/holder_client.py, which the holder does not import: it must run beside a newer one."""

_BACKOFF_LEAST_S, _BACKOFF_MOST_S = 0.05, 5.0
_STEADY_S = 0.1
"""A child that served this long had a good start: its next death is a new story. Readers wait for a killed view, so a
second kill soon after the first must not cost them more than the first."""
_MESSAGE_MAX = 65536
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """One child in the plan, over all its restarts. Times are CLOCK_MONOTONIC seconds."""

    def __init__(self, role: str, argv: list[str]) -> None:
        self.role, self._argv = role, argv
        self.connection: socket.socket | None = None
        self.ready = self.ever_ready = False
        self.restart_at = 0.0
        self.pid = 0
        self._backoff_s = _BACKOFF_LEAST_S
        self._ready_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Started and not reaped yet."""
        return self._process is not None

    def start(self) -> socket.socket:
        """Start the process; returns our end of its socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            environment = {**os.environ, FD_VARIABLE: str(theirs.fileno()), ROLE_VARIABLE: self.role}
            self._process = subprocess.Popen(
                self._argv,
                env=environment,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_parent,  # safe: the holder has one thread
            )
        self.pid = self._process.pid
        self.connection = ours
        return ours

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the child has hung up or talks nonsense."""
        assert self.connection is not None
        try:
            data = self.connection.recv(_MESSAGE_MAX)
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
        if self._process is None or (status := self._process.poll()) is None:
            return None
        self._process = None
        return status

    def plan_restart(self) -> float:
        """Set `restart_at`; returns the delay in seconds, doubled at each death soon after a start."""
        now = time.monotonic()
        if self.ready and now - self._ready_at >= _STEADY_S:
            self._backoff_s = _BACKOFF_LEAST_S
        delay_s = self._backoff_s
        self._backoff_s = min(2 * delay_s, _BACKOFF_MOST_S)
        self.ready = False
        self.restart_at = now + delay_s
        return delay_s

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End it (SIGKILL)."""
        if self._process is not None:
            self._process.kill()

    def wait(self) -> None:
        """Wait for its end, which was made sure."""
        if self._process is not None:
            self._process.wait()
            self._process = None

    def disconnect(self) -> None:
        """Close our end of its socket."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def _die_with_parent() -> None:
    """In the child: end when the holder does. Two holders' children must never share a root directory."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

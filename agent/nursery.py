"""The holder's children: started, listened to, started again when they die. The standard library alone, one thread.

`turn` is one round of it: whoever waits for something (a child's readiness, the end of another) takes turns meanwhile,
so that everything else goes on.
"""

from __future__ import annotations

import math
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable

from agent import systemd
from agent.held import Held
from agent.offspring import Child
from agent.succession import SIGNALS
from agent.watchdog import Watchdog

_SESSION_LOST = 75  # what the view exits with when its mount was taken away (fuse/main.py)
_STOPPED = frozenset({signal.SIGTERM, signal.SIGINT})


class StopError(Exception):
    """The holder is to end with exit status `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


class Nursery:
    """`children` are in the order of the plan: the last one uses those before it."""

    def __init__(self, children: list[Child], held: Held, watchdog: Watchdog) -> None:
        self.children, self._held, self._watchdog = children, held, watchdog
        self.announced = False
        self.errand = 0
        """A process that is no child of the plan; it is only reaped."""
        self._hung_up = False
        self._selector = selectors.DefaultSelector()
        self._signals, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._selector.register(self._signals, selectors.EVENT_READ, self._signalled)
        self._stop_signal = 0

    def watch(self, fd: int, come: Callable[[], None]) -> None:
        """Call `come` whenever `fd` is readable."""
        self._selector.register(fd, selectors.EVENT_READ, come)

    def unwatch(self, fd: int) -> None:
        """Not any more."""
        self._selector.unregister(fd)

    def start(self, child: Child) -> None:
        """Start a child's process and listen to it."""
        self._attach(child, child.start())

    def take_up(self, child: Child, pid: int, connection: socket.socket, ready: bool) -> None:
        """Listen to a process that runs already."""
        child.take_up(pid, connection, ready)
        self._attach(child, connection)

    def hung_up(self) -> bool:
        """Whether SIGHUP came since this was asked last."""
        came, self._hung_up = self._hung_up, False
        return came

    def turn(self, timeout_s: float | None = None) -> None:
        """Wait until something happens, at most `timeout_s`, and see to it. StopError at SIGTERM (0) or SIGINT (130),
        or when a child refuses to start (its exit status)."""
        now = time.monotonic()
        due = [child.restart_at - now for child in self.children if not child.running]
        due += [] if math.isinf(self._watchdog.due) else [self._watchdog.due - now]
        due += [] if timeout_s is None else [timeout_s]
        self.listen(max(0.0, min(due)) if due else None)
        if self._stop_signal:
            raise StopError(0 if self._stop_signal == signal.SIGTERM else 128 + signal.SIGINT)
        if self.errand and os.waitpid(self.errand, os.WNOHANG)[0]:
            self.errand = 0
        for child in self.children:
            status = child.reap()
            if status is not None:
                self._died(child, status)
        self._end_hung(self._watchdog.look(time.monotonic()))
        for child in self.children:
            if not child.running and time.monotonic() >= child.restart_at:
                self.start(child)

    def listen(self, timeout_s: float | None) -> None:
        """Serve sockets and signals until something comes, and nothing beside that."""
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def turn_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Take turns until `condition` holds; False if it does not within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            self.turn(left_s)
        return True

    def end(self, child: Child, grace_s: float) -> None:
        """SIGTERM, SIGKILL after `grace_s`; returns when it is gone. No child is started again meanwhile."""
        if child.running:
            child.terminate()
            deadline = time.monotonic() + grace_s
            while child.reap() is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    say(f"{child.role} (process {child.pid}) did not end in time: killed")
                    child.kill()
                    child.wait()
                    break
                self.listen(left_s)
        self.forget(child)

    def forget(self, child: Child) -> None:
        """Listen to it no more."""
        if child.connection is not None:
            self._selector.unregister(child.connection)
            child.disconnect()

    def _end_hung(self, pids: list[int]) -> None:
        """SIGKILL, which also ends a process that stands still: its clients' connections break instead of hanging."""
        for child in self.children:
            if child.running and child.pid in pids:
                say(f"{child.role} (process {child.pid}) gives no sign of life: killed")
                child.kill()

    def _attach(self, child: Child, connection: socket.socket) -> None:
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._hear(child))

    def _signalled(self) -> None:
        for number in os.read(self._signals, 4096):
            if number in _STOPPED:
                self._stop_signal = self._stop_signal or number
            elif number == signal.SIGHUP:
                self._hung_up = True

    def _hear(self, child: Child) -> None:
        """One message of a child: its hello gets the descriptors, its readiness may complete ours."""
        message = child.receive()
        if message is None:
            self.forget(child)
        elif "hello" in message:
            child.welcome(message["hello"], *self._held.descriptors(child.role))
        elif message.get("alive"):
            self._watchdog.heard(child.pid, time.monotonic())
        elif message.get("standby"):
            child.stands_by = True
        elif message.get("settled"):
            child.settled = True
        elif message.get("ready"):
            child.is_ready()
            if not self.announced and all(other.ready for other in self.children):
                self.announced = True
                systemd.notify("READY=1")
                print("ready", file=sys.stderr, flush=True)

    def _died(self, child: Child, status: int) -> None:
        """Plan the restart. StopError with the status to give up with: a child that never served will not serve."""
        while child.connection is not None:
            self._hear(child)  # it may have said that it serves, and died before we listened
        self._watchdog.forget(child.pid)
        if status > 0 and not child.ever_ready and status != _SESSION_LOST:
            say(f"{child.role} does not start (exit status {status}, its message is above): giving up")
            raise StopError(status)
        delay_s = child.plan_restart()
        when = f"in {delay_s:.2f} s" if delay_s else "at once"
        say(f"{child.role} (process {child.pid}) {why(status)}: starting it again {when}")
        if child.role == "view" and status == _SESSION_LOST:
            say("the view's mount is gone: making a new session; the agent moves the layers over to it")
            self._held.renew_session()
            for other in self.children:
                if other.role == "agent" and other.running:
                    other.kill()  # it comes back at once, and at its start takes over loop devices of dead sessions


def why(status: int) -> str:
    """What an exit status (negative: a signal) says."""
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def say(text: str) -> None:
    """One line on standard error."""
    print(f"holder: {text}", file=sys.stderr, flush=True)

"""The holder: owns what must outlive a crash or an upgrade, and starts the processes that use it.

`python -m agent.holder PLAN_JSON`. It holds the listening sockets, the FUSE session and the shared memory of the view
(agent/held.py), hands them to its children (imgdist/holder_client.py says how), restarts a child that dies, and stops
them in reverse order of their start. The standard library alone, one thread, nothing of packs: there is hardly
anything in here that could fail.

Plan: {"run": DIR, "fuse": bool (default true), "sockets": [{"name", "path" | "tcp": "HOST:PORT", "type":
"stream"|"seqpacket"}], "children": [{"role", "argv": [...], "environment": {NAME: VALUE} (default none)}],
"stop_timeout_s": 30}.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
import time

from agent.held import Held, HoldError, notify_systemd
from agent.offspring import Child

_SESSION_LOST = 75  # what the view exits with when its mount was taken away (fuse/main.py)
_AGENT_GRACE_S = 5.0  # beyond stop_timeout_s, which the agent spends on filling layers
_CHILD_GRACE_S = 5.0


class Holder:
    """The loop. Children are in the order of the plan: the last one uses those before it."""

    def __init__(self, children: list[Child], held: Held, stop_timeout_s: float) -> None:
        self._children, self._held, self._stop_timeout_s = children, held, stop_timeout_s
        self._announced = False
        self._selector = selectors.DefaultSelector()
        self._signals, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._selector.register(self._signals, selectors.EVENT_READ)

    def run(self) -> int:
        """Until SIGTERM (0) or SIGINT (130), or until a child refuses to start (its exit status)."""
        for child in self._children:
            self._start(child)
        while True:
            due = [child.restart_at for child in self._children if not child.running]
            received = self._wait(max(0.0, min(due) - time.monotonic()) if due else None)
            if received & {signal.SIGTERM, signal.SIGINT}:
                self._stop()
                return 0 if signal.SIGTERM in received else 128 + signal.SIGINT
            for child in self._children:
                status = child.reap()
                if status is not None and (refused := self._died(child, status)):
                    self._stop()
                    return refused
            for child in self._children:
                if not child.running and time.monotonic() >= child.restart_at:
                    self._start(child)

    def _wait(self, timeout_s: float | None) -> set[int]:
        """Serve the children's sockets until something happens; the signals that came."""
        received: set[int] = set()
        for key, _ in self._selector.select(timeout_s):
            if key.fd == self._signals:
                received.update(os.read(self._signals, 4096))
            else:
                self._listen(key.data)
        return received

    def _start(self, child: Child) -> None:
        self._selector.register(child.start(), selectors.EVENT_READ, child)

    def _listen(self, child: Child) -> None:
        """One message of a child: its hello gets the descriptors, its readiness may complete ours."""
        message = child.receive()
        if message is None:
            self._forget(child)
        elif "hello" in message:
            child.send(*self._held.descriptors(child.role))
        elif message.get("ready"):
            child.is_ready()
            if not self._announced and all(other.ready for other in self._children):
                self._announced = True
                notify_systemd("READY=1")
                print("ready", file=sys.stderr, flush=True)

    def _forget(self, child: Child) -> None:
        if child.connection is not None:
            self._selector.unregister(child.connection)
            child.disconnect()

    def _died(self, child: Child, status: int) -> int:
        """Plan the restart, or name the status to give up with: a child that never served will not serve either."""
        while child.connection is not None:
            self._listen(child)  # it may have said that it serves, and died before we listened
        if status > 0 and not child.ever_ready and status != _SESSION_LOST:
            say(f"{child.role} does not start (exit status {status}, its message is above): giving up")
            return status
        delay_s = child.plan_restart()
        why = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        when = f"in {delay_s:.2f} s" if delay_s else "at once"
        say(f"{child.role} (process {child.pid}) {why}: starting it again {when}")
        if child.role == "view" and status == _SESSION_LOST:
            say("the view's mount is gone: making a new session; the agent moves the layers over to it")
            self._held.renew_session()
            for other in self._children:
                if other.role == "agent" and other.running:
                    other.kill()  # it comes back at once, and at its start takes over loop devices of dead sessions
        return 0

    def _stop(self) -> None:
        notify_systemd("STOPPING=1")
        grace_s = self._stop_timeout_s + _AGENT_GRACE_S
        for child in reversed(self._children):
            if child.running:
                child.terminate()
                self._await_end(child, time.monotonic() + grace_s)
            grace_s = _CHILD_GRACE_S
        self._held.release()

    def _await_end(self, child: Child, deadline: float) -> None:
        while child.reap() is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                say(f"{child.role} (process {child.pid}) did not end in time: killed")
                child.kill()
                child.wait()
                break
            self._wait(left_s)
        self._forget(child)


def say(text: str) -> None:
    """One line on standard error."""
    print(f"holder: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Run the plan given as the only argument; 1 with a line that says why if something cannot be held."""
    try:
        plan = json.loads(sys.argv[1])
        children = [Child(item["role"], item["argv"], item.get("environment", {})) for item in plan["children"]]
        stop_timeout_s = float(plan.get("stop_timeout_s", 30))
        held = Held(plan["run"], plan["root"], plan["sockets"], plan.get("fuse", True))
    except (IndexError, ValueError, KeyError, TypeError) as error:
        say(f"expected one argument, the plan as JSON: {error!r}")
        return 2
    except HoldError as error:
        say(str(error))
        return 1
    try:
        return Holder(children, held, stop_timeout_s).run()
    except (OSError, HoldError) as error:
        say(f"cannot go on: {error}")
        held.release()
        return 1


if __name__ == "__main__":
    sys.exit(main())

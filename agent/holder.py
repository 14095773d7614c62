"""The holder: owns what must outlive a crash or an upgrade, and starts the processes that use it.

`python -m agent.holder PLAN_JSON`. It holds the listening sockets, the FUSE session and the shared memory of the view
(agent/held.py), hands them to its children (imgdist/holder_client.py says how), restarts a child that dies, and stops
them in reverse order of their start (agent/nursery.py). Asked for an upgrade it becomes the new release's holder
(agent/succession.py), which replaces the children (agent/replacement.py). The standard library alone, one thread,
nothing of packs: there is hardly anything in here that could fail.

Plan: {"run": DIR, "root": DIR, "fuse": bool (default true), "sockets": [{"name", "path" | "tcp": "HOST:PORT", "type":
"stream"|"seqpacket"}], "children": [{"role", "argv": [...], "environment": {NAME: VALUE} (default none)}],
"stop_timeout_s": 30, "watchdog_s": how long a child that gives signs of life may be silent (default and 0: for ever),
"release": text, "launch": how a newer release makes a plan like this one (agent/launch.py),
"upgrade": {"argv", "environment"} of the command that SIGHUP runs (default none)}. The socket "holder" is its own
(agent/control.py).
`python -m agent.holder --versions` prints, as JSON, the versions of state that this holder reads and writes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from agent import succession, systemd
from agent.control import Control, answer
from agent.held import Held, HoldError
from agent.nursery import Nursery, StopError, say
from agent.offspring import Child, run_aside
from agent.replacement import ReplacementError, replace
from agent.succession import Program, Running, State
from agent.watchdog import Watchdog

_AGENT_GRACE_S = 5.0  # beyond stop_timeout_s, which the agent spends on filling layers
_CHILD_GRACE_S = 5.0
_VERSIONS = {"reads": succession.READABLE, "writes": succession.VERSION}
OWN_VARIABLES = ("PYTHONPATH", "PYTHONSAFEPATH")
"""A release's own: where its code is."""


class Holder:
    """A plan at work. `before` is what an earlier program of this process left."""

    def __init__(self, plan: dict[str, Any], held: Held, before: State | None) -> None:
        self._plan, self._held, self._before = plan, held, before
        self._nursery = Nursery([], held, Watchdog(plan.get("watchdog_s", 0.0)))
        self._wanted: tuple[socket.socket, dict[str, Any]] | None = None
        self._busy = False
        if (control := held.get("socket:holder")) is not None:
            Control(self._nursery, control, self._about, self._want)

    def run(self) -> int:
        """Until SIGTERM (0) or SIGINT (130), or until a child refuses to start (its exit status)."""
        try:
            if self._before is None:
                self._nursery.children = _children(self._plan)
                for child in self._nursery.children:
                    self._nursery.start(child)
                self._held.settle()
            else:
                self._take_over(self._before)
            while True:
                self._nursery.turn()
                if self._nursery.hung_up():
                    self._run_upgrade()
                if self._wanted is not None:
                    self._upgrade(*self._wanted)
        except StopError as stopped:
            self._stop()
            return stopped.status

    def _take_over(self, before: State) -> None:
        """The children of the program before, and what it was about: an upgrade, or the return from one."""
        nursery, client = self._nursery, None if before.client is None else socket.socket(fileno=before.client)
        nursery.announced, nursery.errand = before.announced, before.errand
        for running in before.children:
            child = Child(running.role, running.argv, running.environment)
            nursery.children.append(child)
            nursery.take_up(child, running.pid, socket.socket(fileno=running.connection), running.ready)
        failure = before.failure
        if before.before is not None:
            failure = self._replace(before.before, client)
        for child in _children(self._plan):
            if all(child.role != other.role for other in nursery.children):
                child.ever_ready = True  # it died just now, or while its successor was tried: it is no first start
                nursery.children.append(child)
                nursery.start(child)
        self._held.settle()
        _tell(client, failure, f"imgdist {self._plan.get('release', '')} serves")

    def _replace(self, before: Program, client: socket.socket | None) -> str:
        """Replace the children, or become the program before again. Returns why neither could be, "" if all is well."""
        self._busy = True
        try:
            replace(self._nursery, _children(self._plan))
        except StopError:
            raise
        except Exception as error:  # whatever is wrong with this program, the one before can do without it
            if not isinstance(error, ReplacementError):
                sys.excepthook(*sys.exc_info())
            return self._become(before, None, str(error) or repr(error), client)
        finally:
            self._busy = False
        return ""

    def _about(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "state": _VERSIONS, **self._plan}

    def _want(self, client: socket.socket, wanted: dict[str, Any]) -> None:
        if self._wanted is not None or self._busy:
            _tell(client, "an upgrade is under way already; wait for its end", "")
            return
        self._wanted = client, wanted

    def _run_upgrade(self) -> None:
        """SIGHUP: the installed release is asked to take over, by the same command that its users give."""
        command = self._plan.get("upgrade")
        if command and not self._nursery.errand:
            say("SIGHUP: upgrading to what is installed")
            self._nursery.errand = run_aside(command["argv"], command["environment"])

    def _upgrade(self, client: socket.socket, wanted: dict[str, Any]) -> None:
        self._wanted = None
        try:
            program = Program(wanted["argv"], wanted["environment"])
        except (KeyError, TypeError) as error:
            _tell(client, f"the upgrade asked for makes no sense: {error!r}", "")
            return
        say(f"becoming imgdist {wanted.get('release', '')}")
        failure = self._become(program, succession.this_program(OWN_VARIABLES), "", client)
        _tell(client, failure, "")

    def _become(self, program: Program, before: Program | None, failure: str, client: socket.socket | None) -> str:
        """Execute another holder. Returns only if that fails, and why."""
        nursery = self._nursery
        # One that has just died is started by the next holder; it must not be left as a zombie.
        nursery.turn_until(lambda: all(child.connection for child in nursery.children if child.running), _CHILD_GRACE_S)
        children = [
            Running(child.role, child.argv, child.environment, child.pid, child.connection.fileno(), child.ready)
            for child in nursery.children
            if child.running and child.connection is not None
        ]
        number = None if client is None else client.fileno()
        state = State(self._held.all(), children, nursery.announced, before, failure, number, nursery.errand)
        try:
            succession.become(program, state)
        except OSError as error:
            return f"{failure} {program.argv[0]}: {error.strerror}; the release that runs goes on".lstrip()

    def _stop(self) -> None:
        systemd.notify("STOPPING=1")
        agent_grace_s = float(self._plan.get("stop_timeout_s", 30)) + _AGENT_GRACE_S
        for child in reversed(self._nursery.children):
            self._nursery.end(child, agent_grace_s if child.role == "agent" else _CHILD_GRACE_S)
        self._held.release()


def _children(plan: dict[str, Any]) -> list[Child]:
    return [Child(item["role"], item["argv"], item.get("environment", {})) for item in plan["children"]]


def _tell(client: socket.socket | None, failure: str, success: str) -> None:
    say(f"no upgrade: {failure}" if failure else success)
    if client is not None:
        answer(client, {"failed": failure} if failure else {"done": success})
        client.close()


def main() -> int:
    """Run the plan given as the only argument; 1 with a line that says why if something cannot be held."""
    if sys.argv[1:] == ["--versions"]:
        print(json.dumps(_VERSIONS))
        return 0
    before = succession.inherited()
    try:
        plan = json.loads(sys.argv[1])
        found = systemd.stored() if before is None else before.descriptors
        _children(plan)
        held = Held(plan["run"], plan["root"], plan["sockets"], plan.get("fuse", True), found)
    except (IndexError, ValueError, KeyError, TypeError) as error:
        say(f"expected one argument, the plan as JSON: {error!r}")
        return 2
    except HoldError as error:
        if before is not None and before.before is not None:
            succession.become(before.before, before.returning(str(error)))
        say(str(error))
        return 1
    try:
        return Holder(plan, held, before).run()
    except (OSError, HoldError) as error:
        say(f"cannot go on: {error}")
        held.release()
        return 1


if __name__ == "__main__":
    sys.exit(main())

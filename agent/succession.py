"""How a holder becomes another program, a newer release of itself, and remains the same process: execve(2) keeps its
process id, its children and its descriptors. The rest is JSON in a memfd, whose number the environment tells. The
standard library alone.

A holder that cannot go on as the new program becomes the old one again, with the reason. Named tuples, not data
classes: importing those takes a MiB of the eight that a holder has.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

VERSION = 1
"""Of what is handed over. A release reads its own and the one before."""
READABLE = (1,)
VARIABLE = "IMGDIST_HOLDER_STATE"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
"""Blocked while nobody handles them: the default of all but the last would end the process."""


class Program(NamedTuple):
    """What to execute: `argv`, and variables that differ from ours (`environment`)."""

    argv: list[str]
    environment: dict[str, str]


class Running(NamedTuple):
    """A child as it stands: its plan, its process, the number of our end of its socket."""

    role: str
    argv: list[str]
    environment: dict[str, str]
    pid: int
    connection: int
    ready: bool


class State(NamedTuple):
    """What is handed over. `before`: the program to return to; None: this is the return, and `failure` its reason.

    `client`: the connection of whoever asked for the upgrade. `errand`: a process of ours that is no child of the plan.
    """

    descriptors: list[tuple[str, int]]
    children: list[Running]
    announced: bool
    before: Program | None
    failure: str = ""
    client: int | None = None
    errand: int = 0

    def returning(self, failure: str) -> State:
        """The same on the way back, for the reason `failure`."""
        return self._replace(before=None, failure=failure)

    def told(self) -> dict[str, Any]:
        """What the next program reads."""
        children = [child._asdict() for child in self.children]
        before = self.before._asdict() if self.before is not None else None
        return {"v": VERSION, **self._asdict(), "children": children, "before": before}

    def numbers(self) -> list[int]:
        """Every descriptor that has to outlive the exec."""
        fds = [fd for _, fd in self.descriptors] + [child.connection for child in self.children]
        return fds if self.client is None else [*fds, self.client]


def become(program: Program, state: State) -> NoReturn:
    """Execute `program` in this process. OSError if that cannot be, with everything as it was."""
    fds = state.numbers()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    memory = os.memfd_create("imgdist-holder", 0)
    try:
        os.write(memory, json.dumps(state.told()).encode())
        for fd in fds:
            os.set_inheritable(fd, True)
        sys.stderr.flush()
        os.execve(program.argv[0], program.argv, {**os.environ, **program.environment, VARIABLE: str(memory)})
    finally:
        os.close(memory)
        for fd in fds:
            os.set_inheritable(fd, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def inherited() -> State | None:
    """What an earlier program left in this process; None at an ordinary start. ValueError if it cannot be read, after
    which nothing can be done but to end: nobody hands over what its successor did not say that it reads."""
    number = os.environ.pop(VARIABLE, "")
    if not number:
        return None
    with os.fdopen(int(number), "rb") as memory:
        memory.seek(0)
        told = json.loads(memory.read())
    if told.get("v") not in READABLE:
        raise ValueError(f"the holder before left state of version {told.get('v')}, this one reads {READABLE}")
    state = State(
        descriptors=[(name, fd) for name, fd in told["descriptors"]],
        children=[Running(**child) for child in told["children"]],
        announced=told["announced"],
        before=Program(**told["before"]) if told["before"] else None,
        failure=told["failure"],
        client=told["client"],
        errand=told["errand"],
    )
    for fd in state.numbers():
        os.set_inheritable(fd, False)
    return state


def this_program(own: Iterable[str]) -> Program:
    """This very program, as it was executed; `own` names the variables that a successor may have of its own."""
    return Program([sys.executable, *sys.orig_argv[1:]], {name: os.environ.get(name, "") for name in own})

"""`imgdist upgrade`: this release takes over from the one that runs, on the same descriptors and sockets.

Everything that can be refused is refused here, before the running holder is told anything: a configuration that is
wrong by now, what cannot change without a stop, a holder that does not read what the other one would leave it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import Any

import msgspec

from agent import launch
from agent.launch import Given
from imgdist import __version__, config
from imgdist.config import AgentConfig
from imgdist.errors import ImgdistError, NotFoundError, UnsupportedError

_MESSAGE_MAX = 1 << 18
_ANSWER_S = 10.0
_UPGRADE_S = 900.0
"""Beyond all that the holder grants its children."""
_CHECK_S = 60.0


def main(run: str) -> int:
    """Upgrade the agent whose run directory is `run`; returns when all of it is of this release.

    Raises ImgdistError with the reason why it is not; what ran before serves on then.
    """
    if os.geteuid() != 0:
        raise UnsupportedError(f"imgdist upgrade speaks to the holder: expected root, running as user {os.geteuid()}")
    with _connected(os.path.join(os.path.abspath(run), "holder.sock")) as holder:
        running = _ask(holder, {"ask": "about"}, _ANSWER_S)
        given = msgspec.convert(running["launch"], Given)
        plan = launch.checked_plan(config.load(AgentConfig, given.file, given.settings, given.flags), given)
        _check_unchanged(running, plan)
        argv, environment = launch.holder_program(plan), launch.release_environment()
        _check_holder(running, argv, environment)
        wanted = {"argv": argv, "environment": environment, "release": __version__}
        told = _ask(holder, {"upgrade": wanted}, _UPGRADE_S)
    if "done" not in told:
        raise ImgdistError(f"imgdist {running['release']} serves on: {told.get('failed', told)}")
    print(f"imgdist {running['release']} -> {__version__}: {told['done']}")
    return 0


def _connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise NotFoundError(
            f"{path}: no agent that can be upgraded in place listens there ({error.strerror}); expected the --run of a "
            "running one (one of a release without `imgdist upgrade` has to be restarted)"
        ) from None
    return connection


def _ask(holder: socket.socket, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    holder.settimeout(timeout_s)
    try:
        holder.send(json.dumps(question).encode())
        answer = holder.recv(_MESSAGE_MAX)
        return dict(json.loads(answer))
    except (OSError, ValueError) as error:
        raise ImgdistError(f"the holder does not answer ({error}); its log says why") from None


def _check_unchanged(running: dict[str, Any], plan: dict[str, Any]) -> None:
    """Directories stay what they are as long as something is mounted from them."""
    for key in ("run", "root"):
        if running[key] != plan[key]:
            raise ImgdistError(
                f"--{key} is {plan[key]} by now and {running[key]} in the agent that runs: stop it and start it"
            )
    if running["fuse"] != plan["fuse"]:
        has, had = ("has", "had not") if plan["fuse"] else ("has not", "had")
        raise ImgdistError(
            f"this machine {has} EROFS, FUSE and loop devices and {had} when the agent started: restart the agent"
        )


def _check_holder(running: dict[str, Any], argv: list[str], environment: dict[str, str]) -> None:
    """The new holder must load, read what the one that runs would leave it, and leave what that one reads."""
    try:
        done = subprocess.run(
            [*argv[:-1], "--versions"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=_CHECK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImgdistError(f"the new holder does not start: {error}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise ImgdistError(f"the new holder does not start (exit status {done.returncode}): {last}")
    theirs, ours = running["state"], json.loads(done.stdout)
    if theirs["writes"] not in ours["reads"] or ours["writes"] not in theirs["reads"]:
        raise ImgdistError(
            f"holder state: imgdist {running['release']} writes version {theirs['writes']} and reads {theirs['reads']},"
            f" {__version__} writes {ours['writes']} and reads {ours['reads']}: go by a release between, or restart"
        )

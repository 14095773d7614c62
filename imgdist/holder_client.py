"""A child's side of the holder protocol: fetch the descriptors that outlive us, say when we are ready.

SOCK_SEQPACKET with one JSON document a message: we send {"hello": VERSION, "role": ...}; the holder answers {"v": the
lower of both versions, "names": [...], "standby": bool} with the descriptors as SCM_RIGHTS, in the order of the
names. With standby (version 2) a predecessor still serves: we send {"standby": true} once nothing but its end is
missing, and the holder {"go": true} when it has ended. We send {"ready": true} once; a view {"settled": true}
whenever an agent has named it its layers. {"alive": true} is a sign of life; who gave one has to go on, or is killed
(agent/watchdog.py). {"retire": true} asks us to end for a successor's sake. The socket's end of
file means that the holder is gone, and that we should be too.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket

from imgdist.errors import ProtocolError, UsageError

FD_VARIABLE = "IMGDIST_HOLDER_FD"
ROLE_VARIABLE = "IMGDIST_HOLDER_ROLE"
VERSION = 2
_OLDEST = 1
_MESSAGE_MAX = 65536
_FDS_MAX = 64


class Holder:
    """The holder that started us. `fds` by name: "fuse", "slots", "socket:<name>" (what our role gets).

    `standby`: a predecessor serves as long as we have not said `stand_by`.
    """

    def __init__(self, connection: socket.socket, fds: dict[str, int], standby: bool) -> None:
        self._connection = connection
        self.fds = fds
        self.standby = standby

    def stand_by(self) -> bool:
        """Wait until we are to serve: not at all, unless there is a predecessor. False if the holder does without
        us."""
        if not self.standby:
            return True
        self._connection.send(json.dumps({"standby": True}).encode())
        return "go" in (self.heard() or {})

    def ready(self) -> None:
        """Tell the holder that we serve."""
        self._connection.send(json.dumps({"ready": True}).encode())

    def settled(self) -> None:
        """Tell the holder that we have all that our work needs: a successor of what we depend on may come."""
        self._connection.send(json.dumps({"settled": True}).encode(), socket.MSG_NOSIGNAL)

    def alive(self) -> None:
        """Give a sign of life, which nobody waits for: a holder that does not listen just now misses it."""
        with contextlib.suppress(OSError):
            self._connection.send(json.dumps({"alive": True}).encode(), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def heard(self) -> dict[str, object] | None:
        """The holder's next message; None when it is gone. Waits for it."""
        try:
            data = self._connection.recv(_MESSAGE_MAX)
        except ConnectionError:
            return None
        message = json.loads(data) if data else None
        return message if isinstance(message, dict) else None

    def fileno(self) -> int:
        """Turns readable when the holder has something to say, or is gone."""
        return self._connection.fileno()


def under_holder() -> bool:
    """Whether a holder started this process (and `connect` has not been called yet)."""
    return FD_VARIABLE in os.environ


def connect() -> Holder:
    """Greet the holder. Once per process. Raises UsageError without a holder, ProtocolError for another version."""
    number, role = os.environ.pop(FD_VARIABLE, ""), os.environ.pop(ROLE_VARIABLE, "")
    if not number.isdigit():
        raise UsageError(f"this process is started by the holder (imgdist agent): {FD_VARIABLE} is not set")
    connection = socket.socket(fileno=int(number))
    connection.set_inheritable(False)
    connection.send(json.dumps({"hello": VERSION, "role": role}).encode())
    data, fds, _, _ = socket.recv_fds(connection, _MESSAGE_MAX, _FDS_MAX, socket.MSG_CMSG_CLOEXEC)
    if not data:
        raise ProtocolError("the holder closed its socket instead of answering our hello")
    names, standby = _answer(data, len(fds))
    return Holder(connection, dict(zip(names, fds, strict=True)), standby)


def _answer(data: bytes, count: int) -> tuple[list[str], bool]:
    """(names of the descriptors, standby)."""
    try:
        answer = json.loads(data)
        version, names = answer["v"], answer["names"]
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolError(f"the holder's answer makes no sense: {error!r}") from None
    if not _OLDEST <= version <= VERSION or len(names) != count:
        raise ProtocolError(
            f"holder protocol: expected version {_OLDEST} to {VERSION} with a descriptor for each name, got version "
            f"{version}, {len(names)} names and {count} descriptors"
        )
    return [str(name) for name in names], bool(answer.get("standby"))

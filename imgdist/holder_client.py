"""A child's side of the holder protocol: fetch the descriptors that outlive us, say when we are ready.

SOCK_SEQPACKET with one JSON document a message: we send {"hello": 1, "role": ...}; the holder answers
{"v": 1, "names": [...]} with the descriptors as SCM_RIGHTS, in the order of the names; we send {"ready": true} once.
The socket's end of file means that the holder is gone, and that we should be too.
"""

from __future__ import annotations

import json
import os
import socket

from imgdist.errors import ProtocolError, UsageError

FD_VARIABLE = "IMGDIST_HOLDER_FD"
ROLE_VARIABLE = "IMGDIST_HOLDER_ROLE"
VERSION = 1
_MESSAGE_MAX = 65536
_FDS_MAX = 64


class Holder:
    """The holder that started us. `fds` by name: "fuse", "slots", "socket:<name>" (what our role gets)."""

    def __init__(self, connection: socket.socket, fds: dict[str, int]) -> None:
        self._connection = connection
        self.fds = fds

    def ready(self) -> None:
        """Tell the holder that we serve."""
        self._connection.send(json.dumps({"ready": True}).encode())

    def fileno(self) -> int:
        """Turns readable when the holder is gone."""
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
    return Holder(connection, dict(zip(_names(data, len(fds)), fds, strict=True)))


def _names(data: bytes, count: int) -> list[str]:
    try:
        answer = json.loads(data)
        version, names = answer["v"], answer["names"]
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolError(f"the holder's answer makes no sense: {error!r}") from None
    if version != VERSION or len(names) != count:
        raise ProtocolError(
            f"holder protocol: expected version {VERSION} with a descriptor for each name, got version {version}, "
            f"{len(names)} names and {count} descriptors"
        )
    return [str(name) for name in names]

"""The service manager's protocols, by hand: sd_notify(3), its descriptor store, sd_listen_fds(3). The standard library
alone.

What is in the store outlives this process, however it ends; the next start gets it back.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, MutableMapping

_FIRST_FD = 3  # SD_LISTEN_FDS_START


def notify(state: str, fds: Iterable[int] = ()) -> None:
    """Tell the service manager, if there is one; it gets duplicates of `fds`."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        try:
            notifier.connect("\0" + address[1:] if address.startswith("@") else address)
            socket.send_fds(notifier, [state.encode()], list(fds))
        except OSError:
            return  # the manager is gone; nobody wants to know


def store(name: str, fd: int) -> None:
    """Put a descriptor into the store, in place of what it has under that name."""
    discard(name)
    notify(f"FDSTORE=1\nFDNAME={_stored(name)}", [fd])


def discard(name: str) -> None:
    """Have the store close what it has under that name."""
    notify(f"FDSTOREREMOVE=1\nFDNAME={_stored(name)}")


def keeps_descriptors() -> bool:
    """Whether a manager runs us that may have a store: whether it keeps anything is its unit's matter, not told."""
    return "NOTIFY_SOCKET" in os.environ


def stored(environment: MutableMapping[str, str] = os.environ) -> list[tuple[str, int]]:
    """(name, descriptor) of what the manager gives back; closed at an exec from now on. Once: the variables go."""
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit() or len(names) != int(count):
        return []
    found = [(_held(name), _FIRST_FD + index) for index, name in enumerate(names)]
    for _, fd in found:
        os.set_inheritable(fd, False)
    return found


def _stored(name: str) -> str:
    """Names in the store have no colon."""
    return name.replace(":", "-")


def _held(name: str) -> str:
    return name.replace("-", ":")

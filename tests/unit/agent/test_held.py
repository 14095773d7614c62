"""What a holder found of an earlier one: used, or let go everywhere."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from agent.held import Held


def test_a_port_that_is_not_held_any_more_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service manager has a copy of it: as long as that one listens, other agents connect to nobody."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.create_server(("127.0.0.1", 0)) as earlier,
    ):
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        found = os.dup(earlier.fileno())
        held = Held(str(tmp_path), str(tmp_path), [], False, [("socket:peer", found)])
        held.settle()
        assert manager.recv(100) == b"FDSTOREREMOVE=1\nFDNAME=socket-peer"
        with pytest.raises(OSError):
            os.fstat(found)
        held.release()

"""A client's connection from the server's side: what it says of itself."""

from __future__ import annotations

import socket

import pytest

from imgdist.wire.messages import Priority
from imgdist.wire.requests import AnyRequest, ChunkRequest, encode
from imgdist.wire.session import Session

PACK = "ab" * 32


@pytest.mark.parametrize(
    ("peer", "node", "told"),
    [
        ("10.0.0.9", "10.0.0.9:7651", "10.0.0.9:7651"),
        ("10.0.0.9", "10.0.0.8:7651", "10.0.0.8:7651"),  # it has several, or is reached through another
        ("10.0.0.9", "127.0.0.1:7651", ""),  # who was sent there would ask itself
        ("10.0.0.9", "[::ffff:127.0.0.1]:22", ""),
        ("127.0.0.1", "127.0.0.1:7651", "127.0.0.1:7651"),
        ("::ffff:127.0.0.1", "[::1]:7651", "[::1]:7651"),
        (None, "127.0.0.1:7651", "127.0.0.1:7651"),
        ("10.0.0.9", "metadata.internal:80", ""),
        ("10.0.0.9", "[1::2::3]:80", ""),
        ("10.0.0.9", "", ""),
        ("10.0.0.9", None, None),
    ],
)
def test_others_are_told_no_address_that_is_nobodys(peer: str | None, node: str | None, told: str | None) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        session = Session(ours, peer, 0.0)
        for _ in range(2):
            assert session.take_in(encode(ChunkRequest(PACK, (1,), Priority.DEMAND, node=node)))
            assert session.take_in(encode(AnyRequest(PACK, b"0:AQ", 1, Priority.FILL, node=node)))
    requests = list(session.pending)
    assert [type(request) for request in requests] == [ChunkRequest, AnyRequest] * 2
    for request in requests:
        assert isinstance(request, (ChunkRequest, AnyRequest)) and request.node == told

"""What one turn of the event loop writes to a client is one send."""

from __future__ import annotations

import asyncio
from typing import Any

from agent.snapshotter.server import _Gathering


class FakeTransport:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> str:
        return name


async def test_what_one_turn_writes_is_sent_at_once_and_in_order() -> None:
    transport: Any = FakeTransport()
    gathering = _Gathering(transport)
    for data in (b"headers", b"message", b"trailers"):
        gathering.write(data)
    assert transport.sent == []
    await asyncio.sleep(0)
    gathering.write(b"next")
    await asyncio.sleep(0)
    assert transport.sent == [b"headersmessagetrailers", b"next"]
    assert gathering.get_extra_info("peername") == "peername"


async def test_an_end_sends_what_is_there_and_nothing_after() -> None:
    transport: Any = FakeTransport()
    gathering = _Gathering(transport)
    gathering.write(b"goaway")
    gathering.close()
    assert transport.sent == [b"goaway"] and gathering.is_closing()
    gathering.write(b"late")
    await asyncio.sleep(0)
    assert transport.sent == [b"goaway"]

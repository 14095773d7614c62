"""Does an agent answer at the address that others would be told? Asked the way others would ask."""

from __future__ import annotations

import asyncio
import logging

from imgdist.errors import ProtocolError
from imgdist.wire.address import Address
from imgdist.wire.messages import HEAD_MAX
from imgdist.wire.responses import decode_response_head
from imgdist.wire.tracker import HELLO_PATH, decode_hello

log = logging.getLogger("imgdist.tracker")

PROBE_TIMEOUT_S = 2.0
"""For everything: a SYN that is lost is sent again after 1 s."""
_BODY_MAX = 4096


async def answers(address: Address, node: str, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
    """Whether `GET /v1/hello` at this address (of an IP) is answered, in time, by this node."""
    try:
        async with asyncio.timeout(timeout_s):
            seen = await _hello(address)
    except (OSError, EOFError, TimeoutError, ProtocolError) as error:
        log.debug("node %s at %s: %s", node, address, error or type(error).__name__)
        return False
    if seen != node:
        log.info("node %s at %s: node %s answers there", node, address, seen)
    return seen == node


async def _hello(address: Address) -> str:
    """The id of the node that answers. Raises OSError, EOFError, ProtocolError."""
    reader, writer = await asyncio.open_connection(address.host, address.port, limit=HEAD_MAX)
    try:
        writer.write(f"GET {HELLO_PATH} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while (found := decode_response_head(data)) is None:
            data += await _read(reader)
        head, end = found
        if head.status != 200 or head.length > _BODY_MAX:
            raise ProtocolError(f"hello: expected 200 and at most {_BODY_MAX} bytes, got {head}")
        while len(data) < end + head.length:
            data += await _read(reader)
        return decode_hello(data[end : end + head.length]).node
    finally:
        writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> bytes:
    data = await reader.read(HEAD_MAX)
    if not data:
        raise EOFError("closed without a whole answer")
    return data

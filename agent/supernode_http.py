"""HTTP to one supernode: requests with the cluster's token, answers bounded, errors as the supernode names them."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, TypeVar

import aiohttp
import msgspec

from agent.proof import proving
from imgdist.errors import ImgdistError, ProtocolError, TemporaryError
from imgdist.wire.address import Address
from imgdist.wire.clusterkey import ClusterKey
from imgdist.wire.control import Failure, error_of

T = TypeVar("T")

ANSWER_MAX = 4 << 20
"""Bytes of a JSON or msgpack answer: a resolution of 1,000 layers has 0.5 MB, a full trace 0.5 MB."""
CONNECT_S = 3.0
DEAD_PEER_S = 15
"""A host that answers no packet for so long is gone. The kernel asks and answers, so that a layer which converts slowly
is told from a machine that lost its power: an index stream has no other bound."""
_PROBES = 3


class Interrupted(TemporaryError):
    """A body broke off, or did not begin; what was received stands, the rest can be asked for."""


class SupernodeHttp:
    """Asks the supernode at `url`; TemporaryError if it does not answer. Connections are kept until `close`."""

    def __init__(self, url: str, *, timeout_s: float, key: ClusterKey | None) -> None:
        """`timeout_s` bounds its silence within a call. `key` proves that a node asks."""
        self._key = key
        self._address, self._timeout_s = Address.parse(url), timeout_s
        self.url = self._address.url
        self._base = "http://localhost" if self._address.path else self.url
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def open(self, method: str, path: str, headers: Sequence[tuple[str, str]]) -> aiohttp.ClientResponse:
        """The answer to a request, of whatever status and with its body still to be read; the caller closes it."""
        try:
            return await self._http.request(method, self._base + path, headers=headers)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._silent(error) from error

    async def call(
        self,
        kind: type[T],
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """The document of JSON that a request is answered with."""
        raw = await self.read(method, path, body, headers)
        return self.decoded(lambda: msgspec.json.decode(raw, type=kind))

    async def read(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        silence_s: float | None = None,
    ) -> bytes:
        """An answer's body, whole; `silence_s`, where given, in place of the client's own. Raises what a failed answer
        carries."""
        if body is not None:
            headers = {**(headers or {}), "Content-Type": "application/octet-stream"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence_s or self._timeout_s)
        try:
            async with self._http.request(
                method, self._base + path, data=body, headers=headers, timeout=timeout
            ) as response:
                raw = await self._body(response)
                if response.status >= 400:
                    raise self._failure(response.status, raw)
                return raw
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._silent(error) from error

    async def pieces(
        self, path: str, headers: Mapping[str, str] | None = None, *, is_patient: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """A body as it comes; close it when done. `is_patient`: silence is normal, and bounded by DEAD_PEER_S alone.
        Interrupted where it breaks off, else what a failed answer carries."""
        silence_s = None if is_patient else self._timeout_s
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence_s)
        try:
            async with self._http.get(self._base + path, headers=headers, timeout=timeout) as response:
                if response.status != 200:
                    raise self._failure(response.status, await self._body(response))
                async for piece in response.content.iter_any():
                    yield piece
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Interrupted(f"supernode {self.url}: {error or type(error).__name__}") from error

    def decoded(self, decode: Callable[[], T]) -> T:
        """What `decode` makes of an answer. ProtocolError if that is no sense."""
        try:
            return decode()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError(f"supernode {self.url}: an answer that makes no sense: {error}") from None

    @property
    def _http(self) -> aiohttp.ClientSession:
        """Made at the first question: an agent that starts again serves readers before it has one (agent/main.py)."""
        if self._session is None:
            connector = (
                aiohttp.UnixConnector(self._address.path)
                if self._address.path
                else aiohttp.TCPConnector(limit=0, socket_factory=watched_socket)
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                middlewares=proving(self._key),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self._timeout_s),
            )
        return self._session

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        raw = bytearray()
        async for piece in response.content.iter_any():
            raw += piece
            if len(raw) > ANSWER_MAX:
                raise ProtocolError(f"supernode {self.url}: an answer of more than {ANSWER_MAX} bytes")
        return bytes(raw)

    def _failure(self, status: int, raw: bytes) -> ImgdistError:
        try:
            return error_of(msgspec.json.decode(raw, type=Failure), status)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ProtocolError(f"supernode {self.url}: status {status}, expected a JSON error: {raw[:80]!r}")

    def _silent(self, error: Exception) -> TemporaryError:
        return TemporaryError(f"supernode {self.url} does not answer: {error or type(error).__name__}")


def watched_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for (family, type, protocol, name, address) whose connection breaks when the other machine is gone:
    tcp(7), TCP_KEEPIDLE while nothing is under way, TCP_USER_TIMEOUT (ms) while something is."""
    family, kind, protocol, _, _ = address
    connection = socket.socket(family, kind, protocol)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    every_s = DEAD_PEER_S // _PROBES
    for option, value in (
        (socket.TCP_KEEPIDLE, every_s),
        (socket.TCP_KEEPINTVL, every_s),
        (socket.TCP_KEEPCNT, _PROBES - 1),
        (socket.TCP_USER_TIMEOUT, DEAD_PEER_S * 1000),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection

"""A small blocking client for the JSON APIs of agent and supernode, for the command line.

The daemons themselves use aiohttp; a command that asks one question should not pay 0.25 s for importing it.
"""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

import msgspec

from imgdist.errors import ProtocolError, TemporaryError
from imgdist.wire.address import Address
from imgdist.wire.clusterkey import FIELD, ClusterKey, control
from imgdist.wire.control import Failure, error_of
from imgdist.wire.dialling import connect


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _TcpConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        assert self.timeout is not None
        self.sock = connect(self.host, self.port, self.timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class JsonApi:
    """One daemon's JSON API at `url` ("http://host:port" or "unix:///path"). `who` names the daemon in errors."""

    def __init__(self, url: str, who: str, timeout_s: float = 60.0, key: ClusterKey | None = None) -> None:
        """`key` proves to a supernode that a node asks."""
        self._key = key
        self._address = Address.parse(url)
        self._url = url
        self._who = who
        self._timeout_s = timeout_s

    def get(self, path: str) -> Any:
        """The JSON document at `path`. Raises the error that the daemon names, TemporaryError if none answers."""
        return self._call("GET", path, None)

    def text(self, path: str) -> str:
        """The text at `path`, which is no JSON (/metrics). Errors as in `get`."""
        status, raw = self._exchange("GET", path, None)
        if status >= 400:
            self._answer(status, raw)
        return raw.decode(errors="replace")

    def post(self, path: str, document: Any) -> Any:
        """The JSON answer to `document`. Errors as in `get`."""
        return self._call("POST", path, document)

    def _call(self, method: str, path: str, document: Any) -> Any:
        return self._answer(*self._exchange(method, path, document))

    def _exchange(self, method: str, path: str, document: Any) -> tuple[int, bytes]:
        connection = self._connect()
        try:
            body = None if document is None else json.dumps(document).encode()
            headers = {"Content-Type": "application/json"} if body else {}
            if self._key is not None:
                headers[FIELD] = self._key.token(control(method, path))
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except TimeoutError:
            raise TemporaryError(
                f"{self._who} at {self._url} has not answered within {self._timeout_s:.0f} s; its log may say why"
            ) from None
        except PermissionError as error:
            raise TemporaryError(f"{self._who} at {self._url}: {error.strerror}; only root may ask it") from None
        except (OSError, http.client.IncompleteRead) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise TemporaryError(f"{self._who} does not answer at {self._url}: {reason}; is it running?") from None
        except http.client.HTTPException as error:
            raise ProtocolError(f"{self._who} at {self._url}: expected HTTP, got {error!r}") from None
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._address.path is not None:
            return _UnixConnection(self._address.path, self._timeout_s)
        return _TcpConnection(self._address.host or "", self._address.port, timeout=self._timeout_s)

    def _answer(self, status: int, raw: bytes) -> Any:
        try:
            if status >= 400:
                raise error_of(msgspec.json.decode(raw, type=Failure), status)
            return json.loads(raw) if raw else None
        except (ValueError, msgspec.ValidationError):
            raise ProtocolError(
                f"{self._who} at {self._url}: expected JSON, got status {status}: {raw[:80]!r}"
            ) from None

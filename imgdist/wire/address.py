"""Where a process listens: `http://host:port` or `unix:///path/to.sock`; listeners also take `host:port`."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from urllib.parse import urlsplit

from imgdist.errors import ImgdistError, UnreachableError, UsageError
from imgdist.wire.dialling import connect

UNIX_PATH_MAX = 107
"""Bytes of a unix socket's path without its NUL (sun_path in linux/un.h has 108)."""


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address (`host`, `port`) or a unix socket (`path`), never both."""

    host: str = ""
    port: int = 0
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `http://host:port`, `host:port`, `[v6]:port`, `:port` (every address) or `unix:///path`.

        Raises UsageError naming the text and what is expected.
        """
        expected = f"address {text!r}: expected host:port, http://host:port or unix:///path"
        if text.startswith("unix:"):
            path = text.removeprefix("unix:").removeprefix("//")
            if not path.startswith("/"):
                raise UsageError(f"{expected} with an absolute path")
            if len(os.fsencode(path)) > UNIX_PATH_MAX:
                raise UsageError(f"socket path {path} is too long: at most {UNIX_PATH_MAX} bytes; choose a shorter one")
            return cls(path=path)
        if text.startswith("https:"):
            raise UsageError(f"{expected}; TLS is not spoken here")
        try:
            parts = urlsplit("//" + text.removeprefix("http://"))
            host, port = parts.hostname, parts.port
        except ValueError:
            raise UsageError(expected) from None
        if port is None or parts.path not in ("", "/") or parts.query or parts.username is not None:
            raise UsageError(expected)
        return cls(host=host or "0.0.0.0", port=port)

    @property
    def url(self) -> str:
        """The address as agents and supernodes are told it."""
        return f"unix://{self.path}" if self.path else f"http://{self}"

    @property
    def is_local(self) -> bool:
        """True for what only this machine reaches: unix sockets and loopback addresses."""
        if self.path or self.host == "localhost":
            return True
        try:
            return plain_ip(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_wildcard(self) -> bool:
        """True when the host means every address of the machine, which nobody can connect to by that name."""
        return not self.path and self.host in ("0.0.0.0", "::")

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def connect(self, timeout_s: float) -> socket.socket:
        """A connected blocking socket with that time-out, or UnreachableError."""
        try:
            if self.path:
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    connection.settimeout(timeout_s)
                    connection.connect(self.path)
                except BaseException:
                    connection.close()
                    raise
                return connection
            connection = connect(self.host, self.port, timeout_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError as error:
            raise UnreachableError(f"{self}: cannot connect: {error.strerror or error}") from None

    def listen(self, backlog: int = 1024) -> socket.socket:
        """A listening socket; a unix socket gets mode 0600 and replaces one that nobody listens on.

        Raises ImgdistError with one clear line (in use, no permission, no such host or directory).
        """
        try:
            return _listen_unix(self.path, backlog) if self.path else self._listen_tcp(backlog)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                reason = "another process uses the address; stop it or choose another address"
            else:
                reason = error.strerror or str(error)
            raise ImgdistError(f"cannot listen on {self}: {reason}") from None

    def _listen_tcp(self, backlog: int) -> socket.socket:
        family, kind, protocol, _, address = socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
        return listener


def plain_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as its own family writes it: `::ffff:10.0.0.1` is IPv4's 10.0.0.1. ValueError if it is none."""
    ip = ipaddress.ip_address(host)
    return getattr(ip, "ipv4_mapped", None) or ip


def _listen_unix(path: str, backlog: int) -> socket.socket:
    _remove_stale_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def _remove_stale_socket(path: str) -> None:
    """Unlink a socket whose owner is gone; a live one stays, so that bind reports it as in use."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(FileNotFoundError):
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)

"""Registry credentials from a docker config.json: its `auths` (credential helpers are programs; none is run here)."""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from imgdist.errors import ConfigError

_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Credentials:
    """User name and password, or an identity token (an OAuth2 refresh token). Secrets stay out of repr and logs."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class _Entry(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identity_token: str = msgspec.field(name="identitytoken", default="")


class _File(msgspec.Struct):
    auths: dict[str, _Entry] = {}


class Keychain:
    """The credentials of one config.json, read again when the file changes; no path: none for anyone."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._read_at: tuple[int, int, int] | None = None
        self._known: dict[str, Credentials] = {}

    def find(self, host: str) -> Credentials | None:
        """What to show the registry `host` ("host[:port]", docker.io for the hub); None: ask anonymously.

        Raises ConfigError if the file cannot be read.
        """
        if self._path is None:
            return None
        try:
            seen = os.stat(self._path)
            version = (seen.st_ino, seen.st_size, seen.st_mtime_ns)
            if version != self._read_at:
                self._known = parse(self._path.read_bytes(), str(self._path))
                self._read_at = version
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot read registry credentials: {error.strerror}") from None
        return self._known.get(_canonical(host))


def parse(raw: bytes, name: str) -> dict[str, Credentials]:
    """The credentials in a config.json by registry host. `name` is the file's, for ConfigError."""
    try:
        document = msgspec.json.decode(raw, type=_File)
        return {_canonical(host): _credentials(entry) for host, entry in document.auths.items()}
    except (msgspec.DecodeError, binascii.Error, ValueError):
        # The decoder's own words may quote a secret.
        raise ConfigError(f'{name}: expected a docker config.json: {{"auths": {{HOST: {{"auth": BASE64}}}}}}') from None


def _credentials(entry: _Entry) -> Credentials:
    username, password = entry.username, entry.password
    if entry.auth:
        username, _, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
    return Credentials(username, password.rstrip("\0"), entry.identity_token)


def _canonical(host: str) -> str:
    """config.json names registries as "host", "https://host" or "https://index.docker.io/v1/"."""
    host = host.partition("://")[2] or host
    host = host.partition("/")[0].lower()
    return "docker.io" if host in _DOCKER_HUB else host

"""docker config.json and Kubernetes pull secrets (the same document): `auths`, `credHelpers` and `credsStore`.

Keys name registries as Docker and the kubelet write them: "host", "https://host", "https://index.docker.io/v1/",
"*.example.com", "host/team" for the repositories below. The longest key that fits counts.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from imgdist.errors import ConfigError
from imgdist.oci.credentials import Credentials
from imgdist.oci.credhelper import CredentialHelper

_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
SECRET_KEYS = (".dockerconfigjson", "config.json")
"""Files of a directory that a pull secret was mounted at."""


class _Entry(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identity_token: str = msgspec.field(name="identitytoken", default="")


class _File(msgspec.Struct):
    auths: dict[str, _Entry] = {}
    helpers: dict[str, str] = msgspec.field(name="credHelpers", default_factory=dict)
    store: str = msgspec.field(name="credsStore", default="")


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """One document: credentials by key, helpers' names by registry host, the name of the helper for all others."""

    auths: dict[str, Credentials]
    helpers: dict[str, str]
    store: str = ""

    def find(self, host: str, repository: str) -> Credentials | None:
        """The credentials that stand in it."""
        name = f"{host}/{repository}"
        for key in sorted(self.auths, key=len, reverse=True):
            if _fits(key, host, name):
                return self.auths[key]
        return None

    def helper(self, host: str) -> str:
        """The helper to ask for a registry's, "" for none."""
        return self.helpers.get(host, self.store)


def parse(raw: bytes, name: str) -> DockerConfig:
    """Read a document. `name` is the file's, for ConfigError, which quotes no secret. Entries without anything, as
    Docker writes them beside a helper, are left out."""
    try:
        document = msgspec.json.decode(raw, type=_File)
        found = {_canonical(key): _credentials(entry) for key, entry in document.auths.items()}
    except (msgspec.DecodeError, binascii.Error, ValueError):
        # The decoder's own words may quote a secret.
        raise ConfigError(f'{name}: expected a docker config.json: {{"auths": {{HOST: {{"auth": BASE64}}}}}}') from None
    helpers = {_canonical(host): helper for host, helper in document.helpers.items()}
    return DockerConfig({key: one for key, one in found.items() if one != Credentials()}, helpers, document.store)


class DockerConfigFile:
    """A CredentialSource: one file, or the directory of a mounted secret, read again when it changes."""

    def __init__(self, path: str, helper: CredentialHelper) -> None:
        self._path = Path(path)
        self._helper = helper
        self._read_at: tuple[str, int, int, int] | None = None
        self._known = DockerConfig({}, {})

    async def find(self, host: str, repository: str) -> Credentials | None:
        """As CredentialSource. Raises ConfigError if the file cannot be read, what a helper raises."""
        self._refresh()
        host = _canonical(host)
        name = self._known.helper(host)
        found = await self._helper.get(name, host) if name else None
        return found or self._known.find(host, repository)

    def refused(self, host: str, repository: str, credentials: Credentials) -> None:
        """As CredentialSource."""
        if name := self._known.helper(_canonical(host)):
            self._helper.forget(name, _canonical(host))

    def _refresh(self) -> None:
        try:
            path = _document(self._path)
            seen = os.stat(path)
            version = (str(path), seen.st_ino, seen.st_size, seen.st_mtime_ns)
            if version != self._read_at:
                self._known = parse(path.read_bytes(), str(path))
                self._read_at = version
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot read registry credentials: {error.strerror}") from None


def _document(path: Path) -> Path:
    """The document of a secret that was mounted as a directory, or the file itself."""
    if not path.is_dir():
        return path
    return next((path / key for key in SECRET_KEYS if (path / key).exists()), path / SECRET_KEYS[0])


def _fits(key: str, host: str, name: str) -> bool:
    key_host, slash, path = key.partition("/")
    if key_host != host and not _glob(key_host, host):
        return False
    return not slash or f"{name.partition('/')[2]}/".startswith(path.rstrip("/") + "/")


def _glob(pattern: str, host: str) -> bool:
    """As the kubelet: `*` stands within one part of a name ("*.example.com" is not "a.b.example.com")."""
    parts, of_host = pattern.split("."), host.split(".")
    return "*" in pattern and len(parts) == len(of_host) and all(map(fnmatchcase, of_host, parts))


def _credentials(entry: _Entry) -> Credentials:
    username, password = entry.username, entry.password
    if entry.auth:
        username, _, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
    return Credentials(username, password.rstrip("\0"), entry.identity_token)


def _canonical(key: str) -> str:
    """Of "https://host/v1/" this is the host, "https://host/team" keeps its path; the hub has one name."""
    key = key.partition("://")[2] or key
    host, _, path = key.partition("/")
    host, path = host.lower(), path.strip("/")
    if host in _DOCKER_HUB:
        host = "docker.io"
    return f"{host}/{path}" if path and path not in ("v1", "v2") else host

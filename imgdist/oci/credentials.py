"""What is shown to a registry, and who has it: the promise that every source of credentials keeps."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


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


class CredentialSource(Protocol):
    """Has credentials for registries."""

    async def find(self, host: str, repository: str) -> Credentials | None:
        """What to show the registry `host` ("host[:port]", docker.io for the hub) for a repository; None if nothing.

        Raises ConfigError or TemporaryError, without secrets, if that cannot be told.
        """

    def refused(self, host: str, repository: str, credentials: Credentials) -> None:
        """The registry takes these no more: what was remembered is to be asked for anew."""


class Anonymous:
    """No credentials for anyone."""

    async def find(self, host: str, repository: str) -> Credentials | None:
        """None."""
        return None

    def refused(self, host: str, repository: str, credentials: Credentials) -> None:
        """Nothing is remembered."""


class Keychain:
    """Several sources; the first that has something counts."""

    def __init__(self, sources: Sequence[CredentialSource]) -> None:
        self._sources = tuple(sources)

    async def find(self, host: str, repository: str) -> Credentials | None:
        """As CredentialSource."""
        for source in self._sources:
            if (found := await source.find(host, repository)) is not None:
                return found
        return None

    def refused(self, host: str, repository: str, credentials: Credentials) -> None:
        """As CredentialSource."""
        for source in self._sources:
            source.refused(host, repository, credentials)


_LATEST = 1e12
"""Seconds since 1970: what is beyond is no time (a token is anybody's to make, also with NaN in it)."""


def expiry(secret: str) -> float:
    """When a token or password ends to be good, in seconds since 1970, if it says so; else infinity.

    Read are JSON web tokens (RFC 7519, "exp") and ECR's passwords (base64 of JSON with "expiration"). Nothing is
    verified: it is only a hint when to ask for the next one.
    """
    parts = secret.split(".")
    claims = _object(parts[1] if len(parts) == 3 else secret)
    seconds = claims.get("exp" if len(parts) == 3 else "expiration")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < _LATEST:
        return math.inf
    return float(seconds)


def _object(text: str) -> dict[str, Any]:
    try:
        document = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}

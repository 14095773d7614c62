"""Answering a registry's 401: Basic (RFC 7617) and Bearer tokens (distribution's token specification).

One token per registry and scope is kept in memory until shortly before it expires.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from imgdist.errors import ConfigError, DeniedError, ProtocolError
from imgdist.oci.credentials import Credentials

TOKEN_LIFE_S = 60.0
"""Seconds a token lives if its server does not say (token specification, "expires_in")."""

_SCHEME = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9-]*)(?:\s+|$)(?!\s*=)")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme of a WWW-Authenticate header, lower case, with its parameters."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """Read WWW-Authenticate headers (RFC 9110 section 11.6.1). What does not parse ends its header."""
    challenges = []
    for header in headers:
        position = 0
        while scheme := _SCHEME.match(header, position):
            position = scheme.end()
            parameters = {}
            while parameter := _PARAMETER.match(header, position):
                position = parameter.end()
                name, quoted, plain = parameter.groups()
                parameters[name.lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            challenges.append(Challenge(scheme[1].lower(), parameters))
    return challenges


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What to send to a token server: GET with `query`, or POST of `form` when it is set."""

    realm: str
    query: dict[str, str]
    form: dict[str, str] | None = None
    authorization: str | None = None


def token_request(challenge: Challenge, scope: str, credentials: Credentials | None) -> TokenRequest:
    """The request that a Bearer challenge asks for. Raises ProtocolError if it names no realm."""
    realm = challenge.parameters.get("realm", "")
    if not realm.startswith(("http://", "https://")):
        raise ProtocolError(f"WWW-Authenticate names the realm {realm!r}; expected the URL of a token server")
    service = challenge.parameters.get("service", "")
    if credentials and credentials.identity_token:
        form = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token, "client_id": "imgdist"}
        return TokenRequest(realm, {}, {**form, "service": service, "scope": scope})
    query = {"service": service, "scope": scope} if service else {"scope": scope}
    return TokenRequest(realm, query, authorization=credentials.basic if credentials else None)


class Authorizer:
    """The Authorization headers of one registry, one per repository.

    `ask(request) -> bytes` sends a TokenRequest and returns the body of a 200; it raises DeniedError for 401 and 403.
    `secure` forbids sending credentials in clear to a token server.
    """

    def __init__(
        self,
        host: str,
        credentials: Callable[[str], Credentials | None],
        ask: Callable[[TokenRequest], Awaitable[bytes]],
        *,
        secure: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._credentials = credentials
        self._ask = ask
        self._secure = secure
        self._clock = clock
        self._headers: dict[str, tuple[str, float]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def header(self, repository: str) -> str | None:
        """The header that worked last for the repository, unless it has expired."""
        value, expires = self._headers.get(repository, (None, 0.0))
        return value if value and self._clock() < expires else None

    async def renew(self, repository: str, challenges: Sequence[Challenge], rejected: str | None) -> str:
        """A header in answer to a 401; `rejected` is what was sent. Raises DeniedError if there is none to try.

        Single-flight: of many requests that get a 401 together, the first fetches a token and the others take it.
        If the first fails, the next one tries for itself.
        """
        async with self._locks.setdefault(repository, asyncio.Lock()):
            current = self.header(repository)
            if current is not None and current != rejected:
                return current
            value, expires = await self._answer(repository, challenges, rejected)
            self._headers[repository] = (value, expires)
            return value

    async def _answer(
        self, repository: str, challenges: Sequence[Challenge], rejected: str | None
    ) -> tuple[str, float]:
        credentials = self._credentials(self._host)
        by_scheme = {challenge.scheme: challenge for challenge in challenges}
        if bearer := by_scheme.get("bearer"):
            return await self._token(bearer, repository, credentials)
        if "basic" not in by_scheme:
            raise ProtocolError(f"{self._host}: 401 without a Basic or Bearer challenge")
        if credentials is None:
            raise DeniedError(
                f"{self._host}/{repository}: credentials are needed; put them into the docker config.json"
            )
        if credentials.basic == rejected:
            raise DeniedError(f"{self._host}/{repository}: user {credentials.username!r} or the password is refused")
        return credentials.basic, float("inf")

    async def _token(self, challenge: Challenge, repository: str, credentials: Credentials | None) -> tuple[str, float]:
        scope = challenge.parameters.get("scope") or f"repository:{repository}:pull"
        request = token_request(challenge, scope, credentials)
        if credentials and self._secure and not request.realm.startswith("https://"):
            raise ConfigError(
                f"{self._host}: its token server {request.realm} has no TLS; credentials are not sent to it"
            )
        asked_at = self._clock()
        raw = await self._ask(request)
        try:
            answer = msgspec.json.decode(raw, type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ProtocolError(f"{request.realm}: expected a JSON document with a token") from None
        token = answer.token or answer.access_token
        if not token or not token.isprintable():
            raise ProtocolError(f"{request.realm}: answered without a token")
        life_s = TOKEN_LIFE_S if answer.expires_in is None else answer.expires_in
        # A tenth early: the token must outlive the request that carries it.
        return f"Bearer {token}", asked_at + 0.9 * life_s

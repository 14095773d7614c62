"""Answering a registry's 401: Basic (RFC 7617) and Bearer tokens (distribution's token specification).

One token per registry and scope is kept in memory until shortly before it expires.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import msgspec
from yarl import URL

from imgdist.errors import ConfigError, DeniedError, ProtocolError
from imgdist.oci.credentials import Credentials, CredentialSource
from imgdist.oci.seen import SeenCredentials

HEADERS_MAX = 10_000
"""Repositories of a registry whose tokens are kept."""
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
    if not _is_url(realm):
        raise ProtocolError(f"WWW-Authenticate names the realm {realm!r}; expected the URL of a token server")
    service = challenge.parameters.get("service", "")
    if credentials and credentials.identity_token:
        form = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token, "client_id": "imgdist"}
        return TokenRequest(realm, {}, {**form, "service": service, "scope": scope})
    query = {"service": service, "scope": scope} if service else {"scope": scope}
    return TokenRequest(realm, query, authorization=credentials.basic if credentials else None)


def _is_url(text: str) -> bool:
    try:
        return text.startswith(("http://", "https://")) and bool(URL(text).host)
    except ValueError:
        return False


class Authorizer:
    """The Authorization headers of one registry, one per repository: what clients showed it (`seen`), else what our own
    credentials are good for.

    `ask(request) -> bytes` sends a TokenRequest and returns the body of a 200; it raises DeniedError for 401 and 403.
    `secure` forbids sending credentials in clear to a token server.
    """

    def __init__(
        self,
        host: str,
        credentials: CredentialSource,
        ask: Callable[[TokenRequest], Awaitable[bytes]],
        *,
        secure: bool,
        seen: SeenCredentials | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._credentials = credentials
        self._ask = ask
        self._secure = secure
        self._seen = seen or SeenCredentials()
        self._clock = clock
        self._headers: dict[str, tuple[str, float]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def header(self, repository: str) -> str | None:
        """The header to send: a client's that the registry took, or ours that worked last, unless it has expired."""
        return self._seen.find(self._name(repository)) or self._own(repository)

    async def renew(self, repository: str, challenges: Sequence[Challenge], rejected: str | None) -> str:
        """A header in answer to a 401; `rejected` is what was sent. Raises DeniedError if there is none to try.

        Single-flight: of many requests that get a 401 together, the first fetches a token and the others take it.
        If the first fails, the next one tries for itself.
        """
        lock = self._locks.setdefault(repository, asyncio.Lock())
        async with lock:
            if rejected is not None:
                self._seen.refused(self._name(repository), rejected)
            current = self.header(repository)
            if current is not None and current != rejected:
                return current
            value, expires = await self._answer(repository, challenges, rejected)
            self._headers.pop(repository, None)
            self._headers[repository] = (value, expires)
            while len(self._headers) > HEADERS_MAX:
                del self._headers[next(iter(self._headers))]
            return value

    def is_ours(self, repository: str, header: str) -> bool:
        """Whether a header is our own and should still be good: the registry's no to it is its last word."""
        return self._own(repository) == header

    def _own(self, repository: str) -> str | None:
        value, expires = self._headers.get(repository, (None, 0.0))
        return value if value and self._clock() < expires else None

    def _name(self, repository: str) -> str:
        return f"{self._host}/{repository}"

    async def _answer(
        self, repository: str, challenges: Sequence[Challenge], rejected: str | None
    ) -> tuple[str, float]:
        by_scheme = {challenge.scheme: challenge for challenge in challenges}
        bearer = by_scheme.get("bearer")
        if bearer is None and "basic" not in by_scheme:
            raise ProtocolError(f"{self._host}: 401 without a Basic or Bearer challenge")
        credentials = await self._credentials.find(self._host, repository)
        if bearer is not None:
            return await self._bearer(bearer, repository, credentials)
        if credentials is not None and credentials.basic == rejected:
            self._credentials.refused(self._host, repository, credentials)
            credentials = await self._credentials.find(self._host, repository)
        if credentials is None:
            raise DeniedError(
                f"{self._host}/{repository}: credentials are needed; put them into the docker config.json"
            )
        if credentials.basic == rejected:
            raise DeniedError(f"{self._host}/{repository}: user {credentials.username!r} or the password is refused")
        return credentials.basic, float("inf")

    async def _bearer(
        self, challenge: Challenge, repository: str, credentials: Credentials | None
    ) -> tuple[str, float]:
        """A token; if what we have is refused, once more with what its source has by now."""
        try:
            return await self._token(challenge, repository, credentials)
        except DeniedError:
            if credentials is None:
                raise
            self._credentials.refused(self._host, repository, credentials)
            renewed = await self._credentials.find(self._host, repository)
            if renewed == credentials:
                raise
            return await self._token(challenge, repository, renewed)

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

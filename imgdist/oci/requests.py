"""Requests to a registry and its mirrors: who is asked in which order, with which credentials, what a status means."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import NamedTuple

import aiohttp
from yarl import URL

from imgdist.errors import DeniedError, ImgdistError, NotFoundError, ProtocolError
from imgdist.oci import manifest as manifests
from imgdist.oci.auth import Authorizer, TokenRequest, parse_challenges
from imgdist.oci.credentials import Anonymous, CredentialSource
from imgdist.oci.manifest import error_details
from imgdist.oci.seen import HEADERS_MAX, SeenCredentials
from imgdist.oci.settings import RegistrySettings
from imgdist.oci.transport import CUT, ExpiredError, Meter, Retry, Transport, cut
from imgdist.oci.upstreams import Upstream

log = logging.getLogger("imgdist.oci")

DOCUMENT_MAX = 4 << 20
"""Bytes of a manifest, index or configuration: what registries accept (distribution-spec "Pushing Manifests")."""
AUTH_ATTEMPTS = HEADERS_MAX + 2
"""Clients' tokens that are refused, then one of our own, and another if that expired while the registry was busy."""
ACCEPT = ", ".join((*manifests.MANIFEST_TYPES, *manifests.INDEX_TYPES, "*/*"))
PAGES = frozenset({"text/html", "application/xhtml+xml"})
"""What no registry answers, but the web site or the sign-on page in its place."""

_ONCE = Retry(attempts=1, connect_attempts=1, busy_attempts=1, retry_after_max_s=1.0)
"""For mirrors: the next one is asked at once, and the registry itself in the end."""
_EXPIRED = (400, 401, 403, 410)
"""What object stores answer to a presigned URL whose time is over."""


class Request(NamedTuple):
    """For what is at `path` in a repository: below /v2/<repository>/."""

    method: str
    repository: str
    path: str
    headers: Mapping[str, str] = {}
    query: Sequence[tuple[str, str]] = ()


class Requests:
    """Asks mirrors first, as the settings name them, then the registry `host`, each with credentials of its own."""

    def __init__(
        self,
        host: str,
        http: aiohttp.ClientSession,
        meter: Meter,
        settings: RegistrySettings,
        credentials: CredentialSource,
        seen: SeenCredentials | None,
        retry: Retry,
    ) -> None:
        """`seen` are clients' own credentials, for the registry itself alone."""
        self.host = host
        self.upstreams = settings.upstreams(host)
        self.transport = Transport(host, http, meter, retry, settings)
        self._settings = settings
        self._base = self.upstreams.origin.base
        everybody = (*self.upstreams.mirrors, self.upstreams.origin)
        self._origins = {upstream.base.origin() for upstream in everybody}
        self.anonymous = Authorizer(
            host, Anonymous(), partial(self._ask_token, certificate=False), secure=self._base.scheme == "https"
        )
        self._authorizers = {
            upstream: Authorizer(
                upstream.host,
                credentials,
                self._ask_token,
                secure=upstream.base.scheme == "https",
                seen=seen if upstream is self.upstreams.origin else None,
            )
            for upstream in everybody
        }

    async def send(self, request: Request) -> aiohttp.ClientResponse:
        """As `open`; who gave it does not matter."""
        return (await self.open(request))[1]

    async def open(self, request: Request) -> tuple[Upstream, aiohttp.ClientResponse]:
        """The answer and who gave it: the first mirror that has it, else whatever the registry itself says."""
        if (refusal := self._settings.refusal(f"{self.host}/{request.repository}")) is not None:
            raise refusal
        *mirrors, origin = self.upstreams.in_order(time.monotonic())
        for mirror in mirrors:
            try:
                response = await self.ask(mirror, request, _ONCE)
                if response.status in (200, 206):
                    mirror.answered()
                    return mirror, response
                response.close()
            except ImgdistError as error:
                if not isinstance(error, DeniedError):  # that is about one repository
                    mirror.failed(time.monotonic())
                log.info("%s: mirror %s did not give it: %s", self.host, mirror.base, error)
            self.transport.retried("mirror")
        return origin, await self.ask(origin, request)

    async def ask(
        self, upstream: Upstream, request: Request, retry: Retry | None = None, *, follow: bool = True
    ) -> aiohttp.ClientResponse:
        """The answer of one of them, once it has got whatever credentials it wants, as far as there are any."""
        name = upstream.repository(request.repository)
        url = upstream.url(request.repository, request.path).with_query(request.query or None)

        async def opened(header: str | None) -> aiohttp.ClientResponse:
            headers = with_authorization(request.headers, header)
            return await self.transport.open(request.method, url, headers, retry=retry, follow=follow)

        authorizer = self._authorizers[upstream]
        header = authorizer.header(name)
        response = await opened(header)
        for _ in range(AUTH_ATTEMPTS):
            if response.status != 401 or response.url.origin() != upstream.base.origin():
                break
            response.close()
            challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
            header = await authorizer.renew(name, challenges, header)
            self.transport.retried("unauthorized")
            response = await opened(header)
            if authorizer.is_ours(name, header):
                break
        return response

    async def expect(self, response: aiohttp.ClientResponse, repository: str, what: str) -> None:
        """Return for 200 and 206; else raise what the status means."""
        what = f"{self.host}/{repository}: {what}"
        status = response.status
        if status in (200, 206):
            if response.content_type in PAGES:
                raise ProtocolError(f"{what}: answered with a web page; is {self.host} a registry?")
            return
        reason = error_details(await self.read(response, what))
        shown = f"status {status}{': ' + reason if reason else ''}"
        if self.is_expired(response):
            raise ExpiredError(f"{what}: {response.url.host}, where the registry sent us, refused: {shown}")
        if status in (401, 403):
            raise DeniedError(f"{what}: access denied ({shown}); check the credentials for {self.host}")
        if status == 404:
            await self._expect_registry()
            raise NotFoundError(f"{what}: not found ({shown})")
        raise ProtocolError(f"{what}: unexpected {shown}")

    async def read(self, response: aiohttp.ClientResponse, what: str, limit: int = DOCUMENT_MAX) -> bytes:
        """A body, whole; `what` names it. Raises ProtocolError beyond `limit` bytes."""
        raw = bytearray()
        async with aclosing(self.pieces(response)) as pieces:
            async for piece in pieces:
                raw += piece
                if len(raw) > limit:
                    raise ProtocolError(f"{what}: more than the {limit} bytes that are read of it")
        return bytes(raw)

    async def pieces(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        """A body as it comes. Raises Interrupted where it breaks off."""
        try:
            while piece := await response.content.readany():
                self.transport.received(len(piece))
                yield piece
        except CUT as error:
            raise cut(response.url, error) from error

    def is_expired(self, response: aiohttp.ClientResponse) -> bool:
        """A presigned URL that expired between the redirect and its use: the registry hands out a fresh one."""
        return response.url.origin() not in self._origins and response.status in _EXPIRED

    async def ping(self) -> None:
        """Return if the registry gives any sign of life. Raises what the transport raises."""
        async with await self.transport.open("GET", self._base / "v2/", {}):
            return

    async def _expect_registry(self) -> None:
        """Tell "no such image" from "no registry at all": only a registry answers 200 or 401 at /v2/ (API check)."""
        async with await self.transport.open("GET", self._base / "v2/", {}) as response:
            if response.status not in (200, 401) or response.content_type in PAGES:
                raise ProtocolError(
                    f"{self._base}: GET /v2/ answered {response.status} {response.content_type}; "
                    f"expected a registry (200 or 401): is {self.host} right?"
                )

    async def _ask_token(self, request: TokenRequest, certificate: bool = True) -> bytes:
        url = URL(request.realm)
        headers = with_authorization({}, request.authorization)
        if request.form is not None:
            response = await self.transport.open("POST", url, headers, certificate=certificate, data=request.form)
        else:
            response = await self.transport.open(
                "GET", url.update_query(request.query), headers, certificate=certificate
            )
        async with response:
            raw = await self.read(response, request.realm)
        if response.status in (400, 401, 403):
            hint = "the credentials are refused" if request.authorization or request.form else "credentials are needed"
            raise DeniedError(f"{self.host}: token server {request.realm} answered {response.status}; {hint}")
        if response.status != 200:
            raise ProtocolError(f"{self.host}: token server {request.realm} answered {response.status}; expected 200")
        return raw


def with_authorization(headers: Mapping[str, str], authorization: str | None) -> dict[str, str]:
    """Headers and an Authorization, if there is one."""
    return {**headers, "Authorization": authorization} if authorization else dict(headers)

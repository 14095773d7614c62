"""What a registry says to somebody: may they have this? Asked as they would ask, and without reading a body."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import aiohttp

from imgdist.errors import DeniedError, ProtocolError
from imgdist.oci.auth import parse_challenges
from imgdist.oci.requests import ACCEPT, PAGES, Request, Requests, with_authorization
from imgdist.oci.transport import REDIRECT_STATUS, Retry

log = logging.getLogger("imgdist.oci")

_BRIEF = Retry(attempts=3, connect_attempts=1, busy_attempts=10, retry_after_max_s=2.0)
"""For what a client waits for that can go elsewhere."""
_INSTEAD = frozenset({400, 405}) | REDIRECT_STATUS
"""What HEAD leaves open: it is not served here, or by whoever has it, whose address may be signed for GET alone."""

Ask = Callable[[str, Mapping[str, str], bool], Awaitable[aiohttp.ClientResponse]]
"""(method, headers, whether to follow redirects) -> answer."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a registry said to somebody: a status (200: may have it), and with a 401 what it wants to be shown."""

    status: int
    challenges: tuple[str, ...] = ()


class Permission:
    """Questions to the registry itself, whatever its mirrors say."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._transport = requests.transport
        self._origin = requests.upstreams.origin

    async def shown(self, repository: str, path: str, authorization: str | None) -> Shown:
        """What the registry itself says to somebody who shows exactly this header, or nothing: nothing of ours is sent
        (no client certificate either), and no body is read. A token that everybody gets counts as nothing.

        A redirect is no answer, as a sign-on page is reached by one, too: it is followed, and a web page is a no (403).
        Raises TemporaryError if it does not say in a try or two.
        """
        said = await self._shown(repository, path, authorization)
        if authorization is not None or said.status != 401:
            return said
        try:
            token = await self._requests.anonymous.renew(repository, parse_challenges(said.challenges), None)
        except (DeniedError, ProtocolError):
            return said
        again = await self._shown(repository, path, token)
        return again if again.status not in (401, 403) else said

    async def has(self, repository: str, path: str) -> bool:
        """Whether the registry itself says to us that the repository has something: "manifests/..." or "blobs/..."."""

        async def ask(method: str, headers: Mapping[str, str], follow: bool) -> aiohttp.ClientResponse:
            request = Request(method, repository, path, headers)
            return await self._requests.ask(self._origin, request, _BRIEF, follow=follow)

        return (await self._said(path, ask)).status == 200

    async def _shown(self, repository: str, path: str, authorization: str | None) -> Shown:
        url = self._origin.url(repository, path)

        async def ask(method: str, headers: Mapping[str, str], follow: bool) -> aiohttp.ClientResponse:
            return await self._transport.open(
                method,
                url.with_query({"n": "1"}) if path == "tags/list" else url,
                with_authorization(headers, authorization),
                retry=_BRIEF,
                follow=follow,
                certificate=False,
            )

        return await self._said(path, ask)

    async def _said(self, path: str, ask: Ask) -> Shown:
        """What asking comes to: HEAD tells, or else GET as one who wants it would send it."""
        headers = {"Accept": ACCEPT}
        if path != "tags/list":
            response = await ask("HEAD", headers, False)
            response.release()
            if response.status not in _INSTEAD:
                return self._meaning(response)
        if path.startswith("blobs/"):
            headers["Range"] = "bytes=0-0"
        try:
            for _ in range(_BRIEF.attempts):
                response = await ask("GET", headers, True)
                response.release()
                if not self._requests.is_expired(response):
                    break
                self._transport.retried("expired_url")
            return self._meaning(response)
        except ProtocolError as error:  # redirects that lead nowhere, as those to a sign-on page may
            log.info("%s: %s: taken for a no: %s", self._origin.host, path, error)
            return Shown(403)

    def _meaning(self, response: aiohttp.ClientResponse) -> Shown:
        if response.status in (200, 206):
            return Shown(403 if response.content_type in PAGES else 200)
        if response.status == 401 and response.url.origin() != self._origin.base.origin():
            return Shown(403)  # a challenge of another's is not for this registry's clients
        return Shown(response.status, tuple(response.headers.getall("WWW-Authenticate", [])))

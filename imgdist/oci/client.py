"""Reading from one registry: tags, manifests and blobs (OCI distribution specification 1.1, "Pull").

Everything that has a digest is checked against it before the caller is told that it is complete.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import aiohttp
from yarl import URL

from imgdist.errors import CorruptError, DeniedError, ImgdistError, NotFoundError, ProtocolError, TemporaryError
from imgdist.oci import manifest as manifests
from imgdist.oci.auth import Authorizer, TokenRequest, parse_challenges
from imgdist.oci.credentials import Anonymous, CredentialSource
from imgdist.oci.manifest import Descriptor, Index, Manifest, error_details, parse_manifest
from imgdist.oci.reference import Reference, is_digest
from imgdist.oci.seen import HEADERS_MAX, SeenCredentials
from imgdist.oci.settings import RegistrySettings
from imgdist.oci.transport import (
    CUT,
    REDIRECT_STATUS,
    ExpiredError,
    Interrupted,
    Meter,
    Retry,
    Transport,
    Unwitnessed,
    Witness,
    cut,
)
from imgdist.oci.upstreams import Upstream

log = logging.getLogger("imgdist.oci")

MANIFEST_MAX = 4 << 20
"""Bytes of a manifest, index or configuration: what registries accept (distribution-spec "Pushing Manifests")."""

PROGRESS = 256 * 1024
"""Bytes after which a broken body counts as progress, so that a long download outlives many cuts."""

HASH_INLINE = 64 * 1024
"""Bytes hashed on the event loop: 0.2 ms without SHA-NI; larger pieces are hashed in a thread meanwhile."""

_ACCEPT = ", ".join((*manifests.MANIFEST_TYPES, *manifests.INDEX_TYPES, "*/*"))
_ONCE = Retry(attempts=1, connect_attempts=1, busy_attempts=1, retry_after_max_s=1.0)
"""For mirrors: the next one is asked at once, and the registry itself in the end."""
_EXPIRED = (400, 401, 403, 410)
"""What object stores answer to a presigned URL whose time is over."""
PAGES = frozenset({"text/html", "application/xhtml+xml"})
"""What no registry answers, but the web site or the sign-on page in its place."""
AUTH_ATTEMPTS = HEADERS_MAX + 2
"""Clients' tokens that are refused, then one of our own, and another if that expired while the registry was busy."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


_BRIEF = Retry(attempts=3, connect_attempts=1, busy_attempts=10, retry_after_max_s=2.0)
"""For what a client waits for that can go elsewhere."""
_INSTEAD = frozenset({400, 405}) | REDIRECT_STATUS
"""What HEAD leaves open: it is not served here, or by whoever has it, whose address may be signed for GET alone."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a registry said to somebody: a status (200: may have it), and with a 401 what it wants to be shown."""

    status: int
    challenges: tuple[str, ...] = ()


class Answer(NamedTuple):
    """What is handed on as it came."""

    media_type: str
    raw: bytes
    headers: Mapping[str, str]


class RegistryClient:
    """The registry `host` ("docker.io" or "host[:port]"), over a shared session (`transport.session()`).

    Mirrors that the settings name are asked first; what they do not have, or not in order, comes from the registry
    itself. `seen` are clients' own credentials. `witness` is told what came from the registry itself.
    """

    def __init__(
        self,
        host: str,
        http: aiohttp.ClientSession,
        meter: Meter,
        *,
        settings: RegistrySettings | None = None,
        credentials: CredentialSource | None = None,
        seen: SeenCredentials | None = None,
        witness: Witness | None = None,
        retry: Retry = Retry(),  # noqa: B008 - frozen
    ) -> None:
        self.host = host
        self._settings = settings = settings or RegistrySettings()
        self._upstreams = settings.upstreams(host)
        self._origins = {upstream.base.origin() for upstream in (*self._upstreams.mirrors, self._upstreams.origin)}
        self._base = self._upstreams.origin.base
        self._transport = Transport(host, http, meter, retry, settings)
        self._witness = witness or Unwitnessed()
        source = credentials or Anonymous()
        self._anonymous = Authorizer(
            host,
            Anonymous(),
            partial(self._ask_token, certificate=False),
            secure=self._upstreams.origin.base.scheme == "https",
        )
        self._authorizers = {
            upstream: Authorizer(
                upstream.host,
                source,
                self._ask_token,
                secure=upstream.base.scheme == "https",
                seen=seen if upstream is self._upstreams.origin else None,
            )
            for upstream in (*self._upstreams.mirrors, self._upstreams.origin)
        }

    async def resolve(self, reference: Reference) -> tuple[str, str, bytes]:
        """The (digest, media type, bytes) of what a reference names; its digest, if it has one, is checked."""
        return await self._document(reference.repository, reference.digest or reference.tag or "latest")

    async def manifest(self, repository: str, name: str) -> Manifest | Index:
        """The manifest or index called `name`, a tag or a digest."""
        _, media_type, raw = await self._document(repository, name)
        return parse_manifest(raw, media_type)

    async def digest_of_tag(self, repository: str, tag: str) -> str | None:
        """The digest that a tag names now, by HEAD (the hub does not count it as a pull); None if not told."""
        response = await self._send("HEAD", repository, f"manifests/{tag}", {"Accept": _ACCEPT})
        async with response:
            if response.status in (400, 405):
                return None
            await self._expect(response, repository, f"tag {tag}")
            digest = response.headers.get("Docker-Content-Digest", "")
            return digest if is_digest(digest) else None

    async def blob_size(self, repository: str, digest: str) -> int | None:
        """Bytes of a blob, by HEAD; None where that is not told. NotFoundError if there is none."""
        try:
            async with await self._send("HEAD", repository, f"blobs/{digest}", {}) as response:
                if response.status in (400, 405):
                    return None
                await self._expect(response, repository, f"blob {digest}")
                return response.content_length
        except Interrupted:  # where we were sent does not take HEAD with a URL that is signed for GET
            return None

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
            token = await self._anonymous.renew(repository, parse_challenges(said.challenges), None)
        except (DeniedError, ProtocolError):
            return said
        again = await self._shown(repository, path, token)
        return again if again.status not in (401, 403) else said

    async def has(self, repository: str, path: str) -> bool:
        """Whether the registry itself says to us that the repository has something: "manifests/..." or "blobs/..."."""
        origin = self._upstreams.origin

        async def ask(method: str, headers: Mapping[str, str], follow: bool) -> aiohttp.ClientResponse:
            return await self._ask(origin, method, repository, path, headers, (), _BRIEF, follow=follow)

        return (await self._said(path, ask)).status == 200

    async def _shown(self, repository: str, path: str, authorization: str | None) -> Shown:
        url = self._upstreams.origin.url(repository, path)

        async def ask(method: str, headers: Mapping[str, str], follow: bool) -> aiohttp.ClientResponse:
            return await self._transport.open(
                method,
                url.with_query({"n": "1"}) if path == "tags/list" else url,
                _with(headers, authorization),
                retry=_BRIEF,
                follow=follow,
                certificate=False,
            )

        return await self._said(path, ask)

    async def _said(
        self, path: str, ask: Callable[[str, Mapping[str, str], bool], Awaitable[aiohttp.ClientResponse]]
    ) -> Shown:
        """What `ask(method, headers, follow)` comes to: HEAD tells, or else GET as one who wants it would send it."""
        headers = {"Accept": _ACCEPT}
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
                if not self._is_expired(response):
                    break
                self._transport.retried("expired_url")
            return self._meaning(response)
        except ProtocolError as error:  # redirects that lead nowhere, as those to a sign-on page may
            log.info("%s: %s: taken for a no: %s", self.host, path, error)
            return Shown(403)

    def _meaning(self, response: aiohttp.ClientResponse) -> Shown:
        if response.status in (200, 206):
            return Shown(403 if response.content_type in PAGES else 200)
        if response.status == 401 and response.url.origin() != self._base.origin():
            return Shown(403)  # a challenge of another's is not for this registry's clients
        return Shown(response.status, tuple(response.headers.getall("WWW-Authenticate", [])))

    async def ask(
        self, repository: str, path: str, *, accept: str = "*/*", query: Sequence[tuple[str, str]] = ()
    ) -> Answer:
        """The answer to GET /v2/<repository>/<path>, whole: for what is handed on and not looked into."""
        response = await self._send("GET", repository, path, {"Accept": accept}, query)
        async with response:
            await self._expect(response, repository, path)
            raw = await self._read(response, MANIFEST_MAX, f"{self.host}/{repository}: {path}")
        return Answer(response.content_type, raw, response.headers)

    async def document(self, repository: str, descriptor: Descriptor) -> bytes:
        """A small blob, such as an image configuration, whole."""
        if descriptor.size > MANIFEST_MAX:
            raise ProtocolError(f"{descriptor.digest}: {descriptor.size} bytes; at most {MANIFEST_MAX} are read")
        async with aclosing(self.blob(repository, descriptor)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def blob(self, repository: str, descriptor: Descriptor) -> AsyncGenerator[bytes, None]:
        """A blob's bytes in order, in pieces of up to some MiB; close the iterator when done.

        A body that breaks off is resumed where it ended. Ends normally only if size and digest match; until then
        nothing that was read may be trusted. Raises CorruptError, or what the requests raise.
        """
        with self._witness.reading(f"{self.host}/{repository}", descriptor.digest):
            async with aclosing(self._checked(repository, descriptor)) as pieces:
                async for piece in pieces:
                    yield piece
            self._witness.delivered(f"{self.host}/{repository}", descriptor.digest)

    async def _checked(self, repository: str, descriptor: Descriptor) -> AsyncGenerator[bytes, None]:
        what = f"{self.host}/{repository}: blob {descriptor.digest}"
        running = hashlib.new(descriptor.digest.partition(":")[0])
        loop = asyncio.get_running_loop()
        offset, failures = 0, 0
        while offset < descriptor.size:
            started = offset
            problem: ImgdistError = CorruptError(f"{what}: ended after {offset} of {descriptor.size} bytes")
            try:
                async with aclosing(self._body(repository, descriptor, offset)) as pieces:
                    async for piece in pieces:
                        offset += len(piece)
                        if offset > descriptor.size:
                            raise CorruptError(f"{what}: longer than the {descriptor.size} bytes of its descriptor")
                        if len(piece) <= HASH_INLINE:
                            running.update(piece)
                            yield piece
                            continue
                        hashing = loop.run_in_executor(None, running.update, piece)
                        try:
                            yield piece
                        finally:
                            await hashing
            except Interrupted as error:
                problem = error
            if offset < descriptor.size:
                failures = 1 if offset - started >= PROGRESS else failures + 1
                await self._pause(failures, problem)
        if running.hexdigest() != descriptor.digest.partition(":")[2]:
            for mirror in self._upstreams.mirrors:  # one of them, if any took part
                mirror.failed(time.monotonic(), lied=True)
            raise CorruptError(f"{what}: its bytes have the digest {running.name}:{running.hexdigest()}")

    async def _pause(self, failures: int, problem: ImgdistError) -> None:
        if isinstance(problem, TemporaryError):
            return await self._transport.pause(failures, problem)
        try:
            return await self._transport.pause(failures, TemporaryError(str(problem)))
        except TemporaryError:
            raise problem from None

    async def _body(self, repository: str, descriptor: Descriptor, offset: int) -> AsyncGenerator[bytes, None]:
        """What follows `offset` in a blob, from one request: by Range, or by skipping where that is not served."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        # Each attempt starts at the registry: a presigned URL of the last one may have expired.
        upstream, opened = await self._open("GET", repository, f"blobs/{descriptor.digest}", headers)
        async with opened as response:
            try:
                skip = await self._skipped(response, repository, descriptor, offset)
            except (CorruptError, ProtocolError) as error:
                if upstream is self._upstreams.origin:
                    raise
                upstream.failed(time.monotonic(), lied=True)
                raise Interrupted(str(error)) from error
            if skip:
                self._transport.retried("no_range")
            try:
                async for piece in self._pieces(response):
                    if skip < len(piece):
                        yield piece[skip:] if skip else piece
                    skip = max(0, skip - len(piece))
            except Interrupted:
                upstream.failed(time.monotonic())
                raise

    async def _skipped(
        self, response: aiohttp.ClientResponse, repository: str, descriptor: Descriptor, offset: int
    ) -> int:
        """Bytes at the start of an answer that are not wanted: those before `offset`, where Range is not served."""
        what = f"{self.host}/{repository}: blob {descriptor.digest}"
        if response.status == 416:
            raise CorruptError(f"{what}: the registry has less than the {descriptor.size} bytes of its descriptor")
        await self._expect(response, repository, f"blob {descriptor.digest}")
        skip = offset
        if response.status == 206:
            span = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != offset:
                raise ProtocolError(f"{what}: asked from byte {offset}, got {response.headers.get('Content-Range')}")
            skip = 0
        expected = descriptor.size - offset + skip
        if response.content_length not in (None, expected):
            raise CorruptError(
                f"{what}: descriptor says {expected} bytes, the registry offers {response.content_length}"
            )
        return skip

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        try:
            while piece := await response.content.readany():
                self._transport.received(len(piece))
                yield piece
        except CUT as error:
            raise cut(response.url, error) from error

    async def _document(self, repository: str, name: str) -> tuple[str, str, bytes]:
        failures = 0
        while True:
            try:
                return await self._read_document(repository, name)
            except Interrupted as error:
                failures += 1
                await self._transport.pause(failures, error)

    async def _read_document(self, repository: str, name: str) -> tuple[str, str, bytes]:
        what = f"{self.host}/{repository}: manifest {name}"
        async with await self._send("GET", repository, f"manifests/{name}", {"Accept": _ACCEPT}) as response:
            await self._expect(response, repository, f"manifest {name}")
            raw = await self._read(response, MANIFEST_MAX, what)
        stated = name if is_digest(name) else response.headers.get("Docker-Content-Digest", "")
        algorithm = "sha512" if stated.startswith("sha512:") else "sha256"
        digest = f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"
        if stated and stated != digest:
            raise CorruptError(f"{what}: expected the digest {stated}, its bytes have {digest}")
        self._witness.delivered(f"{self.host}/{repository}", digest)
        return digest, response.content_type, raw

    async def _read(self, response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
        raw = bytearray()
        async with aclosing(self._pieces(response)) as pieces:
            async for piece in pieces:
                raw += piece
                if len(raw) > limit:
                    raise ProtocolError(f"{what}: more than the {limit} bytes that are read of it")
        return bytes(raw)

    async def _send(
        self,
        method: str,
        repository: str,
        path: str,
        headers: Mapping[str, str],
        query: Sequence[tuple[str, str]] = (),
    ) -> aiohttp.ClientResponse:
        return (await self._open(method, repository, path, headers, query))[1]

    async def _open(
        self,
        method: str,
        repository: str,
        path: str,
        headers: Mapping[str, str],
        query: Sequence[tuple[str, str]] = (),
    ) -> tuple[Upstream, aiohttp.ClientResponse]:
        """The answer and who gave it: the first mirror that has it, else whatever the registry itself says."""
        if (refusal := self._settings.refusal(f"{self.host}/{repository}")) is not None:
            raise refusal
        *mirrors, origin = self._upstreams.in_order(time.monotonic())
        for mirror in mirrors:
            try:
                response = await self._ask(mirror, method, repository, path, headers, query, _ONCE)
                if response.status in (200, 206):
                    mirror.answered()
                    return mirror, response
                response.close()
            except ImgdistError as error:
                if not isinstance(error, DeniedError):  # that is about one repository
                    mirror.failed(time.monotonic())
                log.info("%s: mirror %s did not give it: %s", self.host, mirror.base, error)
            self._transport.retried("mirror")
        return origin, await self._ask(origin, method, repository, path, headers, query)

    async def _ask(
        self,
        upstream: Upstream,
        method: str,
        repository: str,
        path: str,
        headers: Mapping[str, str],
        query: Sequence[tuple[str, str]],
        retry: Retry | None = None,
        *,
        follow: bool = True,
    ) -> aiohttp.ClientResponse:
        url, name = upstream.url(repository, path).with_query(query or None), upstream.repository(repository)
        authorizer = self._authorizers[upstream]
        header = authorizer.header(name)
        response = await self._transport.open(method, url, _with(headers, header), retry=retry, follow=follow)
        for _ in range(AUTH_ATTEMPTS):
            if response.status != 401 or response.url.origin() != upstream.base.origin():
                break
            response.close()
            challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
            header = await authorizer.renew(name, challenges, header)
            self._transport.retried("unauthorized")
            response = await self._transport.open(method, url, _with(headers, header), retry=retry, follow=follow)
            if authorizer.is_ours(name, header):
                break
        return response

    async def _expect(self, response: aiohttp.ClientResponse, repository: str, what: str) -> None:
        """Return for 200 and 206; else raise what the status means."""
        what = f"{self.host}/{repository}: {what}"
        status = response.status
        if status in (200, 206):
            if response.content_type in PAGES:
                raise ProtocolError(f"{what}: answered with a web page; is {self.host} a registry?")
            return
        reason = error_details(await self._read(response, MANIFEST_MAX, what))
        shown = f"status {status}{': ' + reason if reason else ''}"
        if self._is_expired(response):
            raise ExpiredError(f"{what}: {response.url.host}, where the registry sent us, refused: {shown}")
        if status in (401, 403):
            raise DeniedError(f"{what}: access denied ({shown}); check the credentials for {self.host}")
        if status == 404:
            await self._expect_registry()
            raise NotFoundError(f"{what}: not found ({shown})")
        raise ProtocolError(f"{what}: unexpected {shown}")

    def _is_expired(self, response: aiohttp.ClientResponse) -> bool:
        """A presigned URL that expired between the redirect and its use: the registry hands out a fresh one."""
        return response.url.origin() not in self._origins and response.status in _EXPIRED

    async def ping(self) -> None:
        """Return if the registry gives any sign of life. Raises what the transport raises."""
        async with await self._transport.open("GET", self._base / "v2/", {}):
            return

    async def _expect_registry(self) -> None:
        """Tell "no such image" from "no registry at all": only a registry answers 200 or 401 at /v2/ (API check)."""
        async with await self._transport.open("GET", self._base / "v2/", {}) as response:
            if response.status not in (200, 401) or response.content_type in PAGES:
                raise ProtocolError(
                    f"{self._base}: GET /v2/ answered {response.status} {response.content_type}; "
                    f"expected a registry (200 or 401): is {self.host} right?"
                )

    async def _ask_token(self, request: TokenRequest, certificate: bool = True) -> bytes:
        url = URL(request.realm)
        headers = _with({}, request.authorization)
        if request.form is not None:
            response = await self._transport.open("POST", url, headers, certificate=certificate, data=request.form)
        else:
            response = await self._transport.open(
                "GET", url.update_query(request.query), headers, certificate=certificate
            )
        async with response:
            raw = await self._read(response, MANIFEST_MAX, request.realm)
        if response.status in (400, 401, 403):
            hint = "the credentials are refused" if request.authorization or request.form else "credentials are needed"
            raise DeniedError(f"{self.host}: token server {request.realm} answered {response.status}; {hint}")
        if response.status != 200:
            raise ProtocolError(f"{self.host}: token server {request.realm} answered {response.status}; expected 200")
        return raw


def _with(headers: Mapping[str, str], authorization: str | None) -> dict[str, str]:
    return {**headers, "Authorization": authorization} if authorization else dict(headers)

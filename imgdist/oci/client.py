"""Reading from one registry: tags, manifests and blobs (OCI distribution specification 1.1, "Pull").

Everything that has a digest is checked against it before the caller is told that it is complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import NamedTuple

import aiohttp

from imgdist.errors import CorruptError, ProtocolError
from imgdist.oci.credentials import Anonymous, CredentialSource
from imgdist.oci.download import Download
from imgdist.oci.manifest import Descriptor, Index, Manifest, parse_manifest
from imgdist.oci.permission import Permission, Shown
from imgdist.oci.reference import Reference, is_digest
from imgdist.oci.requests import ACCEPT, DOCUMENT_MAX, Request, Requests
from imgdist.oci.seen import SeenCredentials
from imgdist.oci.settings import RegistrySettings
from imgdist.oci.transport import Interrupted, Meter, Retry, Unwitnessed, Witness


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
        self._requests = Requests(
            host, http, meter, settings or RegistrySettings(), credentials or Anonymous(), seen, retry
        )
        self._permission = Permission(self._requests)
        self._witness = witness or Unwitnessed()

    async def resolve(self, reference: Reference) -> tuple[str, str, bytes]:
        """The (digest, media type, bytes) of what a reference names; its digest, if it has one, is checked."""
        return await self._document(reference.repository, reference.digest or reference.tag or "latest")

    async def manifest(self, repository: str, name: str) -> Manifest | Index:
        """The manifest or index called `name`, a tag or a digest."""
        _, media_type, raw = await self._document(repository, name)
        return parse_manifest(raw, media_type)

    async def digest_of_tag(self, repository: str, tag: str) -> str | None:
        """The digest that a tag names now, by HEAD (the hub does not count it as a pull); None if not told."""
        request = Request("HEAD", repository, f"manifests/{tag}", {"Accept": ACCEPT})
        async with await self._requests.send(request) as response:
            if response.status in (400, 405):
                return None
            await self._requests.expect(response, repository, f"tag {tag}")
            digest = response.headers.get("Docker-Content-Digest", "")
            return digest if is_digest(digest) else None

    async def blob_size(self, repository: str, digest: str) -> int | None:
        """Bytes of a blob, by HEAD; None where that is not told. NotFoundError if there is none."""
        try:
            async with await self._requests.send(Request("HEAD", repository, f"blobs/{digest}")) as response:
                if response.status in (400, 405):
                    return None
                await self._requests.expect(response, repository, f"blob {digest}")
                return response.content_length
        except Interrupted:  # where we were sent does not take HEAD with a URL that is signed for GET
            return None

    async def shown(self, repository: str, path: str, authorization: str | None) -> Shown:
        """As Permission.shown."""
        return await self._permission.shown(repository, path, authorization)

    async def has(self, repository: str, path: str) -> bool:
        """As Permission.has."""
        return await self._permission.has(repository, path)

    async def ask(
        self, repository: str, path: str, *, accept: str = "*/*", query: Sequence[tuple[str, str]] = ()
    ) -> Answer:
        """The answer to GET /v2/<repository>/<path>, whole: for what is handed on and not looked into."""
        request = Request("GET", repository, path, {"Accept": accept}, query)
        async with await self._requests.send(request) as response:
            await self._requests.expect(response, repository, path)
            raw = await self._requests.read(response, f"{self.host}/{repository}: {path}")
        return Answer(response.content_type, raw, response.headers)

    async def document(self, repository: str, descriptor: Descriptor) -> bytes:
        """A small blob, such as an image configuration, whole."""
        if descriptor.size > DOCUMENT_MAX:
            raise ProtocolError(f"{descriptor.digest}: {descriptor.size} bytes; at most {DOCUMENT_MAX} are read")
        async with aclosing(self.blob(repository, descriptor)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def blob(self, repository: str, descriptor: Descriptor) -> AsyncGenerator[bytes, None]:
        """A blob's bytes in order, in pieces of up to some MiB; close the iterator when done.

        A body that breaks off is resumed where it ended. Ends normally only if size and digest match; until then
        nothing that was read may be trusted. Raises CorruptError, or what the requests raise.
        """
        with self._witness.reading(f"{self.host}/{repository}", descriptor.digest):
            async with aclosing(Download(self._requests, repository, descriptor).pieces()) as pieces:
                async for piece in pieces:
                    yield piece
            self._witness.delivered(f"{self.host}/{repository}", descriptor.digest)

    async def ping(self) -> None:
        """Return if the registry gives any sign of life. Raises what the transport raises."""
        await self._requests.ping()

    async def _document(self, repository: str, name: str) -> tuple[str, str, bytes]:
        failures = 0
        while True:
            try:
                return await self._read_document(repository, name)
            except Interrupted as error:
                failures += 1
                await self._requests.transport.pause(failures, error)

    async def _read_document(self, repository: str, name: str) -> tuple[str, str, bytes]:
        what = f"{self.host}/{repository}: manifest {name}"
        request = Request("GET", repository, f"manifests/{name}", {"Accept": ACCEPT})
        async with await self._requests.send(request) as response:
            await self._requests.expect(response, repository, f"manifest {name}")
            raw = await self._requests.read(response, what)
        stated = name if is_digest(name) else response.headers.get("Docker-Content-Digest", "")
        algorithm = "sha512" if stated.startswith("sha512:") else "sha256"
        digest = f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"
        if stated and stated != digest:
            raise CorruptError(f"{what}: expected the digest {stated}, its bytes have {digest}")
        self._witness.delivered(f"{self.host}/{repository}", digest)
        return digest, response.content_type, raw

"""What answers pulls: the side of a registry that `imgdist.distribution.server` gives an HTTP face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from imgdist.distribution.request import Request
from imgdist.oci.blobs import Blob


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest, a list of tags or of referrers as the registry has it. `digest` is "" for lists; `headers` are
    further ones for the client."""

    media_type: str
    raw: bytes
    digest: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class Registry(Protocol):
    """Answers requests about any registry. `authorization` is the client's own header: it decides whether this client
    may have it, and nothing of it is kept longer than that takes.

    Each method answers or raises within seconds, as clients have no patience (RefusedError says with which status).
    """

    async def manifest(self, request: Request, accept: Sequence[str], authorization: str | None) -> Document:
        """The manifest of a tag or digest, byte for byte, once there is reason to believe that its blobs can follow."""

    async def blob_size(self, request: Request, authorization: str | None) -> int:
        """Bytes of a blob; nothing is fetched."""

    async def blob(self, request: Request, authorization: str | None) -> Blob:
        """A blob, which may still be arriving."""

    async def tags(self, request: Request, query: Sequence[tuple[str, str]], authorization: str | None) -> Document:
        """A page of the tags of a repository; `query` has the client's n and last."""

    async def referrers(
        self, request: Request, query: Sequence[tuple[str, str]], authorization: str | None
    ) -> Document:
        """What refers to a manifest; `query` may name an artifactType."""

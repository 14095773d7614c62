"""The configured supernodes as one: the control API with fail-over."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import IO, TypeVar

import aiohttp

from agent.agreement import agreed, ask_all
from agent.supernode_client import OnProgress, SupernodeClient
from imgdist.errors import ImgdistError, NotFoundError, ProtocolError, TemporaryError
from imgdist.oci.reference import Reference
from imgdist.pack.index import Index
from imgdist.proving.verdict import Verdict
from imgdist.wire.control import Chain, Document, Indexes, Resolution, Trace

log = logging.getLogger("imgdist.agent")

T = TypeVar("T")

ANSWER_S = 13.0
"""How long a supernode may take to begin an answer of its registry: what it grants registries (FIRST_BYTE_S of
imgdist.distribution.server), and one second."""


SERVED_S, SERVED_MAX = 600.0, 16
"""For how long a repository counts as pulled from, and how many do: a pull unpacks what it has just asked for."""


class Supernodes:
    """Asks the first supernode that answers, in the configured order; one that did not is asked last from then on."""

    def __init__(self, clients: Sequence[SupernodeClient]) -> None:
        self._clients = list(clients)
        self._served: dict[str, float] = {}

    async def resolve(self, reference: str, *, platform: str, manifest_digest: str | None) -> Resolution:
        """As SupernodeClient.resolve."""
        return await self._ask(
            lambda client: client.resolve(reference, platform=platform, manifest_digest=manifest_digest)
        )

    async def documents(self, reference: str, *, platform: str, manifest_digest: str | None) -> Sequence[Document]:
        """What leads from a reference to an image's configuration, as Resolution has it."""
        found = await self._ask(
            lambda client: client.resolve(
                reference, platform=platform, manifest_digest=manifest_digest, convert=False, documents=True
            )
        )
        return found.documents

    async def chain(self, chain_id: str) -> Chain | None:
        """As SupernodeClient.chain, for what this node's clients have pulled lately."""
        since = time.monotonic() - SERVED_S
        names = tuple(name for name, at in self._served.items() if at > since)
        return await self._ask(lambda client: client.chain(chain_id, names))

    def served(self, name: str) -> None:
        """A client of this node's mirror got a manifest of this repository ("host/repository")."""
        self._served.pop(name, None)
        self._served[name] = time.monotonic()
        if len(self._served) > SERVED_MAX:
            del self._served[next(iter(self._served))]

    async def trace(self, manifest_digest: str) -> Trace | None:
        """As SupernodeClient.trace."""
        return await self._ask(lambda client: client.trace(manifest_digest))

    async def put_trace(self, manifest_digest: str, trace: Trace) -> None:
        """As SupernodeClient.put_trace."""
        await self._ask(lambda client: client.put_trace(manifest_digest, trace))

    async def follow_index(self, layer_digest: str, on_progress: OnProgress | None = None) -> tuple[Index, bytes]:
        """As SupernodeClient.follow_index. Another supernode means another follower, from the beginning."""
        return await self._ask(lambda client: client.follow_index(layer_digest, on_progress))

    async def indexes(self, layer_digests: Sequence[str]) -> Indexes:
        """As SupernodeClient.indexes."""
        return await self._ask(lambda client: client.indexes(layer_digests))

    async def agree(self, layer_digest: str, reference: str, *, platform: str, manifest_digest: str, count: int) -> str:
        """The pack id that `count` supernodes name for a layer; errors as of `agreement.agreed`."""
        named = await ask_all(self._clients, layer_digest, reference, platform, manifest_digest, count)
        return agreed(layer_digest, named, count)

    async def tar_split(self, pack_id: str, out: IO[bytes], most_bytes: int) -> None:
        """As SupernodeClient.tar_split, from the first that has it; `out` is written from its start."""
        problem: ImgdistError = NotFoundError(f"pack {pack_id}: no supernode has its tar-split stream")
        for client in list(self._clients):
            await asyncio.to_thread(_emptied, out)
            try:
                await client.tar_split(pack_id, out, most_bytes)
                return
            except (NotFoundError, ProtocolError, TemporaryError) as error:
                problem = error
        raise problem

    async def prove(self, pack_id: str) -> list[tuple[str, Verdict | ImgdistError]]:
        """Have every supernode hold a pack against its layer: (its URL, what it found or why it did not look)."""

        async def ask(client: SupernodeClient) -> tuple[str, Verdict | ImgdistError]:
            try:
                return client.url, await client.prove(pack_id)
            except ImgdistError as error:
                return client.url, error

        return list(await asyncio.gather(*map(ask, self._clients)))

    async def blob_size(self, blob: Reference, authorization: str | None) -> int:
        """As SupernodeClient.blob_size."""
        return await self._ask(lambda client: client.blob_size(blob, authorization))

    async def follow_blob(
        self, blob: Reference, on_progress: OnProgress, *, authorization: str | None, size: int | None
    ) -> tuple[Index, bytes]:
        """As SupernodeClient.follow_blob. Another supernode means another follower, from the beginning."""
        return await self._ask(
            lambda client: client.follow_blob(blob, on_progress, authorization=authorization, size=size)
        )

    async def open(self, method: str, path: str, headers: Sequence[tuple[str, str]]) -> aiohttp.ClientResponse:
        """As SupernodeClient.open, of the registry (imgdist.distribution); one that is silent is asked last, too."""

        async def ask(client: SupernodeClient) -> aiohttp.ClientResponse:
            try:
                async with asyncio.timeout(ANSWER_S):
                    return await client.open(method, path, headers)
            except TimeoutError:
                raise TemporaryError(f"supernode {client.url}: no answer within {ANSWER_S:g} s") from None

        return await self._ask(ask)

    async def close(self) -> None:
        """Close every client."""
        for client in self._clients:
            await client.close()

    async def _ask(self, question: Callable[[SupernodeClient], Awaitable[T]]) -> T:
        # Over a copy: of two questions that find the same supernode dead, each puts it last, and neither the next one.
        *others, last = list(self._clients)
        for client in others:
            try:
                return await question(client)
            except TemporaryError as error:
                log.warning("asking the next supernode: %s", error)
                self._ask_last(client)
        return await question(last)

    def _ask_last(self, client: SupernodeClient) -> None:
        self._clients.remove(client)
        self._clients.append(client)


def _emptied(out: IO[bytes]) -> None:
    out.seek(0)
    out.truncate()

"""The agent's client of a supernode's control API (imgdist.wire.control): one per supernode and event loop."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from msgspec import msgpack

from agent.supernode_http import Interrupted, SupernodeHttp
from imgdist.errors import NotFoundError, ProtocolError
from imgdist.oci.reference import Reference, is_sha256
from imgdist.pack.index import Index, IndexFollower
from imgdist.pack.kinds import Kind
from imgdist.pack.records import offset_of
from imgdist.proving.verdict import Verdict
from imgdist.wire.clusterkey import ClusterKey
from imgdist.wire.control import (
    INDEXES_MAX,
    BlobStatus,
    Chain,
    Indexes,
    IndexesRequest,
    LayerStatus,
    Resolution,
    ResolveRequest,
    Trace,
)

OnProgress = Callable[[IndexFollower], None]

RESUME_ATTEMPTS = 5
RESUME_DELAY_S = 0.2
"""An index stream that breaks off is resumed at once and then after 0.2, 0.4 ... s: a restart takes about 1 s."""
PROOF_S = 3600.0
"""How long a supernode may take to prove a pack: 10 GB at 30 MB/s are 6 minutes, and others may be before it."""
_PACK_ID = re.compile("[0-9a-f]{64}")


class SupernodeClient:
    """The supernode at `url` ("http://host:port" or "unix:///path").

    Every method raises the error that the supernode names, TemporaryError if it does not answer, ProtocolError for an
    answer that makes no sense or is to another question: what comes from here names files of this node. Connections
    are kept; `close` them, or use `async with`.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, key: ClusterKey | None = None) -> None:
        """`timeout_s` bounds the silence of the supernode within a call; resolving may ask a slow registry. `key`
        proves that a node asks."""
        self._http = SupernodeHttp(url, timeout_s=timeout_s, key=key)
        self.url = self._http.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def resolve(
        self,
        reference: str,
        *,
        platform: str = "",
        manifest_digest: str | None = None,
        convert: bool = True,
        documents: bool = False,
    ) -> Resolution:
        """The image that a reference names (see ResolveRequest); starts its conversion unless told not to."""
        asked = ResolveRequest(reference, platform, manifest_digest, convert, documents)
        found = await self._http.call(Resolution, "POST", "/v1/resolve", msgspec.json.encode(asked))
        digests = [found.manifest_digest, found.config_digest]
        digests += [text for layer in found.layers for text in (layer.digest, layer.diff_id, layer.chain_id)]
        self._check_digests(digests, (layer.pack_id for layer in found.layers))
        if manifest_digest is not None:
            self._check_answers(found.manifest_digest, manifest_digest)
        return found

    async def layer(self, digest: str) -> LayerStatus:
        """How far a layer's conversion is. NotFoundError if the supernode does not know the layer."""
        found = await self._http.call(LayerStatus, "GET", f"/v1/layers/{quote(digest)}")
        self._check_digests((), [found.pack_id])
        self._check_answers(found.digest, digest)
        return found

    async def chain(self, chain_id: str, names: Sequence[str] = ()) -> Chain | None:
        """The layer that a chain ID ends with; None if the supernode has seen no image with it. `names`: repositories
        that clients of this node have pulled from lately; among tenants, others' private images are none."""
        query = f"?{urlencode([('for', name) for name in names])}" if names else ""
        try:
            found = await self._http.call(Chain, "GET", f"/v1/chains/{quote(chain_id)}{query}")
        except NotFoundError:
            return None
        self._check_digests((found.layer_digest, found.diff_id, found.manifest_digest))
        self._check_answers(found.chain_id, chain_id)
        return found

    async def trace(self, manifest_digest: str) -> Trace | None:
        """What starts of an image touched; None if none was recorded."""
        try:
            raw = await self._http.read("GET", f"/v1/traces/{quote(manifest_digest)}")
        except NotFoundError:
            return None
        found = self._http.decoded(lambda: msgpack.decode(raw, type=Trace))
        self._check_digests(found.layers)
        return found

    async def put_trace(self, manifest_digest: str, trace: Trace) -> None:
        """Add what a start touched."""
        await self._http.read("PUT", f"/v1/traces/{quote(manifest_digest)}", msgpack.encode(trace))

    async def prove(self, pack_id: str) -> Verdict:
        """Have the supernode hold a pack against its layer, which may take minutes."""
        raw = await self._http.read("POST", f"/v1/packs/{pack_id}/proof", silence_s=PROOF_S)
        return self._http.decoded(lambda: msgspec.json.decode(raw, type=Verdict))

    async def tar_split(self, pack_id: str, out: IO[bytes], most_bytes: int) -> None:
        """Write a pack's tar-split stream, compressed, to `out`; ProtocolError if it has more than `most_bytes`."""
        received = 0
        async with aclosing(self._http.pieces(f"/v1/packs/{pack_id}/tar-split")) as stream:
            async for piece in stream:
                received += len(piece)
                if received > most_bytes:
                    raise ProtocolError(f"supernode {self.url}: a tar-split stream of more than {most_bytes} bytes")
                await asyncio.to_thread(out.write, piece)

    async def status(self) -> dict[str, Any]:
        """The supernode's own account of itself."""
        return await self._http.call(dict[str, Any], "GET", "/v1/status")

    async def open(self, method: str, path: str, headers: Sequence[tuple[str, str]]) -> aiohttp.ClientResponse:
        """The answer to a request, of whatever status and with its body still to be read; the caller closes it."""
        return await self._http.open(method, path, headers)

    async def index_stream(self, digest: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        """The raw record stream of a layer's index from record `start` on, as it is written.

        Ends after the seal; Interrupted if the connection breaks before, or the conversion's error.
        """
        # Silence is normal here: the layer may wait for its turn, or come over a slow link.
        path = f"/v1/layers/{quote(digest)}/index?from={start}"
        async with aclosing(self._http.pieces(path, is_patient=True)) as stream:
            async for piece in stream:
                yield piece

    async def follow_index(self, digest: str, on_progress: OnProgress | None = None) -> tuple[Index, bytes]:
        """A layer's index, sealed and verified, and the bytes it was read from; followed while the layer converts and
        resumed when the stream breaks.

        `on_progress(follower)` is called whenever records came in: their chunks can be fetched before the seal.
        A supernode that forgot the layer (NotFoundError) wants the image to be resolved again.
        """
        return await self._follow(f"layer {digest}", lambda start: self.index_stream(digest, start), on_progress)

    async def indexes(self, digests: Sequence[str]) -> Indexes:
        """The index streams of those layers that are ready at the supernode, as many as one answer takes: to be loaded,
        and so verified, by the caller; with their metadata chunks. A supernode of an earlier release refuses
        (UsageError)."""
        asked = IndexesRequest(tuple(digests[:INDEXES_MAX]), metadata=True)
        raw = await self._http.read("POST", "/v1/indexes", msgspec.json.encode(asked))
        found = self._http.decoded(lambda: msgpack.decode(raw, type=Indexes))
        for digest in (found.indexes.keys() | found.metadata.keys()) - set(digests):
            raise ProtocolError(f"supernode {self.url}: an index that was not asked for, of {digest[:80]!r}")
        return found

    async def blob_size(self, blob: Reference, authorization: str | None = None) -> int:
        """Bytes of a blob; nothing is fetched. As BlobSource.size."""
        path = f"/v1/blobs/{quote(blob.digest or '')}?{_name_of(blob)}"
        found = await self._http.call(BlobStatus, "GET", path, headers=_shown(authorization))
        self._check_answers(found.digest, blob.digest or "")
        return found.size_bytes

    async def follow_blob(
        self,
        blob: Reference,
        on_progress: OnProgress | None = None,
        *,
        authorization: str | None = None,
        size: int | None = None,
    ) -> tuple[Index, bytes]:
        """The index of a blob's raw pack, as `follow_index` gives a layer's; the supernode fetches the blob meanwhile.
        `size` of the blob, if it is known, spares it a question."""
        told = _name_of(blob) + ("" if size is None else f"&size={size}")
        path = f"/v1/blobs/{quote(blob.digest or '')}/index?{told}"
        index, data = await self._follow(
            f"blob {blob.digest}",
            lambda start: self._http.pieces(f"{path}&from={start}", _shown(authorization), is_patient=True),
            on_progress,
        )
        if index.kind is not Kind.RAW:
            raise ProtocolError(f"supernode {self.url}: asked for the blob {blob.digest}, the answer is about a layer")
        self._check_answers(index.layer_digest or "", blob.digest or "")
        return index, data

    async def _follow(
        self, what: str, stream_from: Callable[[int], AsyncGenerator[bytes, None]], on_progress: OnProgress | None
    ) -> tuple[Index, bytes]:
        follower, received = IndexFollower(), bytearray()
        failures = 0
        while True:
            before = follower.record_count
            try:
                async with aclosing(stream_from(follower.resume_from())) as stream:
                    async for piece in stream:
                        follower.feed(piece)
                        received += piece
                        if on_progress is not None:
                            on_progress(follower)
                if follower.sealed is not None:
                    return follower.sealed, bytes(received)
                problem = Interrupted(f"supernode {self.url}: index of {what} ended before its seal")
            except Interrupted as error:
                problem = error
            # The record that was cut comes again, whole.
            del received[offset_of(bytes(received), follower.record_count) :]
            failures = 1 if follower.record_count > before else failures + 1
            if failures > RESUME_ATTEMPTS:
                raise problem
            await asyncio.sleep(RESUME_DELAY_S * (failures - 1))

    def _check_digests(self, digests: Iterable[str], pack_ids: Iterable[str | None] = ()) -> None:
        for digest in digests:
            if not is_sha256(digest):
                raise ProtocolError(f"supernode {self.url}: expected sha256: and 64 hex digits, got {digest[:80]!r}")
        for pack_id in pack_ids:
            if pack_id is not None and not _PACK_ID.fullmatch(pack_id):
                raise ProtocolError(f"supernode {self.url}: expected a pack id of 64 hex digits, got {pack_id[:80]!r}")

    def _check_answers(self, answered: str, asked: str) -> None:
        if answered != asked:
            raise ProtocolError(f"supernode {self.url}: asked for {asked}, the answer is about {answered[:80]!r}")


def _name_of(blob: Reference) -> str:
    return f"name={quote(blob.name)}"


def _shown(authorization: str | None) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}

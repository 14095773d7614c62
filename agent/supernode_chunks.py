"""The chunk bodies of a supernode, as a source of the transfers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future

from agent.swarm.neighbours import SILENCE_S
from imgdist.api import JsonApi
from imgdist.errors import ImgdistError, ProtocolError, TemporaryError, UnreachableError, UsageError
from imgdist.wire.address import Address
from imgdist.wire.client import READ_TIMEOUT_S, ChunkClient, OnChunk, OnHead, OnNumbers, OnPause, ignore
from imgdist.wire.clusterkey import ClusterKey
from imgdist.wire.requests import BodyRequest

_LOCATE_TIMEOUT_S = 5.0


class SupernodeChunks:
    """The chunk bodies of one supernode (a `ChunkSource`). Where they are served is asked once, and anew when nobody
    is there: a supernode may come back with another port.

    `node`, which may be set later, is as ChunkClient's: where others reach this member of the swarm; `key`, too."""

    kind = "supernode"

    def __init__(
        self,
        url: str,
        *,
        read_timeout_s: float = READ_TIMEOUT_S,
        node: str | None = None,
        key: ClusterKey | None = None,
    ) -> None:
        self.name = url
        self._key = key
        self.node = node
        self._read_timeout_s = read_timeout_s
        self._control = JsonApi(url, "the supernode", timeout_s=_LOCATE_TIMEOUT_S, key=key)
        self._lock = threading.Lock()
        self._client: ChunkClient | None = None
        self._locating: Future[ChunkClient] | None = None
        self._closed = False

    def fetch(
        self,
        request: BodyRequest,
        on_chunk: OnChunk,
        on_head: OnHead = ignore,
        on_numbers: OnNumbers = ignore,
        on_pause: OnPause | None = None,
    ) -> None:
        """As ChunkClient.fetch."""
        if on_pause is not None and self._client is None:
            on_pause()
        with self._client_in_use() as client:
            client.fetch(request, on_chunk, on_head, on_numbers, on_pause)

    def probe(self, timeout_s: float) -> None:
        """As ChunkClient.probe, where its chunk bodies are; if that is not known, where it can be asked for it."""
        with self._lock:
            client = self._client
        if client is not None:
            client.probe(timeout_s)
        else:
            JsonApi(self.name, "the supernode", timeout_s=timeout_s, key=self._key).get("/v1/chunks")

    def renew(self) -> None:
        """As ChunkClient.renew, of what has been silent for longer than a live supernode is."""
        with self._lock:
            client = self._client
        if client is not None:
            client.renew(SILENCE_S)

    def close(self) -> None:
        """End fetches in progress; later ones fail with TemporaryError."""
        with self._lock:
            self._closed, client, self._client = True, self._client, None
        if client is not None:
            client.close()

    @contextlib.contextmanager
    def _client_in_use(self) -> Iterator[ChunkClient]:
        """Who serves the chunks, for a request; forgotten if nobody is there."""
        client = self._located()
        client.node = self.node
        try:
            yield client
        except UnreachableError:
            self._forget(client)
            raise

    def _located(self) -> ChunkClient:
        """Single flight: of all threads that find the address unknown one asks, and the others get its answer or its
        error; else a supernode that comes back is asked by all of them at once."""
        with self._lock:
            if self._client is not None:
                return self._client
            asking, is_leader = self._locating, self._locating is None
            if asking is None:
                asking = self._locating = Future()
        if is_leader:
            self._locate(asking)
        return asking.result()

    def _locate(self, asking: Future[ChunkClient]) -> None:
        try:
            client = ChunkClient(self._ask_where(), read_timeout_s=self._read_timeout_s, key=self._key)
        except BaseException as error:
            with self._lock:
                self._locating = None
            asking.set_exception(error)
            return
        with self._lock:
            self._locating = None
            closed = self._closed
            if not closed:
                self._client = client
        if closed:
            asking.set_exception(TemporaryError(f"{self.name}: the agent is stopping"))
        else:
            asking.set_result(client)

    def _ask_where(self) -> Address:
        try:
            answer = self._control.get("/v1/chunks")
        except TemporaryError:
            raise
        except ImgdistError as error:  # whatever it says, it is not about the pack that is asked for
            raise ProtocolError(f"{self.name}: expected where its chunk bodies are, got: {error}") from None
        url = answer.get("chunks", "") if isinstance(answer, dict) else ""
        if url is None:  # its chunk server is being started (again): no lie, and over in a moment
            raise TemporaryError(f"{self.name}: serves no chunk bodies at the moment")
        try:
            return Address.parse(url)
        except (UsageError, AttributeError, TypeError):
            raise ProtocolError(
                f"{self.name}: expected the address of its chunk bodies in /v1/chunks, got {url!r}"
            ) from None

    def _forget(self, failed: ChunkClient) -> None:
        with self._lock:
            if self._client is failed:
                self._client = None
        # Not closed here: other threads may be reading from it; its idle connections go when they have finished.

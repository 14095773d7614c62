"""Several supernodes as one: fail-over, and where chunk bodies are served."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import pytest
from blake3 import blake3

from agent.supernode_chunks import SupernodeChunks
from agent.supernodes import Supernodes
from imgdist.errors import DeniedError, NotFoundError, ProtocolError, TemporaryError
from imgdist.wire.address import Address
from imgdist.wire.answer import Row
from imgdist.wire.messages import Priority
from imgdist.wire.requests import ChunkRequest
from imgdist.wire.server import ChunkServer


class FakeClient:
    """Answers a chain with its name, or raises; `calls` are counted. `together`: waits for that many questions."""

    def __init__(self, name: str, error: Exception | None = None, together: int = 1) -> None:
        self.name, self.error = name, error
        self.calls = 0
        self._barrier = asyncio.Barrier(together)

    async def chain(self, chain_id: str, names: Sequence[str] = ()) -> Any:
        self.calls += 1
        if self.error is not None:
            await self._barrier.wait()
            raise self.error
        return self.name

    async def tar_split(self, pack_id: str, out: IO[bytes], most_bytes: int) -> None:
        out.write(self.name.encode())
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        self.calls = -1


def together(*clients: FakeClient) -> Supernodes:
    return Supernodes(list(clients))  # type: ignore[arg-type]


async def test_the_first_that_answers_is_asked_and_a_dead_one_last_from_then_on() -> None:
    dead, first, second = FakeClient("dead", TemporaryError("refused")), FakeClient("first"), FakeClient("second")
    supernodes = together(dead, first, second)
    assert [await supernodes.chain("c") for _ in range(3)] == ["first"] * 3
    assert (dead.calls, first.calls, second.calls) == (1, 3, 0)
    first.error, dead.error = TemporaryError("refused"), None
    assert await supernodes.chain("c") == "second"
    second.error = TemporaryError("refused")
    assert await supernodes.chain("c") == "dead"


async def test_two_questions_that_find_the_same_one_dead_both_get_to_the_living_one() -> None:
    dead, living = FakeClient("dead", TemporaryError("refused"), together=2), FakeClient("living")
    supernodes = together(dead, living)
    assert await asyncio.gather(supernodes.chain("a"), supernodes.chain("b")) == ["living"] * 2
    assert (dead.calls, living.calls) == (2, 2)


async def test_with_none_left_the_last_error_comes_out() -> None:
    clients = [FakeClient(name, TemporaryError(f"{name} refused")) for name in "ab"]
    supernodes = together(*clients)
    with pytest.raises(TemporaryError, match="b refused"):
        await supernodes.chain("c")
    assert [client.calls for client in clients] == [1, 1]


@pytest.mark.parametrize("error", [NotFoundError("no"), DeniedError("no"), ProtocolError("no")])
async def test_an_answer_is_an_answer(error: Exception) -> None:
    other = FakeClient("other")
    with pytest.raises(type(error)):
        await together(FakeClient("one", error), other).chain("c")
    assert other.calls == 0


async def test_a_stream_that_one_lies_about_comes_from_the_next() -> None:
    out = io.BytesIO()
    endless, gone = FakeClient("an endless one", ProtocolError("too long")), FakeClient("gone", NotFoundError("no"))
    await together(endless, gone, FakeClient("right")).tar_split("p", out, 10)
    assert out.getvalue() == b"right"


async def test_closing_closes_them_all() -> None:
    clients = [FakeClient("a"), FakeClient("b")]
    await together(*clients).close()
    assert [client.calls for client in clients] == [-1, -1]


class Control:
    """A supernode's /v1/chunks. `document` is what it says, bytes as they are; `asked` how often; `answer` lets it."""

    def __init__(self) -> None:
        self.document: Any = {}
        self.status = 200
        self.asked = 0
        self.answer = threading.Event()
        self.answer.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/v1/chunks"
                outer.asked += 1
                outer.answer.wait(10)
                body = outer.document if isinstance(outer.document, bytes) else json.dumps(outer.document).encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def control() -> Iterator[Control]:
    made = Control()
    yield made
    made.close()


class OnePack:
    """A store with one chunk, raw, in one pack."""

    def __init__(self, directory: Path) -> None:
        (directory / "chunks").write_bytes(BODY)
        self.file = open(directory / "chunks", "rb")  # noqa: SIM115 - closed below

    def open(self, name: str) -> OnePack | None:
        return self if name == PACK else None

    identity, count, arrivals = 1, 1, None

    def row(self, number: int) -> Row:
        if number:
            raise NotFoundError(f"chunk {number}")
        return Row(self.file.fileno(), 0, len(BODY), 0)


BODY = bytes(range(256)) * 16
PACK = blake3(BODY).hexdigest()


def fetched(chunks: SupernodeChunks, pack: str = PACK) -> bytes:
    found: list[bytes] = []
    chunks.fetch(ChunkRequest(pack, (0,), Priority.DEMAND), lambda number, encoding, body: found.append(bytes(body)))
    return b"".join(found)


@pytest.fixture
def chunks(control: Control) -> Iterator[SupernodeChunks]:
    made = SupernodeChunks(control.url)
    yield made
    made.close()


def test_chunk_bodies_are_located_once_and_anew_when_they_have_moved(
    control: Control, chunks: SupernodeChunks, tmp_path: Path
) -> None:
    store = OnePack(tmp_path)
    try:
        for moves in (1, 2):
            listener = Address("127.0.0.1", 0).listen()
            control.document = {"chunks": f"http://127.0.0.1:{listener.getsockname()[1]}"}
            server = ChunkServer(store, [listener])
            server.start()
            try:
                assert fetched(chunks) == fetched(chunks) == BODY
                assert control.asked == moves
            finally:
                server.stop(0)
            with pytest.raises(TemporaryError):
                fetched(chunks)
    finally:
        store.file.close()


def test_a_request_that_times_out_forgets_no_address(control: Control) -> None:
    listener = Address("127.0.0.1", 0).listen()  # takes connections and never answers
    control.document = {"chunks": f"http://127.0.0.1:{listener.getsockname()[1]}"}
    chunks = SupernodeChunks(control.url, read_timeout_s=0.05)
    try:
        for _ in range(3):
            with pytest.raises(TemporaryError):
                fetched(chunks)
        assert control.asked == 1
    finally:
        chunks.close()
        listener.close()


@pytest.mark.parametrize("document", [{"chunks": "http://127.0.0.1:9"}, {"chunks": None}])
def test_only_one_thread_asks_where_and_all_get_its_answer(
    control: Control, chunks: SupernodeChunks, document: Any
) -> None:
    control.document = document
    control.answer.clear()
    with ThreadPoolExecutor(16) as threads:
        waiting = [threads.submit(fetched, chunks) for _ in range(16)]
        while threads._work_queue.qsize() or not control.asked:
            threading.Event().wait(0.01)
        threading.Event().wait(0.1)  # whoever would ask too has asked by now
        asked = control.asked
        control.answer.set()
        for future in waiting:
            with pytest.raises(TemporaryError):
                future.result(10)
    assert asked == 1


def test_a_supernode_without_chunk_bodies_at_the_moment_is_no_liar(control: Control, chunks: SupernodeChunks) -> None:
    control.document = {"chunks": None}
    with pytest.raises(TemporaryError, match="no chunk bodies at the moment"):
        fetched(chunks)


@pytest.mark.parametrize("document", [{}, [], {"chunks": 7}, {"chunks": ""}, {"chunks": "ftp://x"}, b"<html>"])
def test_a_status_that_makes_no_sense_is_the_supernodes_fault(
    control: Control, chunks: SupernodeChunks, document: Any
) -> None:
    control.document = document
    with pytest.raises(ProtocolError):
        fetched(chunks)


def test_a_status_that_is_not_found_says_nothing_of_the_pack(control: Control, chunks: SupernodeChunks) -> None:
    control.status, control.document = 404, {"error": "nothing here", "kind": "not_found"}
    with pytest.raises(ProtocolError, match="nothing here"):
        fetched(chunks)


def test_a_supernode_that_is_not_there_is_temporary_and_so_is_a_stop(control: Control) -> None:
    absent = SupernodeChunks("http://127.0.0.1:9")
    with pytest.raises(TemporaryError):
        fetched(absent)
    control.document = {"chunks": "http://127.0.0.1:9"}
    stopped = SupernodeChunks(control.url)
    stopped.close()
    with pytest.raises(TemporaryError, match="stopping"):
        fetched(stopped)

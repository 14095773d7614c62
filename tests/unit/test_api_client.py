"""The command line's client of the JSON APIs: what it makes of answers, and of none."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgdist.api import JsonApi
from imgdist.errors import (
    CorruptError,
    DeclinedError,
    DeniedError,
    ImgdistError,
    NotFoundError,
    ProtocolError,
    TemporaryError,
    UnsupportedError,
    UsageError,
)
from imgdist.wire.control import failure


class Daemon:
    """Answers each connection on a unix socket with `answer`, raw; None hangs up, `silent` never answers."""

    def __init__(self, directory: Path) -> None:
        self.answer: bytes | None = b""
        self.silent = False
        self.seen: list[bytes] = []
        self.url = f"unix://{directory}/s"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(f"{directory}/s")
        self._socket.listen()
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def says(self, document: object, status: int = 200) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.answer = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        for connection in self._held:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if self.silent:
                self._held.append(connection)
                continue
            with connection:
                self.seen.append(self._request(connection))
                if self.answer is not None:
                    connection.sendall(self.answer)

    def _request(self, connection: socket.socket) -> bytes:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        head, _, body = request.partition(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0] or 0)
        while len(body) < length:
            body += connection.recv(65536)
        return head.partition(b"\r\n")[0] + b" " + body


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    yield made
    made.close()


def test_documents_go_there_and_back(daemon: Daemon) -> None:
    daemon.says({"a": [1, None]})
    api = JsonApi(daemon.url, "the agent")
    assert api.get("/v1/status") == {"a": [1, None]}
    assert api.post("/v1/mounts", {"x": "ü"}) == {"a": [1, None]}
    assert daemon.seen[0] == b"GET /v1/status HTTP/1.1 "
    assert json.loads(daemon.seen[1].removeprefix(b"POST /v1/mounts HTTP/1.1 ")) == {"x": "ü"}
    daemon.says(b"")
    assert api.get("/v1/status") is None


@pytest.mark.parametrize(
    "kind",
    [
        UsageError,
        NotFoundError,
        DeniedError,
        TemporaryError,
        ProtocolError,
        CorruptError,
        DeclinedError,
        UnsupportedError,
    ],
)
def test_an_error_arrives_as_what_it_left_as(daemon: Daemon, kind: type[ImgdistError]) -> None:
    status, body = failure(kind("what went wrong"))
    daemon.says({"error": body.error, "kind": body.kind, "more": "later releases may say"}, status)
    with pytest.raises(kind, match=r"^what went wrong$") as raised:
        JsonApi(daemon.url, "the agent").get("/v1/status")
    assert type(raised.value) is kind and raised.value.exit_code == kind("").exit_code


def test_an_error_of_a_kind_that_is_not_known_is_one_all_the_same(daemon: Daemon) -> None:
    daemon.says({"error": "new trouble", "kind": "unheard-of"}, 418)
    with pytest.raises(ImgdistError, match="new trouble"):
        JsonApi(daemon.url, "the agent").get("/v1/status")


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>"), (500, b"<html>"), (500, b""), (500, b"[]"), (404, b'{"kind": "x"}')]
)
def test_an_answer_that_makes_no_sense_is_shown(daemon: Daemon, status: int, body: bytes) -> None:
    daemon.says(body, status)
    with pytest.raises(ProtocolError, match=f"the agent at {daemon.url}: expected JSON, got status {status}"):
        JsonApi(daemon.url, "the agent").get("/v1/status")


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
def test_a_daemon_that_hangs_up_is_named(daemon: Daemon, answer: bytes | None) -> None:
    daemon.answer = answer
    with pytest.raises(TemporaryError, match=f"the agent does not answer at {daemon.url}: .+; is it running"):
        JsonApi(daemon.url, "the agent").get("/v1/status")


def test_something_else_that_listens_there_is_shown(daemon: Daemon) -> None:
    daemon.answer = b"SSH-2.0\0\r\n\r\n"
    with pytest.raises(ProtocolError, match="expected HTTP, got BadStatusLine") as raised:
        JsonApi(daemon.url, "the agent").get("/v1/status")
    assert str(raised.value).isprintable()


def test_nobody_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(TemporaryError) as raised:
        JsonApi(f"unix://{tmp_path}/none", "the agent").get("/v1/status")
    assert str(raised.value) == (
        f"the agent does not answer at unix://{tmp_path}/none: No such file or directory; is it running?"
    )
    with pytest.raises(TemporaryError, match="Connection refused; is it running"):
        JsonApi("http://127.0.0.1:9", "the supernode").get("/v1/status")


def test_silence_has_an_end(daemon: Daemon) -> None:
    daemon.silent = True
    with pytest.raises(TemporaryError, match="has not answered within 0 s"):
        JsonApi(daemon.url, "the agent", timeout_s=0.05).get("/v1/status")

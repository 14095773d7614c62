"""The cluster's key: what a token opens, for how long, and what a file must be."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import ConfigError, TemporaryError
from imgdist.wire.address import Address
from imgdist.wire.client import ChunkClient
from imgdist.wire.clusterkey import LIFE_S, SKEW_S, ClusterKey
from imgdist.wire.mesh import answered_token, upgrade_request
from imgdist.wire.messages import Priority
from imgdist.wire.requests import ChunkRequest
from imgdist.wire.responses import SWITCHING, switching
from imgdist.wire.server import ChunkServer

PACK = "a" * 64


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., ClusterKey]:
    def make(*keys: str, name: str = "key", clock: Callable[[], float] = time.time) -> ClusterKey:
        path = tmp_path / name
        path.write_text("\n".join(keys or ["0123456789abcdef" * 2]) + "\n")
        path.chmod(0o600)
        return ClusterKey(str(path), clock)

    return make


def test_a_token_is_for_one_thing_and_for_minutes(made: Callable[..., ClusterKey]) -> None:
    now = [1_000_000.0]
    key = made(clock=lambda: now[0])
    other = made("another key that is long enough to be one", name="b", clock=lambda: now[0])
    token = key.token(PACK)
    assert key.accepts(PACK, token) and key.accepts(PACK, token)
    assert not key.accepts("b" * 64, token) and not other.accepts(PACK, token)
    assert key.token(PACK) == token
    now[0] += LIFE_S / 2 + 1
    assert key.token(PACK) != token and key.accepts(PACK, token)
    now[0] += LIFE_S / 2 + SKEW_S
    assert not key.accepts(PACK, token)


def test_clocks_may_be_apart_and_tokens_not_from_far_ahead(made: Callable[..., ClusterKey]) -> None:
    def at(now: float) -> ClusterKey:
        return made(clock=lambda: now)

    for skew in (-SKEW_S + 2, 0, SKEW_S - 2):
        assert at(10_000).accepts(PACK, at(10_000 + skew).token(PACK))
    assert not at(10_000).accepts(PACK, at(10_000 + 2 * LIFE_S + 2 * SKEW_S).token(PACK))


@given(st.text(max_size=80))
def test_no_text_is_a_token(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any-key"
    if not path.exists():
        path.write_text("0" * 64)
        path.chmod(0o600)
    assert not ClusterKey(str(path)).accepts(PACK, text)


def test_keys_change_node_by_node(made: Callable[..., ClusterKey], tmp_path: Path) -> None:
    old, new = "old key that is long enough to be one", "new key that is long enough to be one"
    now = [1000.0]
    late = made(old, name="late", clock=lambda: now[0])
    before = late.token(PACK)
    early = made(new, old, name="early", clock=lambda: now[0])
    assert early.accepts(PACK, before) and not late.accepts(PACK, early.token(PACK))
    (tmp_path / "late").write_text(f"{new}\n{old}\n")
    now[0] += 10
    assert late.accepts(PACK, early.token(PACK)) and late.token(PACK) != before
    (tmp_path / "late").unlink()  # the one that was read stands
    now[0] += 10
    assert late.accepts(PACK, early.token(PACK))


@pytest.mark.parametrize(
    ("text", "mode", "words"), [("short", 0o600, "32"), ("x" * 40, 0o644, "chmod 600"), ("", 0o600, "32")]
)
def test_a_key_that_is_none_is_refused(tmp_path: Path, text: str, mode: int, words: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=words) as caught:
        ClusterKey(str(path))
    assert str(path) in str(caught.value) and (not text or text not in str(caught.value))
    with pytest.raises(ConfigError, match="cannot read"):
        ClusterKey(str(tmp_path / "none"))


def test_the_answer_to_a_mesh_request_carries_a_token() -> None:
    assert answered_token(switching("1.a.b")) == "1.a.b"
    assert answered_token(SWITCHING) == "" and switching("") == SWITCHING
    assert b"Imgdist-Token: t\r\n" in upgrade_request("h:1", "t")


class Nothing:
    """A shelf without packs."""

    def open(self, name: str) -> None:
        return None


@pytest.fixture
def server(made: Callable[..., ClusterKey]) -> Iterator[Address]:
    listener = socket.create_server(("127.0.0.1", 0))
    serving = ChunkServer(
        Nothing(), [listener], on_mesh=lambda sock, rest: sock.close(), hello=lambda: b"x", key=made()
    )
    serving.start()
    yield Address(*listener.getsockname())
    serving.stop()


def test_a_server_with_a_key_serves_nodes_alone(server: Address, made: Callable[..., ClusterKey]) -> None:
    def ask(key: ClusterKey | None) -> str:
        client = ChunkClient(server, key=key)
        try:
            with pytest.raises(Exception) as caught:
                client.fetch(ChunkRequest(PACK, (0,), Priority.DEMAND), lambda *_: None)
            return f"{type(caught.value).__name__} {caught.value}"
        finally:
            client.close()

    assert ask(made()).startswith("NotFoundError")
    for key in (None, made("another key that is long enough to be one", name="b")):
        assert ask(key).startswith(TemporaryError.__name__) and "key_file" in ask(key)
    with socket.create_connection((server.host, server.port)) as sock:
        sock.sendall(upgrade_request("h:1"))
        assert sock.recv(100).startswith(b"HTTP/1.1 403 ")
    with socket.create_connection((server.host, server.port)) as sock:
        sock.sendall(b"GET /v1/hello HTTP/1.1\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
    token = made().token("mesh")
    with socket.create_connection((server.host, server.port)) as sock:
        sock.sendall(upgrade_request("h:1", token))
        assert made().accepts(f"mesh {token}", answered_token(sock.recv(1000)))


def test_secrets_stay_out_of_repr(made: Callable[..., ClusterKey]) -> None:
    assert "0123456789abcdef" not in repr(made()) + repr(vars(made()))
    assert os.sep in repr(vars(made()))

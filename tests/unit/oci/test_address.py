"""Addresses: what is read, what is refused, and sockets made from them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from imgdist.errors import ImgdistError, TemporaryError, UsageError
from imgdist.wire.address import Address


@pytest.mark.parametrize(
    ("text", "address", "url"),
    [
        ("127.0.0.1:7600", Address("127.0.0.1", 7600), "http://127.0.0.1:7600"),
        ("http://node-1.example:80/", Address("node-1.example", 80), "http://node-1.example:80"),
        ("[::1]:7600", Address("::1", 7600), "http://[::1]:7600"),
        (":7600", Address("0.0.0.0", 7600), "http://0.0.0.0:7600"),
        ("unix:///run/x.sock", Address(path="/run/x.sock"), "unix:///run/x.sock"),
    ],
)
def test_parse(text: str, address: Address, url: str) -> None:
    assert Address.parse(text) == address
    assert address.url == url
    assert Address.parse(url) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:port",
        "host:70000",
        "http://h:1/path",
        "https://h:1",
        "unix://x",
        "unix:///" + "x" * 107,
        "u@h:1",
    ],
)
def test_refused_addresses_name_the_text(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Address.parse(text)
    assert text.removeprefix("unix://") in str(caught.value)


def test_local_and_wildcard() -> None:
    assert [Address.parse(t).is_local for t in ("127.0.0.9:1", "[::1]:1", "localhost:1", "unix:///x")] == [True] * 4
    assert not Address.parse("10.0.0.1:1").is_local
    assert not Address.parse("node:1").is_local
    assert Address.parse(":1").is_wildcard
    assert not Address.parse("10.0.0.1:1").is_wildcard


def test_unix_listener_is_private_and_replaces_a_dead_one_only(tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "s.sock"))
    with address.listen() as listener:
        assert stat.S_IMODE((tmp_path / "s.sock").stat().st_mode) == 0o600
        with pytest.raises(ImgdistError, match=r"s\.sock: another process"):
            address.listen()
        listener.accept()[0].close()  # the liveness probe of the refused listener
        with address.connect(1), listener.accept()[0]:
            pass
    with pytest.raises(TemporaryError, match="cannot connect"):
        address.connect(1)
    address.listen().close()


def test_tcp_port_in_use_is_one_clear_line() -> None:
    with Address("127.0.0.1", 0).listen() as listener:
        taken = Address(*listener.getsockname())
        with pytest.raises(ImgdistError, match=f"cannot listen on {taken}: another process"):
            taken.listen()
        with taken.connect(1):
            pass

"""Credentials and challenges: what files and headers say; no secret in a message."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import ConfigError, ProtocolError, TemporaryError
from imgdist.oci.auth import Challenge, parse_challenges, token_request
from imgdist.oci.credentials import Credentials
from imgdist.oci.credhelper import CredentialHelper
from imgdist.oci.dockerconfig import DockerConfigFile
from imgdist.oci.transport import Retry, parse_retry_after


def entry(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, document: Any) -> DockerConfigFile:
    path.write_text(json.dumps(document))
    return DockerConfigFile(str(path), CredentialHelper())


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("reg.example:5000", "reg.example:5000"),
        ("https://reg.example", "reg.example"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("*.example", "reg.example"),
        ("reg.example/a", "reg.example"),
    ],
)
async def test_registries_are_known_as_docker_and_the_kubelet_write_them(tmp_path: Path, key: str, host: str) -> None:
    file = write(tmp_path / "config.json", {"auths": {key: entry("me", "se:cret")}})
    assert await file.find(host, "a/b") == Credentials("me", "se:cret")
    assert await file.find("other.where.example", "a/b") is None
    assert await file.find(host, "ab") == (None if key.endswith("/a") else Credentials("me", "se:cret"))


async def test_the_longest_key_counts(tmp_path: Path) -> None:
    auths = {"reg.example": entry("all", "1"), "reg.example/a": entry("a", "2"), "reg.example/a/b": entry("b", "3")}
    file = write(tmp_path / "config.json", {"auths": auths})
    found = [await file.find("reg.example", name) for name in ("x", "a/c", "a/b", "a/b/c", "ab")]
    assert [one.username for one in found if one] == ["all", "a", "b", "b", "all"]


async def test_the_file_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    file = write(path, {"auths": {"h.x": {"identitytoken": "it"}}})
    assert await file.find("h.x", "r") == Credentials(identity_token="it")
    path.write_text(json.dumps({"auths": {"h.x": {"username": "b", "password": "22"}}}))
    os.utime(path, ns=(1, 1))
    assert await file.find("h.x", "r") == Credentials("b", "22")
    path.unlink()
    with pytest.raises(ConfigError, match=r"config\.json"):
        await file.find("h.x", "r")


async def test_a_mounted_pull_secret_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / ".dockerconfigjson").write_text(json.dumps({"auths": {"h.x": entry("a", "1")}}))
    assert await DockerConfigFile(str(tmp_path), CredentialHelper()).find("h.x", "r") == Credentials("a", "1")


@pytest.mark.parametrize("text", ["", "{", '{"auths": 3}', '{"auths": {"h": {"auth": "s3cret!"}}}'])
async def test_broken_file_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        await DockerConfigFile(str(path), CredentialHelper()).find("h", "r")
    assert str(path) in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_secrets_stay_out_of_repr() -> None:
    shown = repr(Credentials("me", "s3cret", "t0ken"))
    assert "me" in shown
    assert "s3cret" not in shown
    assert "t0ken" not in shown


@pytest.mark.parametrize(
    ("headers", "challenges"),
    [
        ([], []),
        (['Basic realm="a, b"'], [Challenge("basic", {"realm": "a, b"})]),
        (
            ['Bearer realm="https://t/x",service=s,scope="repository:a:pull,push"'],
            [Challenge("bearer", {"realm": "https://t/x", "service": "s", "scope": "repository:a:pull,push"})],
        ),
        (['bearer realm=r , Basic realm=b'], [Challenge("bearer", {"realm": "r"}), Challenge("basic", {"realm": "b"})]),
        (["Negotiate", r'Basic realm="q\"q"'], [Challenge("negotiate", {}), Challenge("basic", {"realm": 'q"q'})]),
    ],
)  # fmt: skip
def test_challenges(headers: list[str], challenges: list[Challenge]) -> None:
    assert parse_challenges(headers) == challenges


@given(st.lists(st.text(max_size=60), max_size=3))
def test_any_header_is_read_in_bounded_time(headers: list[str]) -> None:
    parse_challenges(headers)


def test_token_request() -> None:
    bearer = Challenge("bearer", {"realm": "https://t/x", "service": "s"})
    anonymous = token_request(bearer, "repository:a:pull", None)
    assert (anonymous.query, anonymous.authorization) == ({"service": "s", "scope": "repository:a:pull"}, None)
    assert token_request(bearer, "x", Credentials("a", "b")).authorization == Credentials("a", "b").basic
    with pytest.raises(ProtocolError, match="realm"):
        token_request(Challenge("bearer", {"realm": "file:///etc/passwd"}), "x", None)
    with pytest.raises(ProtocolError, match="realm"):
        token_request(Challenge("bearer", {"realm": "https://h:99999/token"}), "x", None)


def test_retry_delays() -> None:
    retry = Retry(attempts=4, connect_attempts=2, base_s=1, cap_s=3, retry_after_max_s=10)
    error = TemporaryError("x")
    assert [retry.delay_s(n, error, False, 1.0) for n in (1, 2, 3, 4)] == [1, 2, 3, None]
    assert retry.delay_s(1, error, False, 0.0) == 0.5
    assert [retry.delay_s(n, error, True, 1.0) for n in (1, 2)] == [1, None]
    assert retry.delay_s(1, TemporaryError("x", 7), False, 0.5) == 7
    assert retry.delay_s(1, TemporaryError("x", 11), False, 0.5) is None


def test_retry_after() -> None:
    assert parse_retry_after("7", 0) == 7
    assert parse_retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 50) == 10
    assert parse_retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 90) == 0
    for nothing in ("soon", "²", "Thu, 01 Jan 1970 00:01:00 +9999999999999999999999"):
        assert parse_retry_after(nothing, 0) is None
    assert (parse_retry_after("9" * 400, 0) or 0) < float("inf")
    assert parse_retry_after(None, 0) is None

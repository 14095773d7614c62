"""Credential helpers and Kubernetes: asked when needed, anew before the end or after a refusal, never quoted."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from imgdist.errors import ConfigError, ImgdistError, TemporaryError
from imgdist.oci import credhelper, transport
from imgdist.oci.credentials import Credentials, expiry
from imgdist.oci.credhelper import KEEP_S, CredentialHelper
from imgdist.oci.dockerconfig import DockerConfigFile
from imgdist.oci.kubernetes import KEEP_S as SECRET_S
from imgdist.oci.kubernetes import REST_S, ApiServer, KubernetesSecret


def jwt(ends: float) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": ends}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2ln"


def ecr(ends: float) -> str:
    return base64.b64encode(json.dumps({"payload": "x", "expiration": ends}).encode()).decode()


@pytest.mark.parametrize(
    ("secret", "ends"),
    [
        *((jwt(1234), 1234), (ecr(99), 99), ("plain", math.inf), ("a.b.c", math.inf), ("", math.inf)),
        *((jwt(odd), math.inf) for odd in (True, math.nan, math.inf, 10**400, -1)),
    ],
)
def test_secrets_that_say_when_they_end(secret: str, ends: float) -> None:
    assert expiry(secret) == ends


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a helper into PATH that runs a shell script; the file has a line for each time it was asked."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def put(name: str, script: str) -> Path:
        asked = tmp_path / f"{name}.asked"
        program = tmp_path / f"docker-credential-{name}"
        program.write_text(f"#!/bin/sh\nread host; echo $1 $host >> {asked}\n{script}\n")
        program.chmod(0o755)
        asked.touch()
        return asked

    return put


def said(user: str, secret: str) -> str:
    return f"echo '{json.dumps({'ServerURL': 'x', 'Username': user, 'Secret': secret})}'"


async def test_a_helper_is_asked_once_until_shortly_before_the_end(install: Callable[[str, str], Path]) -> None:
    now = [1000.0]
    helper = CredentialHelper(lambda: now[0])
    asked = install("ecr", said("AWS", ecr(5000)))
    found = await asyncio.gather(*(helper.get("ecr", "reg.example") for _ in range(5)))
    assert found == [Credentials("AWS", ecr(5000))] * 5
    now[0] = 4900
    await helper.get("ecr", "reg.example")
    assert asked.read_text() == "get reg.example\n"
    now[0] = 4950
    await helper.get("ecr", "reg.example")
    assert len(asked.read_text().splitlines()) == 2
    plain = install("plain", said("me", "s3cret"))
    await helper.get("plain", "docker.io")
    now[0] += KEEP_S - 1
    await helper.get("plain", "docker.io")
    assert plain.read_text() == "get https://index.docker.io/v1/\n"
    helper.forget("plain", "docker.io")
    await helper.get("plain", "docker.io")
    assert len(plain.read_text().splitlines()) == 2


async def test_answers_for_hosts_that_clients_make_up_are_forgotten(
    install: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credhelper, "KEPT_MAX", 2)
    install("many", said("me", "1"))
    helper = CredentialHelper()
    for number in range(4):
        assert await helper.get("many", f"{number}.example") == Credentials("me", "1")
    assert len(helper._kept) == 2 and not helper._locks


async def test_what_helpers_say_beside_credentials(install: Callable[[str, str], Path]) -> None:
    helper = CredentialHelper()
    install("token", said("<token>", "it"))
    install("none", "echo 'credentials not found in native keychain'; exit 1")
    install("broken", "echo s3cret >&2; echo s3cret; exit 2")
    install("nonsense", "echo s3cret")
    assert await helper.get("token", "h") == Credentials(identity_token="it")
    assert await helper.get("none", "h") is None
    for name, kind in (("broken", TemporaryError), ("nonsense", TemporaryError), ("absent", ConfigError)):
        with pytest.raises(kind, match=f"docker-credential-{name}") as caught:
            await helper.get(name, "h")
        assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError):
        await helper.get("../sh", "h")


async def test_config_json_names_helpers_by_host_and_for_all_others(
    install: Callable[[str, str], Path], tmp_path: Path
) -> None:
    install("one", said("one", "1"))
    install("rest", "case $host in *.none) echo credentials not found; exit 1;; esac; " + said("rest", "2"))
    auths = {"x.none": {"auth": base64.b64encode(b"file:3").decode()}, "a.example": {}}
    document = {"auths": auths, "credHelpers": {"a.example": "one"}, "credsStore": "rest"}
    (tmp_path / "config.json").write_text(json.dumps(document))
    file = DockerConfigFile(str(tmp_path / "config.json"), CredentialHelper())
    users = {}
    for host in ("a.example", "b.example", "x.none", "y.none"):
        found = await file.find(host, "r")
        users[host] = found.username if found else None
    assert users == {"a.example": "one", "b.example": "rest", "x.none": "file", "y.none": None}


class Api:
    """A Kubernetes API with one secret."""

    def __init__(self) -> None:
        self.data: dict[str, str] = {}
        self.status = 200
        self.asked: list[str] = []

    def login(self, user: str) -> None:
        auths = {"reg.example": {"username": user, "password": "s3cret"}}
        self.data = {".dockerconfigjson": base64.b64encode(json.dumps({"auths": auths}).encode()).decode()}

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.path} {request.headers['Authorization']}")
        return web.json_response({"kind": "Secret", "data": self.data}, status=self.status)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[tuple[Api, KubernetesSecret, list[float]]]:
    api, now = Api(), [0.0]
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", api.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    (tmp_path / "token").write_text("account\n")
    async with transport.session() as http:
        server = ApiServer(f"http://127.0.0.1:{runner.addresses[0][1]}", tmp_path)
        yield api, KubernetesSecret("team/pull", server, http, lambda: now[0]), now
    await runner.cleanup()


async def test_a_pull_secret_from_the_api(api: tuple[Api, KubernetesSecret, list[float]]) -> None:
    server, secret, now = api
    server.login("one")
    assert await secret.find("reg.example", "a/b") == Credentials("one", "s3cret")
    assert await secret.find("other.example", "a/b") is None
    assert server.asked == ["/api/v1/namespaces/team/secrets/pull Bearer account"]
    server.login("two")
    now[0] = SECRET_S + 1
    assert await secret.find("reg.example", "a/b") == Credentials("two", "s3cret")
    server.login("three")
    secret.refused("reg.example", "a/b", Credentials("two", "s3cret"))
    assert await secret.find("reg.example", "a/b") == Credentials("three", "s3cret")
    server.status = 500  # what it said last counts
    now[0] += SECRET_S + 1
    assert await secret.find("reg.example", "a/b") == Credentials("three", "s3cret")


@pytest.mark.parametrize(
    ("status", "data", "kind", "words"),
    [
        (404, {}, ConfigError, "not found"),
        (403, {}, ConfigError, "RBAC"),
        (500, {}, TemporaryError, "500"),
        (200, {"x": "eA=="}, ConfigError, "dockerconfigjson"),
        (200, {".dockerconfigjson": "s3cret!"}, ConfigError, "team/pull"),
    ],
)
async def test_a_secret_that_is_none(
    api: tuple[Api, KubernetesSecret, list[float]],
    status: int,
    data: dict[str, str],
    kind: type[ImgdistError],
    words: str,
) -> None:
    server, secret, _ = api
    server.status, server.data = status, data
    with pytest.raises(kind, match=words) as caught:
        await secret.find("reg.example", "a/b")
    assert "s3cret" not in str(caught.value)


async def test_a_large_secret_is_read_to_its_end(api: tuple[Api, KubernetesSecret, list[float]]) -> None:
    server, secret, _ = api
    server.login("one")
    server.data["other"] = "x" * 1_500_000
    assert await secret.find("reg.example", "a/b") == Credentials("one", "s3cret")


async def test_those_who_wait_for_a_silent_api_wait_once(api: tuple[Api, KubernetesSecret, list[float]]) -> None:
    server, secret, now = api
    server.status = 500
    found = await asyncio.gather(*(secret.find("reg.example", "a/b") for _ in range(20)), return_exceptions=True)
    assert all(isinstance(error, TemporaryError) for error in found) and len(server.asked) == 1
    server.status = 200
    server.login("one")
    now[0] += REST_S
    assert await secret.find("reg.example", "a/b") == Credentials("one", "s3cret")


def test_outside_a_pod(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pull_secrets"):
        ApiServer.of_this_pod({})


async def test_without_credentials_the_answer_comes_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    began = time.monotonic()
    assert await DockerConfigFile(str(tmp_path / "config.json"), CredentialHelper()).find("h", "r") is None
    assert time.monotonic() - began < 1

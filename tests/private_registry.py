"""A registry for several tenants: short-lived tokens, storage behind addresses that expire, 429 in bursts."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from dataclasses import dataclass, field

from aiohttp import web
from fake_registry import OCI_LAYER, FakeRegistry, not_found

MARK = "token-of-a-tenant-"
CUT_LEAST = 100_000
"""Bytes of what is cut."""


@dataclass
class PrivateRegistry(FakeRegistry):
    """Repositories are read by who has the password of a user that may: `users` is password and repositories by name,
    `public` what everybody reads. Tokens live for `token_s` seconds, addresses of storage for `url_s` (None: blobs come
    from the registry itself). The next `busy` requests are answered 429, the next `expired` addresses come too late,
    the next `cuts` bodies of large blobs break off in the middle, half a second later. With `signs_on` whoever is
    refused is sent to a web page, with `storage_page` storage answers with one."""

    users: dict[str, tuple[str, set[str]]] = field(default_factory=dict)
    public: set[str] = field(default_factory=set)
    token_s: float = 60.0
    url_s: float | None = None
    busy: int = 0
    expired: int = 0
    cuts: int = 0
    scheme: str = "http"
    is_down: bool = False
    signs_on: bool = False
    storage_page: bool = False
    name: str = ""
    tokens: dict[str, tuple[str, str, float]] = field(default_factory=dict)
    urls: dict[str, tuple[str, float]] = field(default_factory=dict)
    places: dict[str, set[str]] = field(default_factory=dict)
    statuses: list[tuple[str, int]] = field(default_factory=list)

    @property
    def secrets(self) -> set[str]:
        """What must not be found anywhere: passwords, also as they are sent, and what each token begins with."""
        passwords = {password for password, _ in self.users.values()}
        sent = {self.basic(user).split()[1] for user in self.users}
        return passwords | sent | {MARK}

    def basic(self, user: str) -> str:
        """The Authorization header of a user."""
        return "Basic " + base64.b64encode(f"{user}:{self.users[user][0]}".encode()).decode()

    def token(self, user: str, repository: str) -> str:
        """A token that its server would give; "" is everybody."""
        token = MARK + secrets.token_urlsafe(24)
        self.tokens[token] = (user, repository, time.monotonic() + self.token_s)
        return token

    def bearer(self, user: str, repository: str) -> str:
        """The Authorization header of somebody who has just got a token."""
        return f"Bearer {self.token(user, repository)}"

    def add_image(
        self,
        layers: list[bytes],
        tag: str | None = None,
        media_type: str = OCI_LAYER,
        diff_ids: list[str] | None = None,
        repository: str = "a/b",
    ) -> str:
        """As FakeRegistry's; what it is made of is in that repository alone."""
        manifest = super().add_image(layers, tag, media_type, diff_ids, repository)
        document = json.loads(self.manifests[manifest][1])
        for digest in (manifest, *(blob["digest"] for blob in (document["config"], *document["layers"]))):
            self.places.setdefault(digest, set()).add(repository)
        return manifest

    async def handle(self, request: web.Request) -> web.StreamResponse:
        response = await self._answer(request)
        self.statuses.append((request.path, response.status))
        return response

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.is_down:
            return web.Response(status=503)
        if self.busy:
            self.busy -= 1
            return web.Response(status=429, headers={"Retry-After": "0"})
        if request.path == "/token":
            return self._token(request)
        if request.path.startswith("/storage/"):
            return await self._stored(request)
        if request.path == "/sign-on":
            return page()
        repository = request.path.removeprefix("/v2/").rsplit("/", 2)[0]
        if request.path != "/v2/" and not self._may_read(request.headers.get("Authorization", ""), repository):
            if self.signs_on:
                return web.Response(status=302, headers={"Location": "/sign-on"})
            realm = f'Bearer realm="{self.scheme}://{self.host}/token",service="s",scope="repository:{repository}:pull"'
            return web.json_response({"errors": []}, status=401, headers={"WWW-Authenticate": realm})
        places = self.places.get(request.path.rpartition("/")[2])
        if places is not None and repository not in places and request.path != "/v2/":
            return not_found()
        if "/blobs/" in request.path and self.url_s is not None:
            return self._elsewhere(request)
        if "/blobs/" in request.path and request.method == "GET":
            raw = self.blobs.get(request.path.rpartition("/")[2])
            return not_found() if raw is None else await self._body(request, raw)
        if request.path.endswith("/tags/list"):
            return web.json_response({"name": repository, "tags": []})
        return await super().handle(request)

    def _may_read(self, shown: str, repository: str) -> bool:
        user, scope, until = self.tokens.get(shown.removeprefix("Bearer "), ("", "", 0.0))
        if scope != repository or time.monotonic() >= until:
            return False
        return repository in self.public or repository in self.users.get(user, ("", set()))[1]

    def _token(self, request: web.Request) -> web.Response:
        if request.method != "GET":  # OAuth2: not spoken here, so that clients ask as before it
            return web.Response(status=405)
        shown = request.headers.get("Authorization", "")
        user = next((user for user in self.users if self.basic(user) == shown), "")
        if shown and not user:
            return web.Response(status=401)
        repository = request.query["scope"].split(":")[1]
        return web.json_response({"token": self.token(user, repository), "expires_in": max(1, int(self.token_s))})

    def _elsewhere(self, request: web.Request) -> web.Response:
        assert self.url_s is not None
        key = secrets.token_urlsafe(12)
        self.expired -= (is_late := self.expired > 0)
        self.urls[key] = (request.path.rpartition("/")[2], 0.0 if is_late else time.monotonic() + self.url_s)
        port = self.host.rpartition(":")[2]
        return web.Response(
            status=307, headers={"Location": f"{self.scheme}://localhost:{port}/storage/x?signature={key}"}
        )

    async def _stored(self, request: web.Request) -> web.StreamResponse:
        digest, until = self.urls.get(request.query.get("signature", ""), ("", 0.0))
        if time.monotonic() >= until or "Authorization" in request.headers or request.method == "HEAD":
            return web.Response(status=403)
        return page() if self.storage_page else await self._body(request, self.blobs[digest])

    async def _body(self, request: web.Request, raw: bytes) -> web.StreamResponse:
        whole = self._blob(request, raw)
        if not self.cuts or not isinstance(whole.body, bytes) or len(whole.body) < CUT_LEAST:
            return whole
        self.cuts -= 1
        half = whole.body[: len(whole.body) // 2]
        headers = {"Content-Length": str(len(whole.body)), "Content-Range": whole.headers.get("Content-Range", "")}
        response = web.StreamResponse(status=whole.status, headers=headers)
        await response.prepare(request)
        await response.write(half)
        await asyncio.sleep(0.5)  # tokens and addresses expire meanwhile
        assert request.transport is not None
        request.transport.close()
        return response


def page() -> web.Response:
    return web.Response(text="<html>Please sign on</html>", content_type="text/html")

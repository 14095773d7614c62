"""The registry client against a registry that misbehaves."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from aiohttp import web
from fake_registry import FakeRegistry, Fault, answer, cut_after, serving
from yarl import URL

from imgdist.errors import CorruptError, DeniedError, NotFoundError, ProtocolError, TemporaryError
from imgdist.oci import transport
from imgdist.oci.client import RegistryClient
from imgdist.oci.credentials import Credentials
from imgdist.oci.manifest import Descriptor, Manifest
from imgdist.oci.reference import parse
from imgdist.oci.requests import DOCUMENT_MAX
from imgdist.oci.settings import RegistrySettings
from imgdist.oci.transport import Retry

FAST = Retry(attempts=4, connect_attempts=2, base_s=0.001, cap_s=0.01, retry_after_max_s=2)
BLOB = os.urandom(3_000_000)


class Counted:
    """A meter that remembers."""

    def __init__(self) -> None:
        self.statuses: list[str] = []
        self.bytes = 0
        self.reasons: list[str] = []

    def request(self, registry: str, status: str) -> None:
        self.statuses.append(status)

    def received(self, registry: str, size_bytes: int) -> None:
        self.bytes += size_bytes

    def retried(self, registry: str, reason: str) -> None:
        self.reasons.append(reason)


class Fixed:
    """The same credentials for everyone."""

    def __init__(self, credentials: Credentials | None) -> None:
        self.credentials = credentials

    async def find(self, host: str, repository: str) -> Credentials | None:
        return self.credentials

    def refused(self, host: str, repository: str, credentials: Credentials) -> None:
        pass


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with serving(FakeRegistry()) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with transport.session() as session:
        yield session


@pytest.fixture
def meter() -> Counted:
    return Counted()


Connect = Callable[..., RegistryClient]


@pytest.fixture
def connect(registry: FakeRegistry, http: aiohttp.ClientSession, meter: Counted) -> Connect:
    def make(credentials: Credentials | None = None, host: str = "") -> RegistryClient:
        host = host or registry.host
        settings = RegistrySettings(plain_http=[host])
        return RegistryClient(host, http, meter, settings=settings, credentials=Fixed(credentials), retry=FAST)

    return make


async def read(client: RegistryClient, digest: str, size: int = len(BLOB)) -> bytes:
    return b"".join([piece async for piece in client.blob("a/b", Descriptor("x/y", digest, size))])


async def test_manifest_and_blob(registry: FakeRegistry, connect: Connect, meter: Counted) -> None:
    digest = registry.add_blob(BLOB)
    manifest_digest = registry.add_image([], "1")
    client = connect()
    seen, media_type, raw = await client.resolve(parse(f"{registry.host}/a/b:1"))
    assert (seen, raw) == (manifest_digest, registry.manifests[manifest_digest][1])
    assert media_type == registry.manifests[manifest_digest][0]
    assert isinstance(await client.manifest("a/b", manifest_digest), Manifest)
    assert await client.digest_of_tag("a/b", "1") == manifest_digest
    assert await read(client, digest) == BLOB
    assert meter.bytes == len(BLOB) + 2 * len(raw)
    assert meter.statuses == ["200"] * 4


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_body_cut_three_times_is_resumed(
    registry: FakeRegistry, connect: Connect, meter: Counted, ranges: bool
) -> None:
    digest = registry.add_blob(BLOB)
    registry.ranges = ranges

    async def cut_again(request: web.Request) -> web.StreamResponse | None:
        if "Range" not in request.headers or not ranges:
            return None
        start = request.http_range.start
        response = web.StreamResponse(
            status=206,
            headers={
                "Content-Range": f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}",
                "Content-Length": str(len(BLOB) - start),
            },
        )
        await response.prepare(request)
        await response.write(BLOB[start : start + 500_000])
        assert request.transport is not None
        request.transport.close()
        return response

    registry.faults = [cut_after(BLOB, 1_000_000), cut_again, cut_again]
    assert await read(connect(), digest) == BLOB
    starts = [asked.headers.get("Range") for asked in registry.log]
    assert starts[0] is None
    assert all(start is not None for start in starts[1:])
    assert meter.reasons.count("cut") == len(starts) - 1
    assert meter.reasons.count("no_range") == (0 if ranges else len(starts) - 1)


async def test_a_registry_that_always_cuts_is_given_up(registry: FakeRegistry, connect: Connect) -> None:
    digest = registry.add_blob(BLOB)
    registry.always = cut_after(BLOB, 0)
    with pytest.raises(TemporaryError, match="broke"):
        await read(connect(), digest)
    assert len(registry.log) == FAST.attempts


@pytest.mark.parametrize(
    ("served", "words"),
    [
        (BLOB[:-1] + b"x", "have the digest"),
        (BLOB + b"x", "registry offers 3000001"),
        (BLOB[:-1], "registry offers 2999999"),
    ],
)
async def test_wrong_bytes_are_corrupt(registry: FakeRegistry, connect: Connect, served: bytes, words: str) -> None:
    digest = registry.add_blob(BLOB)
    registry.blobs[digest] = served
    with pytest.raises(CorruptError, match=words):
        await read(connect(), digest)


@pytest.mark.parametrize(("size", "words"), [(len(BLOB) - 1, "longer than"), (len(BLOB) + 1, "less than")])
async def test_without_a_content_length_the_size_is_checked_all_the_same(
    registry: FakeRegistry, connect: Connect, size: int, words: str
) -> None:
    digest = registry.add_blob(BLOB)

    async def chunked(request: web.Request) -> web.StreamResponse | None:
        if "Range" in request.headers:
            return None
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(BLOB)
        await response.write_eof()
        return response

    registry.always = chunked
    with pytest.raises(CorruptError, match=words):
        await read(connect(), digest, size)


async def test_busy_registry_is_asked_again_after_its_pause(
    registry: FakeRegistry, connect: Connect, meter: Counted
) -> None:
    digest = registry.add_image([], "1")
    registry.faults = [answer(429, Retry_After="1"), answer(503), answer(500)]
    client = connect()
    started = time.monotonic()
    assert await client.digest_of_tag("a/b", "1") == digest
    assert time.monotonic() - started >= 0.99
    assert len(registry.log) == 4
    assert meter.reasons == ["busy", "server", "server"]


async def test_a_pause_that_is_too_long_is_handed_on(registry: FakeRegistry, connect: Connect) -> None:
    registry.always = answer(429, Retry_After="3600")
    with pytest.raises(TemporaryError, match="429") as caught:
        await connect().manifest("a/b", "1")
    assert caught.value.retry_after_s == 3600
    assert len(registry.log) == 1


async def test_nobody_listens(connect: Connect, meter: Counted) -> None:
    client = connect(host="127.0.0.1:9")
    with pytest.raises(TemporaryError, match=r"127\.0\.0\.1:9/.*cannot connect: Connection refused"):
        await client.manifest("a/b", "1")
    with pytest.raises(TemporaryError, match="cannot connect"):
        await read(client, "sha256:" + "0" * 64)
    assert meter.statuses == ["error"] * 2 * FAST.connect_attempts


async def test_not_found_is_told_from_no_registry(registry: FakeRegistry, connect: Connect) -> None:
    with pytest.raises(NotFoundError, match=r"a/b: manifest 1: not found \(status 404: MANIFEST_UNKNOWN"):
        await connect().manifest("a/b", "1")
    registry.always = answer(404, body=b"<html>", Content_Type="text/html")
    with pytest.raises(ProtocolError, match="expected a registry"):
        await connect().manifest("a/b", "1")
    registry.always = answer(200, body=b"<html>welcome", Content_Type="text/html")
    with pytest.raises(ProtocolError, match="web page"):
        await connect().manifest("a/b", "1")


async def test_manifest_bounds_and_digest(registry: FakeRegistry, connect: Connect) -> None:
    digest = registry.add_image([], "1")
    registry.manifests[digest] = (registry.manifests[digest][0], b" " * (DOCUMENT_MAX + 1))
    with pytest.raises(ProtocolError, match="4194304"):
        await connect().manifest("a/b", digest)
    registry.manifests[digest] = (registry.manifests[digest][0], b"{}")
    for name in (digest, "1"):
        with pytest.raises(CorruptError, match=digest):
            await connect().manifest("a/b", name)


async def test_manifest_body_cut_is_read_again(registry: FakeRegistry, connect: Connect) -> None:
    digest = registry.add_image([], "1")
    registry.faults = [cut_after(registry.manifests[digest][1], 10, "/manifests/")]
    assert (await connect().manifest("a/b", "1")).digest == digest


def demand(header: str, challenge: str) -> Fault:
    """401 with `challenge` unless the Authorization header is `header`."""

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if request.path.startswith("/v2/") and request.headers.get("Authorization") != header:
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return None

    return fault


async def test_basic(registry: FakeRegistry, connect: Connect) -> None:
    digest = registry.add_image([], "1")
    registry.always = demand("Basic " + base64.b64encode(b"me:secret").decode(), 'Basic realm="x"')
    assert (await connect(Credentials("me", "secret")).manifest("a/b", "1")).digest == digest
    with pytest.raises(DeniedError, match="credentials are needed"):
        await connect().manifest("a/b", "1")
    with pytest.raises(DeniedError, match="access denied") as caught:
        await connect(Credentials("me", "wrong")).manifest("a/b", "1")
    assert "wrong" not in str(caught.value)


async def test_bearer_token_is_fetched_once_and_kept(registry: FakeRegistry, connect: Connect) -> None:
    digest = registry.add_image([], "1")
    challenge = f'Bearer realm="http://{registry.host}/token",service="s",scope="repository:a/b:pull"'

    async def gate(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            return web.json_response({"token": "t0", "expires_in": 300})
        return await demand("Bearer t0", challenge)(request)

    registry.always = gate
    client = connect(Credentials("me", "secret"))
    for _ in range(3):
        assert await client.digest_of_tag("a/b", "1") == digest
    tokens = [asked for asked in registry.log if asked.path == "/token"]
    assert len(tokens) == 1
    assert tokens[0].query == {"service": "s", "scope": "repository:a/b:pull"}
    assert tokens[0].headers["Authorization"] == Credentials("me", "secret").basic
    assert len(registry.paths("HEAD")) == 4


async def test_expired_token_is_renewed(registry: FakeRegistry, connect: Connect) -> None:
    registry.add_image([], "1")
    issued = iter(range(9))
    valid = ""

    async def gate(request: web.Request) -> web.StreamResponse | None:
        nonlocal valid
        if request.path == "/token":
            valid = f"t{next(issued)}"
            return web.json_response({"access_token": valid})
        return await demand(f"Bearer {valid}", f'Bearer realm="http://{registry.host}/token"')(request)

    registry.always = gate
    client = connect()
    await client.manifest("a/b", "1")
    valid = "revoked"
    await client.manifest("a/b", "1")
    assert valid == "t1"


async def test_token_server_refuses(registry: FakeRegistry, connect: Connect) -> None:
    async def gate(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            return web.Response(status=401)
        return await demand("x", f'Bearer realm="http://{registry.host}/token"')(request)

    registry.always = gate
    with pytest.raises(DeniedError, match="credentials are refused"):
        await connect(Credentials("me", "secret")).manifest("a/b", "1")


async def test_identity_token_is_posted(registry: FakeRegistry, connect: Connect) -> None:
    digest = registry.add_image([], "1")
    forms = []

    async def gate(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            forms.append(dict(await request.post()))
            return web.json_response({"access_token": "t0"})
        return await demand("Bearer t0", f'Bearer realm="http://{registry.host}/token",service="s"')(request)

    registry.always = gate
    assert (await connect(Credentials(identity_token="it")).manifest("a/b", "1")).digest == digest
    assert forms[0]["refresh_token"] == "it"
    assert forms[0]["scope"] == "repository:a/b:pull"


async def test_token_servers_without_end_cost_no_memory(http: aiohttp.ClientSession, meter: Counted) -> None:
    client = transport.Transport("h.example", http, meter, FAST)
    own = client._budget(URL("https://h.example"))
    for number in range(2 * transport.BUDGETS_MAX):
        client._budget(URL(f"https://{number}.example"))
        assert client._budget(URL("https://h.example")) is own
    assert len(client._budgets) == transport.BUDGETS_MAX


async def test_an_identity_token_is_not_sent_on(registry: FakeRegistry, connect: Connect) -> None:
    async with serving(FakeRegistry()) as elsewhere:

        async def gate(request: web.Request) -> web.StreamResponse | None:
            if request.method == "POST":
                return web.Response(status=307, headers={"Location": f"http://{elsewhere.host}/token"})
            challenge = f'Bearer realm="http://{registry.host}/token"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})

        registry.always = gate
        with pytest.raises(ProtocolError, match="another host"):
            await connect(Credentials(identity_token="it")).manifest("a/b", "1")
        assert not elsewhere.log


async def test_redirect_to_another_host_carries_no_authorization(registry: FakeRegistry, connect: Connect) -> None:
    digest = registry.add_blob(BLOB)
    basic = Credentials("me", "secret").basic
    async with serving(FakeRegistry(blobs={digest: BLOB})) as store:

        async def gate(request: web.Request) -> web.StreamResponse | None:
            if refused := await demand(basic, "Basic")(request):
                return refused
            url = f"http://{store.host}/v2/x/blobs/{digest}?X-Signature=a%2Fb"
            return web.Response(status=307, headers={"Location": url})

        registry.always = gate
        store.faults = [answer(403), cut_after(BLOB, 1_500_000)]  # expired, then broken: both start at the registry
        assert await read(connect(Credentials("me", "secret")), digest) == BLOB
        assert [asked.headers.get("Authorization") for asked in store.log] == [None] * 3
        assert [asked.headers.get("Range") for asked in store.log[:2]] == [None, None]
        assert 0 < int(store.log[2].headers["Range"].removeprefix("bytes=").removesuffix("-")) <= 1_500_000
        assert store.log[0].query == {"X-Signature": "a/b"}
        assert len([asked for asked in registry.log if asked.headers.get("Authorization") == basic]) == 3


async def test_redirect_on_the_same_host_keeps_authorization(registry: FakeRegistry, connect: Connect) -> None:
    digest = registry.add_blob(BLOB)
    basic = Credentials("me", "secret").basic
    registry.always = demand(basic, "Basic")
    registry.faults = [answer(307, f"/a/b/blobs/{digest}", Location=f"/v2/c/blobs/{digest}")]
    assert await read(connect(Credentials("me", "secret")), digest) == BLOB


async def test_redirect_loop_ends(registry: FakeRegistry, connect: Connect) -> None:
    registry.always = answer(302, Location="/v2/again")
    with pytest.raises(ProtocolError, match="more than 10 redirects"):
        await connect().manifest("a/b", "1")
    registry.always = answer(302, Location="ftp://x/")
    with pytest.raises(ProtocolError, match="without a usable Location"):
        await connect().manifest("a/b", "1")
    registry.always = answer(302, Location=f"http://{'a' * 70}.example/")  # no name that can be looked up
    with pytest.raises(ProtocolError, match="cannot be asked for"):
        await connect().manifest("a/b", "1")


async def test_plain_http_registry_spoken_to_with_tls(registry: FakeRegistry, http: aiohttp.ClientSession) -> None:
    client = RegistryClient(registry.host, http, Counted(), settings=RegistrySettings(), retry=FAST)
    with pytest.raises(ProtocolError, match=f"--plain-http {registry.host}"):
        await client.manifest("a/b", "1")

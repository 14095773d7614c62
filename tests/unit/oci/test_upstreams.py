"""Registries as they are in companies: mirrors, CAs, client certificates, proxies, IPv6, lists, budgets."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from certificates import Certificates
from fake_registry import FakeRegistry, answer, cut_after, serving
from yarl import URL

from imgdist.config import RegistryConfig, RegistryHost
from imgdist.errors import ConfigError, CorruptError, DeniedError, ProtocolError, TemporaryError
from imgdist.oci import transport
from imgdist.oci.budget import PAUSE_S, SLOWEST_S, Budget
from imgdist.oci.client import RegistryClient
from imgdist.oci.manifest import Descriptor
from imgdist.oci.patterns import Patterns
from imgdist.oci.proxies import proxy_for
from imgdist.oci.settings import RegistrySettings
from imgdist.oci.transport import Retry
from imgdist.oci.upstreams import parse_location

FAST = Retry(attempts=3, connect_attempts=2, base_s=0.001, cap_s=0.01, retry_after_max_s=2)
BLOB = bytes(range(256)) * 2000


class Reasons:
    """A meter that remembers why things were asked again."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def request(self, registry: str, status: str) -> None:
        pass

    def received(self, registry: str, size_bytes: int) -> None:
        pass

    def retried(self, registry: str, reason: str) -> None:
        self.reasons.append(reason)


class Place:
    """Registries, and clients of them with settings."""

    def __init__(self, stack: AsyncExitStack, http: aiohttp.ClientSession) -> None:
        self._stack = stack
        self._http = http
        self.meter = Reasons()

    async def registry(self, address: str = "127.0.0.1", tls: object = None, **options: object) -> FakeRegistry:
        made = FakeRegistry(**options)  # type: ignore[arg-type]
        made.add_blob(BLOB)
        return await self._stack.enter_async_context(serving(made, address, tls))  # type: ignore[arg-type]

    def client(self, host: str, config: RegistryConfig, plain: bool = True) -> RegistryClient:
        settings = RegistrySettings(config, [host] if plain else [], {})
        return RegistryClient(host, self._http, self.meter, settings=settings, retry=FAST)

    async def blob(self, client: RegistryClient, repository: str = "library/x") -> bytes:
        (digest,) = {d for d, raw in self.blobs.items() if raw == BLOB}
        return b"".join([piece async for piece in client.blob(repository, Descriptor("x/y", digest, len(BLOB)))])

    blobs: dict[str, bytes] = FakeRegistry().blobs


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(transport.session())
        made = Place(stack, http)
        registry = FakeRegistry()
        registry.add_blob(BLOB)
        made.blobs = registry.blobs
        yield made


def mirrored(origin: FakeRegistry, *mirrors: str, rewrite: dict[str, str] | None = None) -> RegistryConfig:
    return RegistryConfig(hosts={origin.host: RegistryHost(mirrors=mirrors, rewrite=rewrite or {})})


async def test_mirrors_are_asked_first_by_their_own_names(place: Place) -> None:
    origin, mirror = await place.registry(), await place.registry()
    config = mirrored(origin, f"http://{mirror.host}/hub", rewrite={"library/": "base/", "lib": "no/"})
    assert await place.blob(place.client(origin.host, config)) == BLOB
    assert not origin.log and mirror.paths(part="/blobs/")[0].startswith("/v2/hub/base/x/blobs/")


async def test_what_a_mirror_does_not_give_comes_from_the_next_and_the_registry(place: Place) -> None:
    origin, missing, broken = await place.registry(), await place.registry(), await place.registry()
    missing.blobs.clear()
    broken.always = answer(500)
    config = mirrored(origin, "http://127.0.0.1:9", f"http://{missing.host}", f"http://{broken.host}")
    client = place.client(origin.host, config)
    assert await place.blob(client) == BLOB and await place.blob(client) == BLOB
    assert place.meter.reasons.count("mirror") == 4  # the second time the two that failed are left out
    assert len(missing.log) == 2 and len(broken.log) == 1


async def test_a_body_that_breaks_off_at_a_mirror_goes_on_elsewhere(place: Place) -> None:
    origin, mirror = await place.registry(), await place.registry()
    mirror.faults.append(cut_after(BLOB, 100_000))
    assert await place.blob(place.client(origin.host, mirrored(origin, f"http://{mirror.host}"))) == BLOB
    assert len(origin.paths(part="/blobs/")) == 1 and "cut" in place.meter.reasons


async def test_a_mirror_that_sends_wrong_bytes_is_left_out(place: Place) -> None:
    origin, mirror = await place.registry(), await place.registry()
    (digest,) = mirror.blobs
    mirror.blobs[digest] = b"x" * len(BLOB)
    client = place.client(origin.host, mirrored(origin, f"http://{mirror.host}"))
    with pytest.raises(CorruptError):
        await place.blob(client)
    assert await place.blob(client) == BLOB
    mirror.blobs[digest] = b"short"
    other = place.client(origin.host, mirrored(origin, f"http://{mirror.host}"))
    assert await place.blob(other) == BLOB


async def test_who_may_read_is_asked_without_our_certificate(place: Place, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    context = certificates.server(asks=True)
    context.verify_mode = ssl.CERT_OPTIONAL
    registry = await place.registry(tls=context)

    async def with_certificate(request: web.Request) -> web.StreamResponse | None:
        assert request.transport is not None
        return None if request.transport.get_extra_info("peercert") else web.Response(status=403)

    registry.always = with_certificate
    shown, key = map(str, certificates.issue("client"))
    hosts = {registry.host: RegistryHost(client_certificate=shown, client_key=key)}
    client = place.client(registry.host, RegistryConfig(ca=str(certificates.ca), hosts=hosts), plain=False)
    (digest,) = registry.blobs
    assert await place.blob(client) == BLOB and await client.has("library/x", f"blobs/{digest}")
    assert (await client.shown("library/x", f"blobs/{digest}", None)).status == 403
    assert (await client.shown("library/x", f"blobs/{digest}", "Basic eDp5")).status == 403


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_own_ca_and_client_certificate(place: Place, tmp_path: Path, address: str) -> None:
    certificates = Certificates(tmp_path)
    registry = await place.registry(address, certificates.server(asks=True))
    shown, key = map(str, certificates.issue("client"))
    hosts = {registry.host: RegistryHost(client_certificate=shown, client_key=key)}
    with_both = RegistryConfig(ca=str(certificates.ca), hosts=hosts)
    assert await place.blob(place.client(registry.host, with_both, plain=False)) == BLOB
    with pytest.raises(ProtocolError, match="TLS"):
        await place.blob(place.client(registry.host, RegistryConfig(hosts=hosts), plain=False))
    with pytest.raises((ProtocolError, TemporaryError)):  # TLS 1.3: the server may just hang up
        await place.blob(place.client(registry.host, RegistryConfig(ca=str(certificates.ca)), plain=False))
    wrong = RegistryConfig(ca=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="none"):
        await place.blob(place.client(registry.host, wrong, plain=False))


async def test_lists_of_images(place: Place) -> None:
    registry = await place.registry()
    config = RegistryConfig(allow=(f"{registry.host}/library/*",), deny=("*/library/bad*",))
    client = place.client(registry.host, config)
    assert await place.blob(client) == BLOB
    for repository in ("other/x", "library/bad/x"):
        with pytest.raises(DeniedError, match=r"registry\.(allow|deny)"):
            await place.blob(client, repository)
    assert all("/library/x/" in asked.path for asked in registry.log)


def test_patterns() -> None:
    listed = Patterns(["docker.io/library/*", "*.corp", "[::1]:5000/a"], "x")
    assert [
        listed.match(name)
        for name in (
            "docker.io/library/x",
            "docker.io/other/x",
            "a.corp/x/y",
            "corp/x",
            "[::1]:5000/a",
            "[::1]:5000/ab",
        )
    ] == [True, False, True, False, True, False]
    assert not Patterns([], "x") and not Patterns([], "x").match("a/b")
    with pytest.raises(ConfigError, match="here"):
        Patterns(["a b"], "here")


ENVIRONMENT = {
    "HTTPS_PROXY": "http://p:1",
    "http_proxy": "q:2",
    "NO_PROXY": "10.0.0.0/8, .corp,exact.org:5000,[fd00::1]",
}


@pytest.mark.parametrize(
    ("url", "setting", "proxy"),
    [
        ("https://reg.example/v2/", "", "http://p:1"),
        ("http://reg.example/v2/", "", "http://q:2"),
        ("https://10.1.2.3/v2/", "", None),
        ("https://a.corp/", "", None),
        ("https://corp/", "", None),
        ("https://notcorp/", "", "http://p:1"),
        ("https://exact.org:5000/", "", None),
        ("https://exact.org/", "", "http://p:1"),
        ("https://[fd00::1]/", "", None),
        ("https://localhost:5000/", "", None),
        ("http://127.0.0.1:5000/", "http://r:3", None),
        ("https://10.1.2.3/", "http://r:3", "http://r:3"),
        ("https://reg.example/", "direct", None),
    ],
)
def test_proxies(url: str, setting: str, proxy: str | None) -> None:
    found = proxy_for(URL(url), setting, ENVIRONMENT)
    assert found == (URL(proxy) if proxy else None)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (RegistryConfig(proxy="ftp://x"), "registry.proxy"),
        (RegistryConfig(proxy="http://u:s3cret@x:1"), "HTTPS_PROXY"),
        (RegistryConfig(deny=("a b",)), "registry.deny"),
        (RegistryConfig(kubernetes_secrets=("x",)), "namespace/name"),
        (RegistryConfig(hosts={"h": RegistryHost(mirrors=("ftp://x",))}), r'hosts\."h"'),
        (RegistryConfig(hosts={"h": RegistryHost(client_key="x")}), "client_certificate"),
    ],
)
def test_settings_that_cannot_be_right(config: RegistryConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        RegistrySettings(config)
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)


def test_locations() -> None:
    made: Callable[[str], str] = lambda text: str(parse_location(text, "x").url("a/b", "manifests/1"))  # noqa: E731
    assert made("m.corp") == "https://m.corp/v2/a/b/manifests/1"
    assert made("http://[::1]:5000/p/q/") == "http://[::1]:5000/v2/p/q/a/b/manifests/1"


def test_a_budget_keeps_the_rate_and_learns_from_429() -> None:
    budget = Budget(10)
    assert [round(budget.take(0.0), 3) for _ in range(3)] == [0.0, 0.1, 0.2]
    assert budget.take(100.0) == 0
    free = Budget()
    assert [free.take(0.0) for _ in range(5)] == [0.0] * 5
    for _ in range(20):  # refused together: one lesson
        free.refused(0.0, 3.0)
    assert [round(free.take(1.0), 3) for _ in range(3)] == [2.0, 2.1, 2.2]
    for number in range(10):
        free.refused(1000.0 + 10 * number, None)
    assert free.take(1090.0) == PAUSE_S and free.take(1090.0) == PAUSE_S + SLOWEST_S
    for _ in range(10):
        free.answered()
    assert [free.take(5000.0) for _ in range(5)] == [0.0] * 5

"""Images of tenants on a real cluster: registries that make it hard, and nobody who gets what is another's."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from certificates import Certificates
from fake_registry import digest_of, serving, tar_gz
from parts import require
from private_registry import PrivateRegistry

from imgdist.config import AgentConfig
from imgdist.demo import leftovers
from imgdist.demo.agent import Agent, Supernode
from imgdist.demo.containerd import Containerd, installs
from imgdist.demo.ports import free_port
from imgdist.errors import ImgdistError
from imgdist.installation import clients
from imgdist.installation.layout import Layout
from imgdist.wire.address import Address
from imgdist.wire.client import ChunkClient
from imgdist.wire.clusterkey import FIELD, ClusterKey, control
from imgdist.wire.mesh import upgrade_request
from imgdist.wire.messages import Priority
from imgdist.wire.requests import ChunkRequest

T = TypeVar("T")
CONTENT = random.Random(7).randbytes(6_000_000)
A, B = "a/private", "b/own"
LAZY = ("fill.mode=none", "trace.enabled=false")


class Background:
    """An event loop in a thread, for registries that real processes talk to."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._stack = AsyncExitStack()
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def serve(self, registry: PrivateRegistry, address: str = "127.0.0.1", tls: Any = None) -> PrivateRegistry:
        return self.run(self._stack.enter_async_context(serving(registry, address, tls)))

    def proxy(self, target: str) -> str:
        """A forward proxy that takes every host for `target`; "host:port"."""
        return self.run(self._proxy(target))

    async def _proxy(self, target: str) -> str:
        session = await self._stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))

        async def forward(request: web.Request) -> web.StreamResponse:
            headers = {k: v for k, v in request.headers.items() if k in ("Authorization", "Range", "Accept")}
            url = f"http://{target}{request.rel_url.raw_path_qs}"
            async with session.request(request.method, url, headers=headers, allow_redirects=False) as answer:
                kept = ("Location", "WWW-Authenticate", "Content-Range", "Docker-Content-Digest", "Content-Type")
                told = {k: v for k, v in answer.headers.items() if k in kept}
                response = web.StreamResponse(status=answer.status, headers=told)
                response.content_length = answer.content_length
                await response.prepare(request)
                try:
                    async for piece in answer.content.iter_any():
                        await response.write(piece)
                except aiohttp.ClientPayloadError:
                    assert request.transport is not None
                    request.transport.close()
                return response

        runner = web.AppRunner(_absolute(forward))
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"127.0.0.1:{runner.addresses[0][1]}"

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _absolute(handler: Any) -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    return app


class Cluster:
    """Three registries, a supernode and two nodes that share a key, and what a tenant finds out there."""

    def __init__(self, directory: Path, parts: ExitStack) -> None:
        self.directory = directory
        background = Background()
        parts.callback(background.close)
        certificates = Certificates(directory)
        users = {"a": ("password-of-a-7Qx", {A}), "b": ("password-of-b-9Zk", {B})}
        self.hard = PrivateRegistry(users=users, token_s=1.0, url_s=0.4, expired=2, cuts=4, busy=4, scheme="https")
        background.serve(self.hard, "::1", certificates.server())
        self.poor = background.serve(PrivateRegistry(users=users, cuts=2, ranges=False))
        self.poor.name = f"registry.invalid:{self.poor.host.rpartition(':')[2]}"
        self.plain = background.serve(PrivateRegistry(users=users, token_s=30.0))
        self.lying = background.serve(PrivateRegistry(public={"evil/x"}))
        self.key = directory / "key"
        self.key.write_text(os.urandom(32).hex())
        self.key.chmod(0o600)
        self.config = directory / "supernode.toml"
        self.config.write_text(self._toml(certificates, background.proxy(self.poor.host)))
        self.supernode = parts.enter_context(
            Supernode(directory / "s", f"127.0.0.1:{free_port()}", flags=["--config", str(self.config)])
        )
        self.mirrors = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        self.nodes = [parts.enter_context(self._node(number)) for number in range(2)]

    def _node(self, number: int) -> Agent:
        return Agent(
            self.directory / f"n{number}",
            [self.supernode.url],
            mirror_listen=self.mirrors[number],
            settings=(*LAZY, f"access.key_file={self.key}"),
        )

    def _toml(self, certificates: Certificates, proxy: str) -> str:
        login = self.directory / "secret" / "config.json"
        login.parent.mkdir()
        a = {"auth": self.hard.basic("a").split()[1]}
        login.write_text(json.dumps({"auths": {self.hard.host: a, self.poor.name: a}}))
        return "\n".join(
            [
                "[registry]",
                f'docker_config = "{login}"',
                f'ca = "{certificates.ca}"',
                f'[registry.hosts."{self.poor.name}"]',
                "plain_http = true",
                f'proxy = "http://{proxy}"',
                f'[registry.hosts."{self.lying.host}"]',
                "plain_http = true",
                f'[registry.hosts."{self.plain.host}"]',
                "plain_http = true",
                "[access]",
                f'key_file = "{self.key}"',
            ]
        )

    def images(self) -> dict[str, PrivateRegistry]:
        layer = tar_gz({"big": CONTENT})
        found = {}
        for registry, name in ((self.hard, self.hard.host), (self.poor, self.poor.name)):
            registry.add_image([layer], "1", repository=A)
            found[f"{name}/{A}:1"] = registry
            layer = tar_gz({"big": CONTENT, "other": b"x"})
        return found

    def reasons(self) -> set[str]:
        """Why something was asked of a registry again, by the supernode's figures."""
        lines = self._get("/metrics")[1].decode().splitlines()
        return {line.split('reason="')[1].split('"')[0] for line in lines if "registry_retries_total{" in line}

    def _get(self, path: str, token: str = "") -> tuple[int, bytes]:
        host, port = self.supernode.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        try:
            connection.request("GET", path, headers={FIELD: token} if token else {})
            answer = connection.getresponse()
            return answer.status, answer.read(10_000_000)
        finally:
            connection.close()

    def as_node(self, path: str) -> Any:
        status, raw = self._get(path, ClusterKey(str(self.key)).token(control("GET", path)))
        assert status == 200, raw
        return json.loads(raw)

    def as_tenant(self, path: str) -> int:
        return self._get(path)[0]

    def found(self, words: set[str]) -> list[str]:
        """Where any of these stands: on disk below the cluster's directories, logs, arguments and environments."""
        wanted = [word.encode() for word in words]
        files = [path for path in self.directory.rglob("*") if path.is_file() and "secret" not in path.parts]
        pids = [pid for place in ("s", "n0", "n1") for pid in leftovers.processes_with(str(self.directory / place))]
        assert pids
        files += [Path(f"/proc/{pid}/{what}") for pid in pids for what in ("cmdline", "environ")]
        return [str(path) for path in files if any(word in path.read_bytes() for word in wanted)]


def ask(front: str, method: str, path: str, shown: str = "") -> tuple[int, dict[str, str], bytes]:
    """What a client of a mirror gets."""
    connection = http.client.HTTPConnection(front, timeout=20)
    try:
        connection.request(method, path, headers={"Authorization": shown} if shown else {})
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require(os.geteuid() == 0 and Path("/dev/fuse").exists(), "root and FUSE")
    with ExitStack() as parts:
        yield Cluster(tmp_path_factory.mktemp("c"), parts)


def test_private_images_start_lazily_whatever_their_registries_do(cluster: Cluster) -> None:
    for number, reference in enumerate(cluster.images()):
        for node in cluster.nodes:
            place = node.directory / f"m{number}"
            node.mount(reference, place)
            try:
                assert (place / "big").read_bytes() == CONTENT
            finally:
                node.umount(place)
    assert cluster.reasons() >= {"busy", "cut", "expired_url", "unauthorized", "no_range"}
    assert not cluster.hard.busy and not cluster.hard.cuts and not cluster.hard.expired
    states = {layer["state"] for node in cluster.nodes for layer in node.layers()}
    assert "plain" not in states and "failed" not in states, states


def test_a_tenant_on_the_network_gets_nothing(cluster: Cluster) -> None:
    """After what the test before has brought here."""
    layer = cluster.nodes[0].layers()[0]
    digest, pack = layer["digest"], layer["pack_id"]
    assert [node.get("/v1/status")["swarm"]["neighbours"] for node in cluster.nodes] == [1, 1]
    name = f"sha256-{digest.removeprefix('sha256:')}-v0"
    chain = f"/v1/chains/{layer['diff_id']}"
    for path in (f"/v1/layers/{digest}", f"/v1/layers/{digest}/index", chain, "/v1/status", "/v1/chunks"):
        assert cluster.as_tenant(path) == 403, path
    assert cluster.as_tenant("/v1/tracker") == 403
    assert cluster.as_tenant("/healthz") == 200
    where = [cluster.as_node("/v1/chunks")["chunks"]]
    where += [f"http://{node.get('/v1/status')['swarm']['address']}" for node in cluster.nodes]
    other = cluster.directory / "other-key"
    other.write_text("z" * 64)
    other.chmod(0o600)
    for address in map(Address.parse, where):
        for key in (None, ClusterKey(str(other))):
            client = ChunkClient(address, key=key)
            try:
                for what in (pack, name):
                    with pytest.raises(ImgdistError, match="refuses this node"):
                        client.fetch(ChunkRequest(what, (0,), Priority.DEMAND), lambda *_: pytest.fail("a chunk came"))
            finally:
                client.close()
    peer = Address.parse(where[1])
    connection = http.client.HTTPConnection(peer.host, peer.port, timeout=5)
    connection.connect()
    assert connection.sock is not None
    connection.sock.sendall(upgrade_request("x:1"))
    assert connection.sock.recv(100).startswith(b"HTTP/1.1 403")
    connection.close()
    received: list[int] = []
    client = ChunkClient(peer, key=ClusterKey(str(cluster.key)))
    client.fetch(ChunkRequest(pack, (0,), Priority.DEMAND), lambda number, *_: received.append(number))
    client.close()
    assert received == [0]


def test_a_mirror_gives_each_client_what_its_registry_would(cluster: Cluster) -> None:
    """Of an image that nobody has pulled, and of one whose layers are here; by the supernode and by each node."""
    hard, ns = cluster.hard, f"?ns={quote(cluster.hard.host)}"
    pulled = {layer["digest"] for layer in cluster.nodes[0].layers()}
    warm, warm_layer = hard.tags[f"{A}:1"], next(iter(pulled & set(hard.blobs)))
    cold_blob = tar_gz({"cold": CONTENT[:50_000]})
    cold, cold_layer = hard.add_image([cold_blob], "2", repository=A), digest_of(cold_blob)
    fronts = [cluster.supernode.url.removeprefix("http://"), *cluster.mirrors]
    for front in fronts:
        for tag, manifest, layer in (("2", cold, cold_layer), ("1", warm, warm_layer)):
            for path in (f"manifests/{tag}", f"manifests/{manifest}", f"blobs/{layer}"):
                for method in ("GET", "HEAD"):
                    url = f"/v2/{A}/{path}{ns}"
                    status, headers, _ = ask(front, method, url)
                    assert status == 401 and f"repository:{A}:pull" in headers["WWW-Authenticate"], (front, url)
                    assert ask(front, method, url, hard.bearer("b", A))[0] in (401, 403, 404), (front, url)
                    assert ask(front, method, f"/v2/{B}/{path}{ns}", hard.bearer("b", B))[0] in (401, 403, 404)
            status, _, raw = ask(front, "GET", f"/v2/{A}/manifests/{tag}{ns}", hard.bearer("a", A))
            assert status == 200 and raw == hard.manifests[manifest][1]
            status, _, raw = ask(front, "GET", f"/v2/{A}/blobs/{layer}{ns}", hard.bearer("a", A))
            assert status == 200 and raw == hard.blobs[layer]
    served = [path for path, status in hard.statuses if "/storage/" in path and status in (200, 206)]
    assert served, "what the mirror gave came from the registry"


def test_what_a_client_showed_starts_its_image_lazily(cluster: Cluster) -> None:
    """Without any credentials of the cluster's own; before the client came, the image is declined at once."""
    hard, reference = cluster.hard, f"{cluster.hard.host}/{B}:1"
    hard.add_image([tar_gz({"of b": CONTENT[:70_000]})], "1", repository=B)
    began = time.monotonic()
    with pytest.raises(ImgdistError, match="denied"):
        cluster.nodes[0].mount(reference, cluster.directory / "early")
    assert time.monotonic() - began < 3, "declined slowly"
    hard.token_s = 20.0
    url = f"/v2/{B}/manifests/1?ns={quote(hard.host)}"
    assert ask(cluster.mirrors[0], "GET", url, hard.bearer("b", B))[0] == 200
    place = cluster.nodes[1].directory / "of-b"
    cluster.nodes[1].mount(reference, place)
    try:
        assert (place / "of b").read_bytes() == CONTENT[:70_000]
    finally:
        cluster.nodes[1].umount(place)


def test_containerd_pulls_with_its_users_credentials_through_the_mirror(cluster: Cluster, tmp_path: Path) -> None:
    install = next((install for install in installs() if install.major == 2), None)
    require(install, "containerd 2.x")
    assert install is not None
    layer = tar_gz({"of a": CONTENT[:80_000]})
    cluster.plain.add_image([layer], "1", repository=A)
    reference = f"{cluster.plain.host}/{A}:1"
    node = cluster.nodes[0]
    with Containerd(install, tmp_path / "c", snapshotter=node.snapshotter) as containerd:
        place = Layout(containerd.directory, containerd.directory / "config.toml")
        told = clients.wanted(place, AgentConfig(mirror_listen=cluster.mirrors[0]), with_containerd=True)
        ((path, text),) = told
        path.parent.mkdir(parents=True)
        path.write_text(text)

        def pull(user: str) -> str:
            login = f"{user}:{cluster.plain.users[user][0]}"
            lazily = ("--snapshotter", containerd.snapshotter, "--hosts-dir", str(path.parent.parent))
            return containerd.ctr("images", "pull", *lazily, "--user", login, reference)

        with pytest.raises(ImgdistError):
            pull("b")
        pull("a")
        states = {layer["digest"]: layer["state"] for layer in node.layers()}
        assert states[digest_of(layer)] != "plain", "named by its chain ID alone"
        containerd.ctr("images", "rm", "--sync", reference)
    blobs = [asked for asked in cluster.plain.log if "/blobs/" in asked.path or "/storage/" in asked.path]
    assert all(asked.headers["User-Agent"].startswith("imgdist/") for asked in blobs), "read past the mirror"


def test_an_image_that_names_anothers_layer_is_left_to_containerd(cluster: Cluster) -> None:
    """A registry of a tenant's own, which says that it has the layer and does not."""
    layer = cluster.nodes[0].layers()[0]
    stolen = cluster.hard.blobs[layer["digest"]]
    cluster.lying.add_image([stolen], "1", repository="evil/x", diff_ids=[layer["diff_id"]])
    cluster.lying.blobs[layer["digest"]] = b"\0" * len(stolen)
    for node in cluster.nodes:
        with pytest.raises(ImgdistError, match="is still to show that it has the layer"):
            node.mount(f"{cluster.lying.host}/evil/x:1", node.directory / "stolen")


def test_no_secret_is_left_anywhere(cluster: Cluster) -> None:
    """The last one: of everything that the others did."""
    secrets = cluster.hard.secrets | cluster.poor.secrets | cluster.plain.secrets | {cluster.key.read_text()}
    assert cluster.found({str(cluster.directory / "s")}), "the look finds what is there"
    assert [place for place in cluster.found(secrets) if place != str(cluster.key)] == []

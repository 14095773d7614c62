"""The distribution specification's pull and content-discovery parts, endpoint by endpoint, at the supernode's registry
and at the agent's mirror, cold and warm: what a client gets is what the registry has, byte for byte."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from fake_registry import OCI_INDEX, OCI_LAYER, OCI_MANIFEST, answer, cut_after, digest_of, tar_gz
from registry_fronts import Fronts, down, fronts

from imgdist.distribution.accept import EVERYTHING
from imgdist.oci.access import Verdict
from supernode import tags
from supernode.freshness import Freshness
from supernode.registry import reachable
from supernode.tracker.members import Census

LAYERS = [tar_gz({"a": random.Random(1).randbytes(700_000)}), tar_gz({"b": b"2"})]
ABSENT = "sha256:" + "f" * 64
FRONTS = pytest.mark.parametrize("front", ["supernode", "mirror"])


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that fails is given up at once."""
    monkeypatch.setattr(tags, "PATIENCE_S", 0.3)
    monkeypatch.setattr(reachable, "PATIENCE_S", 0.3)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Fronts]:
    rules = Freshness(60, 3600, (("*:quick", 5.0),))
    async with fronts(tmp_path, rules) as made:
        yield made


class Client:
    """Asks one front about repositories of the registry, as containerd does (`ns`)."""

    def __init__(self, http: aiohttp.ClientSession, base: str, namespace: str) -> None:
        self.http, self.base, self.namespace = http, base, namespace

    async def ask(self, method: str, path: str, **options: object) -> tuple[aiohttp.ClientResponse, bytes]:
        query = {"ns": self.namespace, **options.pop("query", {})}  # type: ignore[dict-item]
        async with self.http.request(method, f"{self.base}/v2/{path}", params=query, **options) as response:  # type: ignore[arg-type]
            return response, await response.read()

    async def get(self, path: str, **headers: str) -> tuple[aiohttp.ClientResponse, bytes]:
        return await self.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})


@asynccontextmanager
async def client(site: Fronts, front: str) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(auto_decompress=False) as http:
        yield Client(http, site.url(front), site.registry.host)


async def pull(ask: Client, site: Fronts, name: str) -> None:
    """A manifest and all of its blobs."""
    response, raw = await ask.get(f"a/b/manifests/{name}")
    assert response.status == 200
    manifest = json.loads(raw)
    for blob in (manifest["config"], *manifest["layers"]):
        response, raw = await ask.get(f"a/b/blobs/{blob['digest']}")
        assert digest_of(raw) == blob["digest"]


def code(body: bytes) -> str:
    (told,) = json.loads(body)["errors"]
    assert told["message"]
    return str(told["code"])


@FRONTS
async def test_the_api_is_there_and_only_for_reading(site: Fronts, front: str) -> None:
    async with client(site, front) as ask:
        for path in ("", "/"):
            async with ask.http.get(f"{ask.base}/v2{path}") as response:
                assert response.status == 200
                assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0"
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            response, body = await ask.ask(method, "a/b/blobs/uploads/")
            assert (response.status, code(body)) == (405, "UNSUPPORTED")
            assert response.headers["Allow"] == "GET, HEAD"


@FRONTS
async def test_manifests_by_tag_and_digest(site: Fronts, front: str) -> None:
    digest = site.registry.add_image(LAYERS, "1")
    raw = site.registry.manifests[digest][1]
    async with client(site, front) as ask:
        for _ in ("cold", "warm"):
            for name in ("1", digest):
                head, nothing = await ask.ask("HEAD", f"a/b/manifests/{name}", headers={"Accept": OCI_MANIFEST})
                got, body = await ask.get(f"a/b/manifests/{name}", Accept=f"{OCI_MANIFEST}, */*")
                for response in (head, got):
                    assert response.status == 200
                    assert response.headers["Docker-Content-Digest"] == digest
                    assert response.headers["Content-Type"] == OCI_MANIFEST
                    assert response.headers["Content-Length"] == str(len(raw))
                assert (nothing, body) == (b"", raw)
    assert len([path for path in site.registry.paths() if "/manifests/" in path]) == 1


@FRONTS
async def test_what_is_no_image_passes_unchanged(site: Fronts, front: str) -> None:
    odd = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.example.thing+json", "x": 1}, indent=3).encode()
    digest = site.registry.add_manifest(odd, "application/vnd.example.thing+json", "odd")
    index = json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{"mediaType": "m", "digest": digest, "size": 1}]}
    ).encode()
    by_index = site.registry.add_manifest(index, OCI_INDEX, "index")
    async with client(site, front) as ask:
        for name, raw, kind in (("odd", odd, "application/vnd.example.thing+json"), (by_index, index, OCI_INDEX)):
            response, body = await ask.get(f"a/b/manifests/{name}", Accept="*/*")
            assert (response.status, body, response.headers["Content-Type"]) == (200, raw, kind)


@FRONTS
async def test_a_client_that_takes_less_gets_what_the_registry_has_for_it(site: Fronts, front: str) -> None:
    """Registries answer an old client's tag by one image of the index, or not at all: theirs to decide."""
    site.registry.add_manifest(b'{"schemaVersion": 2, "manifests": []}', OCI_INDEX, "1")

    async def by_accept(request: web.Request) -> web.StreamResponse | None:
        if request.headers["Accept"] == OCI_MANIFEST:
            return web.Response(body=b"{}", content_type=OCI_MANIFEST)
        return None

    site.registry.always = by_accept
    async with client(site, front) as ask:
        assert (await ask.get("a/b/manifests/1", Accept=EVERYTHING))[1] == b'{"schemaVersion": 2, "manifests": []}'
        response, body = await ask.get("a/b/manifests/1", Accept=OCI_MANIFEST)
        assert (response.status, response.headers["Content-Type"], body) == (200, OCI_MANIFEST, b"{}")


@FRONTS
async def test_blobs_whole_and_in_parts(site: Fronts, front: str) -> None:
    digest = site.registry.add_image(LAYERS, "1")
    layer = LAYERS[0]
    name, size = digest_of(layer), len(layer)
    async with client(site, front) as ask:
        await ask.get(f"a/b/manifests/{digest}")
        head, nothing = await ask.ask("HEAD", f"a/b/blobs/{name}")
        assert (head.status, head.headers["Content-Length"], nothing) == (200, str(size), b"")
        for _ in ("cold", "warm"):
            whole, body = await ask.get(f"a/b/blobs/{name}")
            assert (whole.status, body) == (200, layer)
            assert whole.headers["Accept-Ranges"] == "bytes"
            assert whole.headers["Docker-Content-Digest"] == name
            for span, start, end in (
                ("bytes=0-0", 0, 1),
                ("bytes=300000-", 300_000, size),
                (f"bytes=5-{size + 9}", 5, size),
                ("bytes=-7", size - 7, size),
            ):
                part, body = await ask.get(f"a/b/blobs/{name}", Range=span)
                assert (part.status, body) == (206, layer[start:end])
                assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
            beyond, body = await ask.get(f"a/b/blobs/{name}", Range=f"bytes={size}-")
            assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
            odd, body = await ask.get(f"a/b/blobs/{name}", Range="bytes=9-3")
            assert (odd.status, body) == (200, layer)


@FRONTS
async def test_a_blob_without_a_manifest_and_of_another_kind_of_digest(site: Fronts, front: str) -> None:
    raw = b"not a layer" * 1000
    plain, long = site.registry.add_blob(raw), "sha512:" + hashlib.sha512(raw).hexdigest()
    site.registry.blobs[long] = raw
    async with client(site, front) as ask:
        assert (await ask.get(f"a/b/blobs/{plain}"))[1] == raw
        assert (await ask.get(f"a/b/blobs/{long}"))[1] == raw


@FRONTS
async def test_what_is_absent_or_malformed(site: Fronts, front: str) -> None:
    async with client(site, front) as ask:
        for path, status, words in (
            ("a/b/manifests/none", 404, "MANIFEST_UNKNOWN"),
            ("a/b/manifests/.INVALID_MANIFEST_NAME", 404, "MANIFEST_UNKNOWN"),
            (f"a/b/manifests/{ABSENT}", 404, "MANIFEST_UNKNOWN"),
            (f"a/b/blobs/{ABSENT}", 404, "BLOB_UNKNOWN"),
            ("a/b/manifests/sha256:totallywrong", 400, "DIGEST_INVALID"),
            ("a/b/blobs/sha256:totallywrong", 400, "DIGEST_INVALID"),
        ):
            head, nothing = await ask.ask("HEAD", path)
            got, body = await ask.get(path)
            assert (head.status, nothing, got.status, code(body)) == (status, b"", status, words)
            assert got.headers["Content-Type"].startswith("application/json")


@FRONTS
async def test_tags_page_by_page(site: Fronts, front: str) -> None:
    async def tags(request: web.Request) -> web.StreamResponse | None:
        if not request.path.endswith("/tags/list"):
            return None
        headers = {"Link": '</v2/a/b/tags/list?last=2&n=2>; rel="next"'} if "last" not in request.query else {}
        return web.json_response({"name": "a/b", "tags": ["1", "2"], "asked": dict(request.query)}, headers=headers)

    site.registry.always = tags
    async with client(site, front) as ask:
        response, body = await ask.ask("GET", "a/b/tags/list", query={"n": "2"})
        assert json.loads(body) == {"name": "a/b", "tags": ["1", "2"], "asked": {"n": "2"}}
        onward = response.links["next"]["url"]
        async with ask.http.get(onward) as second:
            assert json.loads(await second.read())["asked"] == {"last": "2", "n": "2"}
            assert "Link" not in second.headers


@FRONTS
async def test_referrers_by_the_api_and_by_the_tag_schema(site: Fronts, front: str) -> None:
    digest = site.registry.add_image(LAYERS, "1")
    found = [{"mediaType": OCI_MANIFEST, "digest": ABSENT, "size": 1, "artifactType": kind} for kind in ("x/a", "x/b")]
    async with client(site, front) as ask:
        response, body = await ask.get(f"a/b/referrers/{digest}")
        assert (response.status, response.headers["Content-Type"]) == (200, OCI_INDEX)
        assert json.loads(body) == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}).encode()
        site.registry.add_manifest(raw, OCI_INDEX, digest.replace(":", "-"))
        assert (await ask.get(f"a/b/referrers/{digest}"))[1] == raw
        response, body = await ask.ask("GET", f"a/b/referrers/{digest}", query={"artifactType": "x/b"})
        assert response.headers["OCI-Filters-Applied"] == "artifactType"
        assert json.loads(body)["manifests"] == found[1:]
        applied = {"Content_Type": OCI_INDEX, "OCI_Filters_Applied": "artifactType"}
        site.registry.always = answer(200, "/referrers/", raw, **applied)
        response, body = await ask.ask("GET", f"a/b/referrers/{digest}", query={"artifactType": "x/b"})
        assert (body, response.headers["OCI-Filters-Applied"]) == (raw, "artifactType")


@FRONTS
async def test_a_registry_named_in_the_path(site: Fronts, front: str) -> None:
    """Podman's way, and that of clients that know one registry only."""
    digest = site.registry.add_image(LAYERS, "1")
    name = site.registry.host.replace(":", "_")
    async with client(site, front) as ask, ask.http.get(f"{ask.base}/v2/{name}/a/b/manifests/1") as response:
        assert response.headers["Docker-Content-Digest"] == digest


@FRONTS
async def test_a_moved_tag_is_seen_within_its_time(site: Fronts, front: str) -> None:
    first = site.registry.add_image(LAYERS, "1")
    site.registry.add_image(LAYERS, "quick")
    second = site.registry.add_image(LAYERS[:1])
    async with client(site, front) as ask:

        async def names(tag: str) -> tuple[str, str]:
            response, _ = await ask.get(f"a/b/manifests/{tag}")
            return response.headers["Docker-Content-Digest"], response.headers["Age"]

        assert [await names("1"), await names("quick")] == [(first, "0")] * 2
        site.registry.tags |= {"a/b:1": second, "a/b:quick": second}
        site.now[0] += 6
        assert await names("1") == (first, "6")
        assert await names("quick") == (second, "0")
        site.now[0] += 55
        assert await names("1") == (second, "0")
        site.now[0] += 61
        assert await names("1") == (second, "0")
    figures = site.metrics.exposition({}, {}, Census(0, 0, 0))
    for outcome, times in (("fresh", 1), ("moved", 4), ("confirmed", 1), ("stale", 0)):
        assert f'imgdist_tags_total{{outcome="{outcome}"}} {times}.0' in figures.decode()


@FRONTS
async def test_a_dead_registry_is_stood_in_for_within_the_limit_and_no_longer(site: Fronts, front: str) -> None:
    site.registry.add_image(LAYERS, "1")
    async with client(site, front) as ask:
        await pull(ask, site, "1")
        down(site.registry)
        site.now[0] += 3000
        response, body = await ask.get("a/b/manifests/1")
        assert (response.status, response.headers["Age"]) == (200, "3000")
        assert (await ask.get(f"a/b/blobs/{digest_of(LAYERS[0])}"))[1] == LAYERS[0]
        site.now[0] += 700
        response, body = await ask.get("a/b/manifests/1")
        assert (response.status, code(body)) == (503, "UNKNOWN")
        assert int(response.headers["Retry-After"]) >= 1


@FRONTS
async def test_no_manifest_whose_blobs_cannot_follow(tmp_path: Path, front: str) -> None:
    later = [0.0]
    async with fronts(tmp_path, Freshness(60, 3600), lambda: later[0]) as site, client(site, front) as ask:
        digest = site.registry.add_image(LAYERS, "1")
        assert (await ask.get(f"a/b/manifests/{digest}"))[0].status == 200
        down(site.registry)
        later[0] += 60
        assert (await ask.get(f"a/b/manifests/{digest}"))[0].status == 503
        site.registry.always = None
        await pull(ask, site, digest)
        down(site.registry)
        later[0] += 60
        assert (await ask.get(f"a/b/manifests/{digest}"))[0].status == 200


@FRONTS
async def test_never_a_whole_body_of_wrong_bytes(site: Fronts, front: str) -> None:
    digest = site.registry.add_image(LAYERS, "1")
    name = digest_of(LAYERS[0])
    site.registry.blobs[name] = LAYERS[0][:-1] + b"?"
    async with client(site, front) as ask:
        await ask.get(f"a/b/manifests/{digest}")
        with pytest.raises(aiohttp.ClientPayloadError):
            await ask.get(f"a/b/blobs/{name}")
        site.registry.blobs[name] = LAYERS[0]
        site.registry.faults = [cut_after(LAYERS[0], 400_000)]
        assert (await ask.get(f"a/b/blobs/{name}"))[1] == LAYERS[0]


@FRONTS
async def test_the_registrys_word_about_each_client_is_handed_on(site: Fronts, front: str) -> None:
    digest = site.registry.add_image(LAYERS, "1")
    name, blob = f"{site.registry.host}/a/b", digest_of(LAYERS[1])
    challenges = ('Bearer realm="https://auth.example/token",service="s"', 'Basic realm="r"')
    site.access.verdicts[name, None] = Verdict(401, challenges, "who are you")
    site.access.verdicts[name, "Basic Yjpi"] = Verdict(403, (), "not b")
    site.access.verdicts[name, "Basic ZDpk"] = Verdict(503, (), "cannot be asked", 7.0)
    async with client(site, front) as ask:
        for path in (f"a/b/manifests/{digest}", "a/b/manifests/1", f"a/b/blobs/{blob}", "a/b/tags/list"):
            response, body = await ask.get(path)
            assert (response.status, code(body)) == (401, "UNAUTHORIZED")
            assert response.headers.getall("WWW-Authenticate") == list(challenges)
            response, body = await ask.get(path, Authorization="Basic Yjpi")
            assert (response.status, code(body)) == (403, "DENIED")
            response, body = await ask.get(path, Authorization="Basic ZDpk")
            assert (response.status, response.headers["Retry-After"]) == (503, "7")
        for path in (f"a/b/manifests/{digest}", f"a/b/blobs/{blob}"):
            assert (await ask.get(path, Authorization="Basic YTph"))[0].status == 200
        assert (await ask.get(f"a/b/blobs/{blob}", Authorization="Basic Yjpi"))[0].status == 403
    assert {what for _, what, _ in site.access.asked} >= {"tags/list", f"blobs/{blob}", "manifests/1"}


@FRONTS
async def test_what_came_from_another_registry_follows_its_manifest_from_the_clients_own(
    site: Fronts, front: str
) -> None:
    digest = site.registry.add_image(LAYERS, "1")
    async with client(site, front) as ask:
        await pull(ask, site, "1")
        reads = len(site.registry.paths(part=digest_of(LAYERS[0])))
        elsewhere = Verdict(404, (), "came from another registry", is_elsewhere=True)
        site.access.verdicts[f"{site.registry.host}/a/b", "Basic ZDpk"] = elsewhere
        head, _ = await ask.ask("HEAD", f"a/b/blobs/{digest_of(LAYERS[0])}", headers={"Authorization": "Basic ZDpk"})
        assert head.headers["Content-Length"] == str(len(LAYERS[0]))
        assert (await ask.get(f"a/b/blobs/{digest_of(LAYERS[0])}", Authorization="Basic ZDpk"))[1] == LAYERS[0]
    assert len(site.registry.paths(part=digest_of(LAYERS[0]))) > reads and digest


async def test_a_pull_teaches_what_lazy_starts_need(site: Fronts) -> None:
    digest = site.registry.add_image(LAYERS, "1")
    config = json.loads(site.registry.manifests[digest][1])["config"]["digest"]
    async with client(site, "mirror") as ask:
        await ask.get(f"a/b/manifests/{digest}")
        await ask.get(f"a/b/blobs/{config}")
    diff_id = digest_of(gzip.decompress(LAYERS[0]))
    chain = await site.chains.find(diff_id)
    assert chain is not None and chain.layer_digest == digest_of(LAYERS[0])
    assert [origin.layer.media_type for origin in site.learnt] == [OCI_LAYER] * 2
    assert site.registry.paths(part=config) == [f"/v2/a/b/blobs/{config}"]


async def test_the_node_knows_which_tags_were_pulled_and_how_old_they_are(site: Fronts) -> None:
    digest = site.registry.add_image(LAYERS, "1")
    async with client(site, "mirror") as ask:
        await ask.get("a/b/manifests/1")
        site.now[0] += 30
        await ask.get("a/b/manifests/1")
    ((reference, seen),) = site.seen.all().items()
    assert (str(reference), seen.digest, seen.confirmed_at) == (f"{site.registry.host}/a/b:1", digest, 1000.0)


@FRONTS
async def test_what_became_anothers_while_it_was_opened_is_not_handed_out(
    site: Fronts, front: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first word and the bytes another registry may have delivered them."""
    blob = site.registry.add_blob(LAYERS[0])
    words = iter([Verdict()])

    async def once(name: str, reference: str, authorization: str | None) -> Verdict:
        return next(words, Verdict(404, reason="another registry's"))

    monkeypatch.setattr(site.access, "allowed", once)
    async with aiohttp.ClientSession() as http:
        response, raw = await Client(http, site.url(front), site.registry.host).get(f"a/b/blobs/{blob}")
    assert response.status == 404 and LAYERS[0][:100] not in raw

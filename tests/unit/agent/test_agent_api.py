"""The agent's HTTP API on its socket, asked by the client that the command line has."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fake_node import FakeStore

from agent.api import Node, application
from agent.catalog import Layer, State
from agent.draining import Drained
from agent.known_images import KnownImage, KnownLayer
from agent.listing import Trust
from agent.mirror.seen import SeenTags
from agent.openings import PlainLayer
from agent.proving.prover import Look
from agent.revocations import Revocation, Revocations
from agent.snapshotter.model import Info, Kind
from agent.space.keeper import Report
from agent.space.policy import Kept, Victim, What
from imgdist.api import JsonApi
from imgdist.distribution.registry import Document
from imgdist.errors import DeclinedError, ImgdistError, NotFoundError, TemporaryError, UnsupportedError, UsageError
from imgdist.oci.reference import Reference
from imgdist.proving.verdict import Verdict
from imgdist.space import Disk


def known(number: int, pack_id: str | None = None) -> KnownLayer:
    digest = f"sha256:{number:064x}"
    return KnownLayer(digest=digest, media_type="t", size_bytes=7, diff_id="sha256:d", chain_id="c", pack_id=pack_id)


class FakeMounts:
    def __init__(self) -> None:
        self.mounted: dict[str, tuple[str, bool]] = {}
        self.fail: Exception | None = None

    async def mount(self, reference: str, directory: str, *, writable: bool) -> str:
        if self.fail is not None:
            raise self.fail
        self.mounted[directory] = (reference, writable)
        return "sha256:m"

    async def umount(self, directory: str) -> None:
        del self.mounted[directory]

    async def all(self) -> list[str]:
        return list(self.mounted)


class FakeSpace:
    def __init__(self) -> None:
        self.asked: list[tuple[bool, bool]] = []

    async def collect(self, *, dry_run: bool, frames: bool) -> Report:
        self.asked.append((dry_run, frames))
        gone = Victim(What.PACK, "aa", 7)
        return Report(dry_run, 7, (gone,), (Kept("bb", 9, "used by a snapshot"),), Disk(100, 50))


class FakeProver:
    def __init__(self) -> None:
        self.looks: dict[str, Look] = {}
        self.outcomes = Counter(proven=3)

    def is_proven(self, layer: Layer) -> bool:
        return layer.store.node == 6

    def begin(self, layer: Layer) -> None:
        self.looks[layer.pack_id] = Look(1, 2)


class World:
    def __init__(self, directory: Path) -> None:
        self.layers: list[Any] = []
        self.early: dict[str, Any] = {}
        self.images: Any = SimpleNamespace(
            known=SimpleNamespace(all=lambda: self.known),
            openings=SimpleNamespace(early=SimpleNamespace(of=self.early.get), indexing={}, plain={}),
        )
        self.known: list[KnownImage] = []
        self.mounts = FakeMounts()
        catalog: Any = SimpleNamespace(
            all=lambda: self.layers,
            get=lambda pack_id: next((layer for layer in self.layers if layer.pack_id == pack_id), None),
        )
        self.drained = Drained(0, [])
        self.drains: list[tuple[float, float]] = []
        draining: Any = SimpleNamespace(drain=self.drain)
        self.space = FakeSpace()
        self.prover = FakeProver()
        self.revocations = Revocations(directory / "revoked")
        withdrawal: Any = SimpleNamespace(used_by={})
        self.used_by: dict[str, list[str]] = withdrawal.used_by
        prover: Any = self.prover
        self.trust = Trust(prover, withdrawal, self.revocations)
        self.node = Node(catalog, self.images, self.mounts, draining, self.space, self.trust)  # type: ignore[arg-type]
        self.directory = directory
        self._api = JsonApi(f"unix://{directory}/s", "the agent", timeout_s=10)

    def layer(self, number: int, state: State, *, shown: bool = False) -> Layer:
        store: Any = FakeStore(number)
        made = Layer(store, state=state, shown=shown, mounted=True)
        self.layers.append(made)
        return made

    async def drain(self, timeout_s: float, leave_s: float) -> Drained:
        self.drains.append((timeout_s, leave_s))
        return self.drained

    async def get(self, path: str) -> Any:
        return await asyncio.to_thread(self._api.get, path)

    async def post(self, path: str, document: Any) -> Any:
        return await asyncio.to_thread(self._api.post, path, document)


async def serving(directory: Path, node: Node | None, tags: SeenTags | None = None) -> web.AppRunner:
    app = application(node, str(directory), ["http://s:1"], tags=tags)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(directory / "s")).start()
    return runner


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    runner = await serving(tmp_path, made.node)
    yield made
    await runner.cleanup()


async def test_layers_of_every_state_each_once(world: World) -> None:
    filling = world.layer(5, State.FILLING, shown=True)
    filling.store.received = Counter(supernode=9)
    unknown = world.layer(6, State.SWITCHED)
    twice = known(5, filling.pack_id)
    world.known = [
        KnownImage(reference="r", name="n", manifest_digest="m", platform="p", layers=(twice, known(7), known(8)))
    ]
    world.images.openings.indexing = {known(7).digest: known(7)}
    world.early[known(7).digest] = SimpleNamespace(size_bytes=8192, received=Counter(peer=3))
    world.images.openings.plain = {
        known(8).digest: PlainLayer(known(8), "a hard link"),
        twice.digest: PlainLayer(twice, "was away for a moment"),
    }
    rows = await world.get("/v1/layers")
    assert [(row["digest"], row["state"]) for row in rows] == [
        (known(5).digest, "filling"),
        (None, "switched"),
        (known(7).digest, "indexing"),
        (known(8).digest, "plain"),
    ]
    assert rows[0] == {
        "digest": known(5).digest,
        "kind": "layer",
        "diff_id": filling.store.index.diff_id,
        "pack_id": "05" * 32,
        "state": "filling",
        "size_bytes": filling.store.index.image_size,
        "present_bytes": 5 * 4096,
        "sources": {"supernode": 9},
        "proven": False,
        "revoked": None,
    }
    assert rows[1]["pack_id"] == unknown.pack_id
    assert (rows[2]["present_bytes"], rows[2]["sources"]) == (8192, {"peer": 3}), "before its seal"
    assert rows[3] == {
        "digest": known(8).digest,
        "kind": "layer",
        "diff_id": "sha256:d",
        "pack_id": None,
        "state": "plain",
        "size_bytes": 7,
        "present_bytes": 0,
        "sources": {},
        "reason": "a hard link",
    }


async def test_images_sum_their_layers(world: World) -> None:
    here = world.layer(5, State.COMPLETE)
    here.store.missing.clear()  # type: ignore[attr-defined]
    here.store.received.update(dedup=5, peer=2)
    whole = KnownImage(reference="r", name="n", manifest_digest="m", platform="p", layers=(known(5, here.pack_id),))
    part = KnownImage(
        reference="q", name="n", manifest_digest="k", platform="p", layers=(known(5, here.pack_id), known(6))
    )
    world.known = [whole, part]
    first, second = await world.get("/v1/images")
    assert (first["reference"], first["complete"], first["layers"]) == ("r", True, [known(5).digest])
    assert (first["size_bytes"], first["present_bytes"]) == (here.store.index.image_size, 5 * 4096)
    assert first["sources"] == second["sources"] == {"dedup": 5, "peer": 2}
    assert second["complete"] is False


async def test_tags_that_were_pulled_through_the_mirror_are_images_too(tmp_path: Path) -> None:
    tags = SeenTags()
    named = Document("m", b"{}", "sha256:" + "1" * 64, (("Age", "40"),))
    tags.note(Reference("quay.io", "a/b", tag="1"), named)
    tags.note(Reference("quay.io", "a/b", digest=named.digest), named)
    runner = await serving(tmp_path, None, tags)
    try:
        connector = aiohttp.UnixConnector(str(tmp_path / "s"))
        async with aiohttp.ClientSession(connector=connector) as http, http.get("http://x/v1/images") as answer:
            (row,) = await answer.json()
    finally:
        await runner.cleanup()
    assert (row["reference"], row["manifest_digest"], row["complete"]) == ("quay.io/a/b:1", named.digest, False)
    assert 40 <= row["age_s"] <= 45


async def test_status_counts(world: World) -> None:
    for number, state in ((5, State.FILLING), (6, State.FILLING), (7, State.COMPLETE)):
        world.layer(number, state, shown=state is State.FILLING).store.present.parked = number  # type: ignore[misc]
    world.mounts.mounted = {"/m": ("r", False)}
    status = await world.get("/v1/status")
    assert status["layers"] == {"filling": 2, "complete": 1}
    assert (status["reads_waiting"], status["mounts"], status["lazy"]) == (11, ["/m"], True)
    assert status["supernodes"] == ["http://s:1"] and status["root"] == str(world.directory)
    assert status["disk_free_bytes"] > 0


async def test_peers_and_what_the_swarm_says_of_itself(world: World, tmp_path: Path) -> None:
    assert await world.get("/v1/peers") == [] and (await world.get("/v1/status"))["swarm"] is None
    swarm: Any = SimpleNamespace(peers=lambda: [{"node": "n"}], status=lambda: {"neighbours": 1})
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other")
    runner = await serving(other.directory, replace(other.node, swarm=swarm))
    try:
        assert await other.get("/v1/peers") == [{"node": "n"}]
        assert (await other.get("/v1/status"))["swarm"] == {"neighbours": 1}
    finally:
        await runner.cleanup()


async def test_mount_and_umount(world: World) -> None:
    answer = await world.post("/v1/mounts", {"reference": "r", "directory": "/m", "writable": True})
    assert answer == {"directory": "/m", "manifest_digest": "sha256:m"}
    assert world.mounts.mounted == {"/m": ("r", True)}
    assert await world.post("/v1/umount", {"directory": "/m"}) == {"directory": "/m"}
    assert world.mounts.mounted == {}


@pytest.mark.parametrize("error", [UsageError("twice"), DeclinedError("plain"), TemporaryError("busy")])
async def test_errors_come_out_as_what_they_are(world: World, error: ImgdistError) -> None:
    world.mounts.fail = error
    with pytest.raises(type(error), match=str(error)):
        await world.post("/v1/mounts", {"reference": "r", "directory": "/m"})


async def test_a_defect_is_an_answer_too_and_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.mounts.fail = OSError(5, "Input/output error")
    with pytest.raises(ImgdistError, match="Input/output error"):
        await world.post("/v1/mounts", {"reference": "r", "directory": "/m"})
    assert "POST /v1/mounts failed" in caplog.text


@pytest.mark.parametrize("document", [{}, [], {"reference": 1, "directory": "/m"}, {"reference": "r", "dir": "/m"}])
async def test_a_question_that_makes_no_sense_is_the_callers_fault(world: World, document: Any) -> None:
    with pytest.raises(UsageError, match="POST /v1/mounts"):
        await world.post("/v1/mounts", document)


async def test_gc_says_what_went_and_why_the_rest_stays(world: World) -> None:
    assert await world.post("/v1/gc", {"dry_run": True, "frames": True}) == {
        "dry_run": True,
        "freed_bytes": 7,
        "removed": [{"what": "pack", "name": "aa", "size_bytes": 7}],
        "kept": [{"pack_id": "bb", "size_bytes": 9, "why": "used by a snapshot"}],
        "disk": {"total_bytes": 100, "available_bytes": 50},
    }
    await world.post("/v1/gc", {})
    assert world.space.asked == [(True, True), (False, False)]
    with pytest.raises(UsageError, match="POST /v1/gc"):
        await world.post("/v1/gc", {"dryrun": True})


async def test_a_path_that_does_not_exist_is_named(world: World) -> None:
    with pytest.raises(UsageError, match="/v1/nothing"):
        await world.get("/v1/nothing")


async def test_metrics_and_health(world: World) -> None:
    reader, writer = await asyncio.open_unix_connection(str(world.directory / "s"))
    for path, words in (("/healthz", b"ok"), ("/readyz", b"ok"), ("/metrics", b"imgdist_layers")):
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        assert b" 200 " in head and words in await reader.readexactly(length)
    writer.close()
    await writer.wait_closed()


async def test_a_drain_names_who_reads_what_is_left(world: World) -> None:
    layer = world.layer(5, State.FILLING, shown=True)
    users = [
        Info("k8s.io/12/0123abc", "p", Kind.ACTIVE, 0, 0),
        Info("mount 77", "p", Kind.VIEW, 0, 0, {"containerd.io/gc.root": "/mnt/app"}),
    ]
    world.drained = Drained(3, [(layer, users)])
    said = await world.post("/v1/drain", {"timeout_s": 7, "leave_s": 60})
    assert world.drains == [(7.0, 60.0)]
    assert said["switched"] == 3 and said["left"][0]["pack_id"] == layer.pack_id
    assert said["left"][0]["used_by"] == ["container k8s.io/0123abc", "mount /mnt/app"]
    with pytest.raises(UsageError, match="timeout_s"):
        await world.post("/v1/drain", {"timeout_s": -1})


async def test_a_machine_that_cannot_says_so(tmp_path: Path) -> None:
    runner = await serving(tmp_path, None)
    try:
        asking = World(tmp_path)
        assert (await asking.get("/v1/status"))["lazy"] is False
        assert (await asking.get("/v1/layers"), await asking.get("/v1/images")) == ([], [])
        assert await asking.post("/v1/drain", {"timeout_s": 1}) == {"switched": 0, "left": []}
        with pytest.raises(UnsupportedError, match="cannot mount layers lazily") as raised:
            await asking.post("/v1/mounts", {"reference": "r", "directory": "/m"})
        assert raised.value.exit_code == 3
        json.dumps(await asking.get("/v1/status"))
    finally:
        await runner.cleanup()


async def test_a_proof_is_begun_and_told(world: World) -> None:
    layer = world.layer(5, State.SWITCHED)
    with pytest.raises(NotFoundError, match="was not looked at"):
        await world.get(f"/v1/proofs/{layer.pack_id}")
    begun = await world.post("/v1/proofs", {"pack_id": layer.pack_id})
    assert begun == {"done_bytes": 1, "total_bytes": 2, "verdict": None}
    world.prover.looks[layer.pack_id].verdict = Verdict("false", "it was altered")
    told = await world.get(f"/v1/proofs/{layer.pack_id}")
    assert told["verdict"] == {"outcome": "false", "reason": "it was altered"}
    with pytest.raises(NotFoundError, match="not on this node"):
        await world.post("/v1/proofs", {"pack_id": "0" * 64})


async def test_revoked_packs_are_named_with_who_runs_on_them(world: World) -> None:
    bad, good = world.layer(5, State.SWITCHED), world.layer(6, State.SWITCHED)
    world.revocations.add(Revocation(bad.pack_id, "it lies", "this node", 0.0))
    world.used_by[bad.pack_id] = ["container k8s.io/web"]
    rows = {row["pack_id"]: row for row in await world.get("/v1/layers")}
    assert [rows[bad.pack_id][key] for key in ("proven", "revoked", "used_by")] == [
        False, "it lies", ["container k8s.io/web"],
    ]  # fmt: skip
    assert [rows[good.pack_id].get(key) for key in ("proven", "revoked", "used_by")] == [True, None, None]
    world.known = [
        KnownImage(reference="r", name="n", manifest_digest="m", platform="p", layers=(known(5, bad.pack_id),))
    ]
    (image,) = await world.get("/v1/images")
    assert image["revoked"] == [bad.pack_id]
    figures = await asyncio.to_thread(JsonApi(f"unix://{world.directory}/s", "the agent").text, "/metrics")
    assert "imgdist_packs_revoked 1.0" in figures
    assert "imgdist_revoked_users 1.0" in figures
    assert 'imgdist_packs_proved_total{outcome="proven"} 3.0' in figures

"""A node's look at its packs, with the process that makes it: what is here, what is damaged, what is a lie."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from forged_pack import flip_first, forge
from raw_tar import END, directory, file

import agent.proving.prover
from agent.chunkstore import ChunkStore
from agent.database import Database
from agent.layer import Layer
from agent.layerstore import LayerStore
from agent.proving.prover import DISK_SHARE, MARK, SLACK_BYTES, Look, Prover, most_bytes
from imgdist.errors import NotFoundError, ProtocolError
from imgdist.proving.process import When
from imgdist.proving.verdict import Verdict
from imgdist.space import Disk
from supernode.convert.pipeline import Options, convert
from supernode.store import LocalStore
from supernode.store.scrub import stored_image
from supernode.store.writer import PackWriter

LAYER = "sha256:" + "aa" * 32
TAR = directory(b"d/") + file(b"d/f", bytes(range(256)) * 1500) + file(b"d/g", b"g" * 9000) + END


class Supernode:
    """A store with one pack; the source of tar-splits."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = LocalStore(root)
        self.store.recover()
        sink = PackWriter(self.store.begin(LAYER), LAYER)
        self.pack_id = convert(io.BytesIO(TAR), sink, Options(threads=1)).pack_id.hex()
        self.store.seal(LAYER, bytes.fromhex(self.pack_id))
        self.splits = 0

    def forge(self, **how: Any) -> None:
        self.pack_id = forge(self.root, self.pack_id, **how)

    async def tar_split(self, pack_id: str, out: IO[bytes], most_bytes: int) -> None:
        self.splits += 1
        path = self.store.directory(pack_id) / "tar-split"
        if not path.exists():
            raise NotFoundError("no supernode has it")
        assert path.stat().st_size <= most_bytes
        out.write(path.read_bytes())


class Node:
    """A chunk store that takes packs from the supernode's."""

    def __init__(self, root: Path, tasks: asyncio.TaskGroup, supernode: Supernode) -> None:
        self._supernode = supernode
        self.database = Database(root / "agent.db")
        self.chunks = ChunkStore(root / "packs", self.database)
        self.found: list[Verdict] = []
        self.prover = Prover(supernode, tasks, lambda layer, verdict: self.found.append(verdict))

    def layer(self, lacks: Iterable[int] = ()) -> Layer:
        """The supernode's pack, as a node has it that fetched it."""
        pack_id = self._supernode.pack_id
        store: LayerStore = self.chunks.create(self._supernode.store.index_bytes(pack_id))
        image = stored_image(self._supernode.store.directory(pack_id), store.index)
        for number in set(store.missing_chunks()) - set(lacks):
            store.write(number, memoryview(image.chunk(number)))
        return Layer(store)


@pytest.fixture
def supernode(tmp_path: Path) -> Supernode:
    return Supernode(tmp_path / "s")


@pytest.fixture
async def node(tmp_path: Path, supernode: Supernode) -> AsyncIterator[Node]:
    (tmp_path / "a").mkdir()
    async with asyncio.TaskGroup() as tasks:
        made = Node(tmp_path / "a", tasks, supernode)
        yield made
    made.chunks.close()
    made.database.close()


async def test_a_whole_layer_is_proven_once(node: Node) -> None:
    layer = node.layer()
    assert not node.prover.is_proven(layer)
    first, second = node.prover.begin(layer), node.prover.begin(layer)
    assert first is second
    assert await first.wait() == Verdict("proven")
    assert node.prover.is_proven(layer)
    look = node.prover.looks[layer.pack_id]
    assert look.verdict == Verdict("proven")
    assert 0 < look.done_bytes <= look.total_bytes
    assert node.found == [Verdict("proven")]
    assert [path.name for path in layer.store.directory.parent.iterdir()] == [layer.pack_id], "nothing else is kept"


def test_a_stream_takes_no_more_than_its_index_says_nor_than_the_disk_spares() -> None:
    assert most_bytes(0, 1 << 40) == SLACK_BYTES
    assert (1 << 20) < most_bytes(1 << 20, 1 << 40) < (2 << 20)
    assert most_bytes(1 << 60, 1 << 40) == (1 << 40) // DISK_SHARE


async def test_a_stream_for_which_there_is_no_room_proves_nothing(
    node: Node, supernode: Supernode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(pack_id: str, out: IO[bytes], most: int) -> None:
        assert most == 25
        raise ProtocolError(f"a tar-split stream of more than {most} bytes")

    monkeypatch.setattr(agent.proving.prover, "disk_of", lambda path: Disk(1000, 100))
    monkeypatch.setattr(supernode, "tar_split", endless)
    verdict = await node.prover.begin(node.layer()).wait()
    assert verdict == Verdict("unproven", "a tar-split stream of more than 25 bytes")


async def test_who_waits_does_not_wait_for_an_unasked_look(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which has only idle processors: on a busy node there may be none for hours."""
    began, gate = asyncio.Event(), asyncio.Event()

    async def proved(self: Prover, layer: Layer, look: Look, when: When) -> Verdict:
        began.set()
        if when == "idle":
            await gate.wait()
        return Verdict("unproven", when)

    def of(pack_id: str) -> Any:
        return SimpleNamespace(pack_id=pack_id, store=SimpleNamespace(index=SimpleNamespace(image_size=0)))

    monkeypatch.setattr(Prover, "_proved", proved)
    async with asyncio.timeout(30):
        unasked = node.prover.begin(of("a"), "idle")
        await began.wait()
        assert (await node.prover.begin(of("b")).wait()).reason == "soon"
        gate.set()
        assert (await unasked.wait()).reason == "idle"


async def test_only_so_many_looks_are_remembered(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.proving.prover, "LOOKS_MAX", 2)
    layer = node.layer()
    node.prover.looks.update({"oldest": Look(), layer.pack_id: Look(), "latest": Look()})
    await node.prover.begin(layer).wait()
    assert list(node.prover.looks) == ["latest", layer.pack_id]


@pytest.mark.parametrize("metadata", [False, True])
async def test_a_consistent_lie_is_false(node: Node, supernode: Supernode, metadata: bool) -> None:
    """Each of its chunks was verified when it came."""
    supernode.forge(metadata=metadata, alter=(lambda raw: raw[:70] + b"\1" + raw[71:]) if metadata else flip_first)
    layer = node.layer()
    verdict = await node.prover.begin(layer).wait()
    assert verdict.outcome == "false"
    assert not (layer.store.directory / MARK).exists()
    assert node.found == [verdict]


async def test_what_is_here_of_a_layer_is_held_against_its_index(node: Node, supernode: Supernode) -> None:
    layer = node.layer(lacks=[0])
    verdict = await node.prover.begin(layer).wait()
    count = layer.store.index.chunk_count
    assert verdict == Verdict("partial", f"{count - 1} of {count} chunks are here, and are right")
    assert supernode.splits == 0


@pytest.mark.parametrize("offset", [0, 2000, 5000])
async def test_rot_on_the_disk_is_damage(node: Node, offset: int) -> None:
    layer = node.layer()
    layer.store.complete()
    with open(layer.store.directory / "image", "r+b") as image:  # noqa: ASYNC230
        image.seek(offset)
        image.write(b"\xff")
    assert (await node.prover.begin(layer).wait()).outcome == "damaged"


async def test_without_the_right_tar_split_nothing_is_known(node: Node, supernode: Supernode) -> None:
    layer = node.layer()
    path = supernode.store.directory(layer.pack_id) / "tar-split"
    stream = path.read_bytes()
    for broken in (stream[: len(stream) // 2], b"", flip_first(stream), stream[:-3] + b"abc"):
        path.write_bytes(broken)
        verdict = await node.prover.begin(layer).wait()
        assert verdict.outcome == "unproven", verdict
        assert "tar-split" in verdict.reason
    path.unlink()
    assert await node.prover.begin(layer).wait() == Verdict("unproven", "no supernode has it")


async def test_a_pack_that_is_gone_meanwhile(node: Node) -> None:
    layer = node.layer()
    node.chunks.remove(layer.store)
    assert (await node.prover.begin(layer).wait()).outcome == "unproven"

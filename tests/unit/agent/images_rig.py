"""Images of a node without a kernel, and supernodes that answer what a test lays out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fake_node import FakeNode, FakeStore

from agent.early import EarlyLayers
from agent.images import Images
from agent.known_images import KnownImages
from agent.layerindexes import LayerIndexes
from agent.openings import LayerOpenings
from agent.starts import ImageStarts
from imgdist.pack import records
from imgdist.pack.index import IndexBuilder
from imgdist.wire.control import Chain, Indexes, Layer, LayerState, Resolution, Trace

REFERENCE, MANIFEST = "reg.test/app:1", "sha256:" + "a" * 64
DIFF_ID = "sha256:" + "d" * 64


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def chain(number: int) -> str:
    return f"sha256:c{number:063x}"


def resolution(
    *numbers: int,
    declined: tuple[int, ...] = (),
    trace: bool = False,
    manifest: str = MANIFEST,
    state: LayerState = "converting",
    size_bytes: int = 100,
) -> Any:
    layers = tuple(
        Layer(
            digest(number),
            "application/vnd.oci.image.layer.v1.tar+gzip",
            size_bytes,
            DIFF_ID,
            chain(number),
            "declined" if number in declined else state,
            reason="hard link to a lower layer" if number in declined else None,
        )
        for number in numbers
    )
    kind = "application/vnd.oci.image.manifest.v1+json"
    return Resolution(REFERENCE, "reg.test/app", manifest, kind, digest(0), "linux/amd64", 1, None, 0, trace, layers)


def sealed_index(number: int, diff_id: str = "d") -> bytes:
    builder = IndexBuilder(digest(number))
    body = builder.header + builder.add(records.Chunk(1, bytes([number]) * 32, metadata=True))
    body += builder.add(records.Metadata(1, 1)) + builder.add(records.Superblock(b"s" * 128))
    body += builder.add(records.DiffId(bytes.fromhex(diff_id * 64))) + builder.add(records.TarSplit(b"t" * 32, 9))
    return body + records.encode(records.Seal(builder.pack_id()))


class FakeSupernodes:
    """Answers from what the test lays out; an exception in its place is raised."""

    def __init__(self) -> None:
        self.resolution: Any = resolution(5)
        self.answers: dict[str, Any] = {}
        self.chains: dict[str, Chain] = {}
        self.traces: Any = None
        self.ready: dict[str, bytes] | Exception = {}
        self.packs: dict[int, int] = {}
        self.agreed: str | Exception = (bytes([5]) * 32).hex()
        self.asked: list[str] = []
        self.going = asyncio.Event()
        self.going.set()
        self.called = asyncio.Event()
        """Indexes were asked for, and are answered as `answering` lets them be."""
        self.answering = asyncio.Semaphore(1000)

    async def resolve(self, reference: str, *, platform: str, manifest_digest: str | None) -> Resolution:
        self.asked.append(f"resolve {reference} {manifest_digest}")
        await self.going.wait()
        if isinstance(self.resolution, Exception):
            raise self.resolution
        return self.resolution  # type: ignore[no-any-return]

    async def follow_index(self, layer_digest: str, on_progress: Any) -> tuple[Any, bytes]:
        self.asked.append(f"index {int(layer_digest.removeprefix('sha256:'), 16)}")
        number = int(layer_digest.removeprefix("sha256:"), 16)
        answers = self.answers.get(layer_digest, [DIFF_ID])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(diff_id=answer, pack_id=bytes([self.packs.get(number, number)]) * 32), bytes([number])

    async def indexes(self, layer_digests: Sequence[str]) -> Indexes:
        self.asked.append(f"indexes {len(layer_digests)}")
        self.called.set()
        await self.answering.acquire()
        if isinstance(self.ready, Exception):
            raise self.ready
        return Indexes({digest: self.ready[digest] for digest in layer_digests if digest in self.ready})

    async def agree(self, layer_digest: str, reference: str, *, platform: str, manifest_digest: str, count: int) -> str:
        self.asked.append(f"agree {count}")
        if isinstance(self.agreed, Exception):
            raise self.agreed
        return self.agreed

    async def documents(self, reference: str, *, platform: str, manifest_digest: str | None) -> Any:
        self.asked.append(f"documents {reference} {manifest_digest}")
        if isinstance(self.traces, Exception):
            raise self.traces
        return ()

    async def chain(self, chain_id: str) -> Chain | None:
        return self.chains.get(chain_id)

    async def trace(self, manifest_digest: str) -> Trace | None:
        if isinstance(self.traces, Exception):
            raise self.traces
        return self.traces  # type: ignore[no-any-return]


class World:
    def __init__(self, tasks: asyncio.TaskGroup, directory: Path) -> None:
        self.node = FakeNode(tasks, *(FakeStore(number) for number in range(4, 9)))
        self.supernodes: Any = FakeSupernodes()
        self.recorded: list[tuple[str, str]] = []
        self.recorder: Any = SimpleNamespace(
            open=lambda manifest, shown, now: self.recorded.append(("open", manifest)),
            started=lambda manifest, now: self.recorded.append(("started", manifest)),
        )
        self._tasks, self._directory = tasks, directory
        self.revoked: dict[str, str] = {}
        self.suspects: list[str] = []
        self.images = self.make()

    def make(self, traces: bool = True, prefetch: bool = True, agreement: int = 1) -> Images:
        known, catalog, transfers = KnownImages(self._directory / "images"), self.node.catalog, self.node.transfers
        revoked: Any = self.revoked.get
        indexes = LayerIndexes(
            self.supernodes,
            platform="linux/amd64",
            agreement=agreement,
            revoked=revoked,
            suspect=self.suspects.append,
        )
        early = EarlyLayers(self.node.chunks, transfers, self._tasks, enabled=False)
        openings = LayerOpenings(catalog, known, indexes, early, self._tasks, revoked=revoked)
        starts = ImageStarts(
            self.supernodes, catalog, known, transfers, self.recorder, traces=traces, prefetch=prefetch
        )
        return Images(self.supernodes, catalog, known, openings, starts, self._tasks, platform="linux/amd64")

    def resolved(self) -> int:
        return sum(asked.startswith("resolve") for asked in self.supernodes.asked)


@asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    async with asyncio.TaskGroup() as tasks:
        yield World(tasks, directory)

"""A supernode's blobs: read once whoever asks, handed out while they arrive, kept only if they are right."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fake_registry import FakeRegistry, answer, cut_after, held_back, serving

from imgdist.errors import CorruptError, DeclinedError, NotFoundError, TemporaryError
from imgdist.oci import transport
from imgdist.oci.reference import Reference
from imgdist.oci.settings import RegistrySettings
from imgdist.pack import BLOCK, CHUNK_MAX
from imgdist.pack.index import Index, IndexFollower
from imgdist.pack.kinds import Kind, early_name
from supernode.blobs.source import Blobs
from supernode.metrics import Metrics
from supernode.registries import Registries
from supernode.store import LocalStore
from supernode.store.writer import PackWriter

BLOB = random.Random(1).randbytes(3 * CHUNK_MAX + 12_345)
ENDS_WITH_CHUNK = random.Random(2).randbytes(2 * CHUNK_MAX)


class Witness:
    """Counts who reads what."""

    def __init__(self) -> None:
        self.reads: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def reading(self, name: str, digest: str) -> Iterator[None]:
        self.reads[name, digest] += 1
        yield
        self.reads[name, digest] -= 1

    def delivered(self, name: str, digest: str) -> None:
        pass


class Site:
    """A store, a registry, and the blobs between them."""

    def __init__(self, root: Path, registry: FakeRegistry, http: Any) -> None:
        self.root = root
        self.registry = registry
        self.store = LocalStore(root)
        self.store.recover()
        self.witness = Witness()
        settings = RegistrySettings(plain_http=[registry.host])
        self.blobs = Blobs(self.store, Registries(http, Metrics(), settings, witness=self.witness))

    def blob(self, raw: bytes) -> Reference:
        return Reference(self.registry.host, "a/b", digest=self.registry.add_blob(raw))

    @property
    def reads(self) -> int:
        return len(self.registry.paths("GET", "/blobs/"))

    async def whole(self, blob: Reference, **options: Any) -> bytes:
        async with await self.blobs.open(blob, **options) as opened:
            return b"".join([piece async for piece in opened.stream()])

    async def index(self, blob: Reference, start: int = 0) -> bytes:
        return b"".join([piece async for piece in self.blobs.index(blob, start)])

    def parts(self) -> list[str]:
        return [path.name for path in (self.root / "packs").iterdir() if path.name.startswith(".")]


def fill_disk(monkeypatch: pytest.MonkeyPatch, chunks: int) -> None:
    """From so many chunks on the disk is full."""
    add_chunk, written = PackWriter.add_chunk, itertools.count()

    def full(self: PackWriter, *chunk: Any) -> None:
        if next(written) >= chunks:
            raise OSError(errno.ENOSPC, "No space left on device")
        add_chunk(self, *chunk)

    monkeypatch.setattr(PackWriter, "add_chunk", full)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(FakeRegistry()) as registry, transport.session() as http:
        made = Site(tmp_path, registry, http)
        running = asyncio.create_task(made.blobs.run())
        await asyncio.sleep(0)  # it has its task group
        yield made
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.mark.parametrize("raw", [BLOB, ENDS_WITH_CHUNK, b"{}", bytes(CHUNK_MAX + 1), b"text " * 200_000, b""])
async def test_a_blob_is_what_the_registry_has_and_is_read_once(site: Site, raw: bytes) -> None:
    blob = site.blob(raw)
    size = None if raw else 0  # which a registry may not say of an empty one
    assert await asyncio.gather(*(site.whole(blob, size=size) for _ in range(5))) == [raw] * 5
    assert await site.whole(blob) == raw
    assert site.reads == (1 if raw else 0)
    assert site.store.verify(site.store.find(blob.digest or "", Kind.RAW) or "") == []
    again = LocalStore(site.root)
    again.recover()
    assert again.find(blob.digest or "", Kind.RAW) is not None


async def test_parts_of_a_blob(site: Site) -> None:
    async with await site.blobs.open(site.blob(BLOB)) as opened:
        async with aclosing(opened.stream(CHUNK_MAX - 10, CHUNK_MAX + 10)) as pieces:
            assert b"".join([piece async for piece in pieces]) == BLOB[CHUNK_MAX - 10 : CHUNK_MAX + 10]
        assert await opened.read(len(BLOB), 10) == b""
        assert (await opened.read(5, 7)) == BLOB[5:12]


async def test_where_a_blob_comes_from_is_known_as_long_as_it_is_on_its_way(site: Site) -> None:
    """Else who asks meanwhile whether it is this registry's is told no (supernode/access)."""
    blob = site.blob(BLOB)
    pulling = asyncio.create_task(site.whole(blob))
    seen = set()
    while not pulling.done():
        seen.add((bool(site.blobs.under_way), site.witness.reads[blob.name, blob.digest or ""] > 0))
        await asyncio.sleep(0)
    assert await pulling == BLOB
    await site.blobs.settled()
    assert (True, False) not in seen and (True, True) in seen
    assert site.witness.reads.total() == 0


async def test_readers_get_bytes_while_the_registry_still_sends(site: Site) -> None:
    blob = site.blob(BLOB)
    fault, going_on = held_back(BLOB, 2 * CHUNK_MAX)
    site.registry.faults.append(fault)
    async with await site.blobs.open(blob) as opened, aclosing(site.blobs.index(blob)) as index:
        assert opened.size == len(BLOB) and opened.file is None
        assert await opened.read(0, 100) == BLOB[:100]
        follower = IndexFollower()
        while follower.chunk_count < 2:
            follower.feed(await anext(index))
        part = site.store.open(early_name(blob.digest or "", Kind.RAW))
        assert part is not None and part.count == 2
        going_on.set()
        rest = opened.stream(100)
        assert b"".join([piece async for piece in rest]) == BLOB[100:]
        async for piece in index:
            follower.feed(piece)
    assert follower.sealed is not None and follower.sealed.blob_size == len(BLOB)
    assert site.reads == 1


async def test_an_index_can_be_taken_up_again(site: Site) -> None:
    blob = site.blob(BLOB)
    whole = await site.index(blob)
    assert Index.load(whole).chunk_count == 4
    for start in range(7):
        assert whole.endswith(await site.index(blob, start))


async def test_nobody_gets_the_last_bytes_of_a_wrong_blob(site: Site) -> None:
    blob = site.blob(ENDS_WITH_CHUNK)
    site.registry.blobs[blob.digest or ""] = ENDS_WITH_CHUNK[:-1] + b"!"
    got = bytearray()
    with pytest.raises(CorruptError, match="digest"):
        async with await site.blobs.open(blob) as opened:
            async for piece in opened.stream():
                got += piece
    assert len(got) <= CHUNK_MAX
    assert site.store.find(blob.digest or "", Kind.RAW) is None and site.parts() == []


async def test_a_body_that_breaks_off_is_resumed(site: Site) -> None:
    blob = site.blob(BLOB)
    site.registry.faults.append(cut_after(BLOB, CHUNK_MAX + 7))
    assert await site.whole(blob, size=len(BLOB)) == BLOB
    first, second = [asked.headers.get("Range") for asked in site.registry.log if asked.method == "GET"]
    assert first is None and second is not None and second.startswith("bytes=")


@pytest.mark.parametrize("size", [len(BLOB) - 1, len(BLOB) + 1])
async def test_a_size_that_is_wrong_keeps_nothing_and_harms_nobody_else(site: Site, size: int) -> None:
    blob = site.blob(BLOB)
    with pytest.raises(CorruptError):
        await site.whole(blob, size=size)
    assert site.parts() == []
    assert await site.whole(blob) == BLOB


@pytest.mark.parametrize("chunks", [0, 1, 3])
async def test_a_conversion_goes_on_where_the_disk_refuses_its_blob(
    site: Site, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    fill_disk(monkeypatch, chunks)
    blob = site.blob(BLOB)
    async with aclosing(site.blobs.read(blob, len(BLOB))) as pieces:
        assert b"".join([piece async for piece in pieces]) == BLOB
    assert (site.reads, site.parts(), site.store.find(blob.digest or "", Kind.RAW)) == (2, [], None)
    with pytest.raises(TemporaryError, match="disk refuses it"):
        await site.whole(blob)


async def test_bytes_that_differ_when_they_are_read_again_are_no_layer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest vouches for those of the second time alone."""
    fill_disk(monkeypatch, 2)
    blob = site.blob(BLOB)
    fault, going_on = held_back(b"!" + BLOB[1:], 2 * CHUNK_MAX)
    site.registry.faults.append(fault)
    async with aclosing(site.blobs.read(blob, len(BLOB))) as pieces:
        assert (await anext(pieces))[:1] == b"!"
        going_on.set()
        with pytest.raises(CorruptError, match="other bytes than before"):
            async for _ in pieces:
                pass


async def test_who_joined_a_download_that_was_refused_tries_once_more(site: Site) -> None:
    blob = site.blob(BLOB)
    site.registry.faults.append(answer(404, "/blobs/"))
    first, second = await asyncio.gather(
        site.whole(blob, size=len(BLOB)), site.whole(blob, size=len(BLOB)), return_exceptions=True
    )
    assert isinstance(first, NotFoundError) and second == BLOB


async def test_size_alone_fetches_nothing(site: Site) -> None:
    blob = site.blob(BLOB)
    assert await site.blobs.size(blob) == len(BLOB)
    assert site.reads == 0
    with pytest.raises(NotFoundError):
        await site.blobs.size(Reference(blob.host, "a/b", digest="sha256:" + "0" * 64))
    with pytest.raises(DeclinedError):
        await site.blobs.size(Reference(blob.host, "a/b", digest="sha512:" + "0" * 128))


async def test_a_full_disk_is_temporary_and_leaves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = site.blob(BLOB)

    def full(*arguments: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("supernode.store.writer._write", full)
    with pytest.raises(TemporaryError, match="No space left"):
        await site.whole(blob)
    monkeypatch.undo()
    assert await site.whole(blob) == BLOB


async def test_incompressible_blobs_lie_on_the_disk_as_they_are(site: Site) -> None:
    blob = site.blob(BLOB)
    await site.whole(blob)
    async with await site.blobs.open(blob) as opened:
        assert opened.file is not None
        assert os.pread(opened.file.fd, opened.file.size, opened.file.offset) == BLOB
    text = site.blob(b"text " * 200_000)
    await site.whole(text)
    async with await site.blobs.open(text) as opened:
        assert opened.file is None and opened.size == 1_000_000


async def test_what_only_a_conversion_read_goes_first(site: Site) -> None:
    layer, pulled = site.blob(BLOB), site.blob(ENDS_WITH_CHUNK)
    assert b"".join([piece async for piece in site.blobs.read(layer, len(BLOB))]) == BLOB
    await site.whole(pulled)
    used = [site.store.last_use(site.store.find(blob.digest or "", Kind.RAW) or "") for blob in (layer, pulled)]
    assert used[0] == 0 < used[1]
    await site.whole(layer)
    assert site.store.last_use(site.store.find(layer.digest or "", Kind.RAW) or "") > 0
    assert site.reads == 2


async def test_a_conversion_and_a_pull_read_the_registry_once_together(site: Site) -> None:
    layer = site.blob(BLOB)

    async def convert() -> bytes:
        return b"".join([piece async for piece in site.blobs.read(layer, len(BLOB))])

    assert await asyncio.gather(convert(), site.whole(layer), site.index(layer), convert())
    await site.blobs.settled()
    assert site.reads == 1
    assert site.store.last_use(site.store.find(layer.digest or "", Kind.RAW) or "") > 0, "somebody wants it"


async def test_the_chunks_of_a_pack_are_its_blob(site: Site) -> None:
    blob = site.blob(BLOB)
    index = Index.load(await site.index(blob))
    reader = site.store.open(index.pack_id.hex())
    assert reader is not None
    padded = b"".join(reader.body(chunk)[1] for chunk in range(index.chunk_count))
    assert padded == BLOB + bytes(-len(BLOB) % BLOCK)

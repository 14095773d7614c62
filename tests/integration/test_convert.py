from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import random
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from worker_processes import children_of

from imgdist.errors import CorruptError, DeclinedError, ImgdistError, NotFoundError, TemporaryError
from imgdist.pack import codec
from imgdist.pack.index import Index, IndexFollower
from imgdist.pack.kinds import early_name
from supernode.convert.conversion import Conversion
from supernode.convert.standalone import convert_file
from supernode.convert.workers import Workers
from supernode.store import LocalStore


def make_tar(files: int = 60, size: int = 40_000, seed: int = 1) -> bytes:
    """A small layer: text, noise, zeros, a hard link, a symlink, a directory that nobody describes."""
    noise = random.Random(seed)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(files):
            content = (noise.randbytes(size), b"line of text\n" * (size // 13), bytes(size))[number % 3]
            info = tarfile.TarInfo(f"opt/data/file{number}")
            info.size, info.mtime = len(content), 1_600_000_000 + number
            tar.addfile(info, io.BytesIO(content))
        for name, kind, target in (("hard", tarfile.LNKTYPE, "opt/data/file0"), ("soft", tarfile.SYMTYPE, "hard")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    return out.getvalue()


TAR = make_tar()
GZIP = gzip.compress(TAR, 1)
DIFF_ID = f"sha256:{hashlib.sha256(TAR).hexdigest()}"


def digest_of(layer: bytes) -> str:
    return f"sha256:{hashlib.sha256(layer).hexdigest()}"


LAYER = digest_of(GZIP)


async def convert(store: LocalStore, workers: Workers, layer: bytes, **options: object) -> str:
    async with Conversion(store, workers, digest_of(layer), **options) as conversion:  # type: ignore[arg-type]
        for at in range(0, len(layer), 100_000):
            await conversion.feed(layer[at : at + 100_000])
        return (await conversion.finish()).pack_id


def image_of(store: LocalStore, pack_id: str) -> bytes:
    """The layer image, put together from the pack as an agent would."""
    index, reader = store.index(pack_id), store.open(pack_id)
    assert reader is not None
    image = bytearray(index.image_size)
    image[:4096] = index.block0()
    for number in range(index.chunk_count):
        out = memoryview(image)[index.start(number) :][: index.size(number)]
        codec.decode_into(*reader.body(number), out)
        assert blake3(out).digest() == index.digest(number)
    return bytes(image)


def parts(store: LocalStore, tmp_path: Path) -> list[str]:
    return [entry.name for entry in (tmp_path / "store" / "packs").iterdir()]


async def test_a_layer_becomes_a_pack(store: LocalStore, workers: Workers, tmp_path: Path) -> None:
    async with Conversion(store, workers, LAYER, diff_id=DIFF_ID) as conversion:
        await conversion.feed(GZIP)
        result = await conversion.finish()
    assert result.diff_id == DIFF_ID
    assert result.files == 60
    assert result.tar_bytes == len(TAR)
    assert store.find(LAYER) == result.pack_id
    assert store.verify(result.pack_id) == []
    index = store.index(result.pack_id)
    assert (index.layer_digest, index.diff_id) == (LAYER, DIFF_ID)
    assert (index.chunk_count, index.image_size) == (result.chunks, result.image_bytes)
    assert index.implied_directories == (b"opt", b"opt/data")
    assert conversion.progress.fed_bytes == len(GZIP)
    assert conversion.progress.chunks == result.chunks
    assert parts(store, tmp_path) == [result.pack_id]


async def test_the_pack_is_what_the_converter_alone_writes(store: LocalStore, workers: Workers, tmp_path: Path) -> None:
    pack_id = await convert(store, workers, GZIP)
    (tmp_path / "layer").write_bytes(GZIP)
    said = convert_file(tmp_path / "layer", tmp_path / "out")
    image = (tmp_path / "out" / "image.erofs").read_bytes()
    index = Index.load((tmp_path / "out" / "index").read_bytes())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["image.erofs", "index"]
    assert said == {
        "pack_id": pack_id,
        "diff_id": DIFF_ID,
        "source_digest": LAYER,
        "image_bytes": len(image),
        "chunks": index.chunk_count,
        "files": 60,
        "seconds": said["seconds"],
    }
    assert index.layer_digest == LAYER
    assert image == image_of(store, pack_id)


TWINS: dict[str, Callable[[bytes], bytes]] = {
    "tar": lambda tar: tar,
    "gzip of two members": lambda tar: gzip.compress(tar[:70_000]) + gzip.compress(tar[70_000:], 9) + bytes(512),
    "zstd": lambda tar: zstandard.ZstdCompressor(level=3).compress(tar),
    "zstd of two frames": lambda tar: (
        b"\x50\x2a\x4d\x18\x02\0\0\0hi"
        + zstandard.ZstdCompressor(level=1).compress(tar[:70_000])
        + zstandard.ZstdCompressor(level=9).compress(tar[70_000:])
    ),
}


@pytest.mark.parametrize("kind", TWINS)
async def test_twins_share_a_pack(store: LocalStore, workers: Workers, tmp_path: Path, kind: str) -> None:
    pack_id = await convert(store, workers, GZIP)
    twin = TWINS[kind](TAR)
    assert await convert(store, workers, twin) == pack_id
    assert store.find(digest_of(twin)) == pack_id
    assert parts(store, tmp_path) == [pack_id]


async def test_threads_and_levels_do_not_change_the_pack_id(
    store: LocalStore, workers: Workers, tmp_path: Path
) -> None:
    seen = set()
    for threads, level in ((1, 1), (2, 1), (4, 1), (2, 3)):
        seen.add(await convert(store, workers, GZIP, threads=threads, level=level))
        store.remove(seen.copy().pop())
    assert len(seen) == 1


async def test_followers_see_chunks_before_the_layer_is_whole(store: LocalStore, workers: Workers) -> None:
    tar = make_tar(files=300)
    layer = digest_of(tar)
    async with Conversion(store, workers, layer) as conversion:
        await conversion.feed(tar[: len(tar) // 2])
        follower = IndexFollower()
        stream = conversion.follow()
        while follower.chunk_count < 10:
            follower.feed(await anext(stream))
        assert follower.sealed is None
        reader = store.open(early_name(layer))
        assert reader is not None
        for number in range(follower.chunk_count):
            _, size, digest, _ = follower.chunk(number)
            out = bytearray(size)
            codec.decode_into(*reader.body(number), memoryview(out))
            assert blake3(out).digest() == digest
        late = conversion.follow(follower.resume_from())
        await conversion.feed(tar[len(tar) // 2 :])
        result = await conversion.finish()
    async for piece in late:
        follower.feed(piece)
    assert follower.sealed is not None
    assert follower.sealed.pack_id.hex() == result.pack_id
    assert b"".join([piece async for piece in stream]).endswith(bytes.fromhex(result.pack_id))
    whole = b"".join([piece async for piece in conversion.follow()])
    assert whole == store.index_bytes(result.pack_id)
    assert b"".join([piece async for piece in conversion.follow(5)]) == store.index_bytes(result.pack_id, 5)
    assert [piece async for piece in conversion.follow(10_000)] == []


async def test_a_follower_gets_the_seal_only_when_the_pack_has_its_name(store: LocalStore, workers: Workers) -> None:
    async with Conversion(store, workers, LAYER) as conversion, asyncio.TaskGroup() as group:

        async def follow() -> str | None:
            follower = IndexFollower()
            async for piece in conversion.follow():
                follower.feed(piece)
                if follower.sealed is not None:
                    return store.find(LAYER)
            return None

        task = group.create_task(follow())
        await conversion.feed(GZIP)
        result = await conversion.finish()
    assert task.result() == result.pack_id


def tar_with(**changes: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("x")
        for name, value in changes.items():
            setattr(info, name, value)
        tar.addfile(info)
    return out.getvalue()


BAD: dict[str, tuple[bytes, type[ImgdistError]]] = {
    "hard link to a lower layer": (tar_with(type=tarfile.LNKTYPE, linkname="elsewhere"), DeclinedError),
    "not a tar": (b"this is no tar at all" * 100, CorruptError),
    "cut tar": (TAR[: len(TAR) // 2], CorruptError),
    "cut gzip": (GZIP[:-20], CorruptError),
    "garbage behind gzip": (GZIP + b"garbage", CorruptError),
    "bomb": (zstandard.ZstdCompressor().compress(bytes(3 << 29)), DeclinedError),
}


@pytest.mark.parametrize("kind", BAD)
async def test_bad_layers_leave_nothing(store: LocalStore, workers: Workers, tmp_path: Path, kind: str) -> None:
    layer, error = BAD[kind]
    conversion = Conversion(store, workers, digest_of(layer))
    with pytest.raises(error, match=digest_of(layer)):
        async with conversion:
            for at in range(0, len(layer), 5000):
                await conversion.feed(layer[at : at + 5000])
            await conversion.finish()
    assert parts(store, tmp_path) == []
    assert store.find(digest_of(layer)) is None
    with pytest.raises(error):
        async for _ in conversion.follow():
            pass


@pytest.mark.parametrize("kind", ["cut tar", "not a tar", "hard link to a lower layer"])
def test_the_converter_alone_refuses_bad_layers_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    layer, error = BAD[kind]
    (tmp_path / "layer").write_bytes(layer)
    with pytest.raises(error):
        convert_file(tmp_path / "layer", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(NotFoundError):
        convert_file(tmp_path / "nowhere", tmp_path / "out")


async def test_another_diff_id_than_promised_is_not_sealed(store: LocalStore, workers: Workers, tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="configuration says"):
        await convert(store, workers, GZIP, diff_id="sha256:" + "00" * 32)
    assert parts(store, tmp_path) == []


async def worker_of(workers: Workers, conversion: Conversion) -> int:
    """The one worker that runs, once it does."""
    await anext(conversion.follow())
    assert workers.server_pid is not None
    [worker] = children_of(workers.server_pid)
    return worker


async def test_a_killed_worker_fails_the_conversion_and_leaves_nothing(
    store: LocalStore, workers: Workers, tmp_path: Path
) -> None:
    conversion = Conversion(store, workers, LAYER)
    with pytest.raises(TemporaryError, match="signal 9"):
        async with conversion:
            await conversion.feed(GZIP[: len(GZIP) // 2])
            os.kill(await worker_of(workers, conversion), signal.SIGKILL)
            await conversion.finish()
    assert parts(store, tmp_path) == []
    assert await convert(store, workers, GZIP)


async def test_feeding_a_dead_worker_says_why(store: LocalStore, workers: Workers) -> None:
    noise = random.Random(3).randbytes(1 << 20)
    with pytest.raises(TemporaryError, match="signal 9"):
        async with Conversion(store, workers, LAYER) as conversion:
            os.kill(await worker_of(workers, conversion), signal.SIGKILL)
            while True:
                await conversion.feed(noise)


async def test_cancellation_kills_the_worker_and_ends_followers(
    store: LocalStore, workers: Workers, tmp_path: Path
) -> None:
    fed = asyncio.Event()
    conversion = Conversion(store, workers, LAYER)

    async def run() -> None:
        async with conversion:
            await conversion.feed(GZIP[: len(GZIP) // 2])
            fed.set()
            await asyncio.Event().wait()

    async def follow() -> None:
        async for _ in conversion.follow():
            pass

    task = asyncio.create_task(run())
    await fed.wait()
    pid = await worker_of(workers, conversion)
    follower = asyncio.create_task(follow())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TemporaryError, match="abandoned"):
        await follower
    assert not Path(f"/proc/{pid}").exists()
    assert parts(store, tmp_path) == []


async def test_leaving_early_keeps_nothing_even_of_a_whole_layer(
    store: LocalStore, workers: Workers, tmp_path: Path
) -> None:
    async with Conversion(store, workers, LAYER) as conversion:
        await conversion.feed(GZIP)
    assert parts(store, tmp_path) == []
    assert store.find(LAYER) is None


async def test_the_worker_is_confined(store: LocalStore, workers: Workers) -> None:
    async with Conversion(store, workers, LAYER) as conversion:
        await conversion.feed(GZIP[: len(GZIP) // 2])
        proc = Path(f"/proc/{await worker_of(workers, conversion)}")
        limits = {line[:26].strip(): line[26:].split()[0] for line in (proc / "limits").read_text().splitlines()}
        assert int(limits["Max address space"]) < 8 << 30
        assert limits["Max core file size"] == "0"
        assert int(limits["Max open files"]) <= 64
        niceness = int((proc / "stat").read_text().rpartition(")")[2].split()[16])
        assert niceness == min(os.getpriority(os.PRIO_PROCESS, 0) + 5, 19)

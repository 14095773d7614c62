"""The supernode as a process, against Debian's registry and against one that lies."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from blake3 import blake3
from fake_registry import FakeRegistry, answer, cut_after, digest_of, serving, tar_gz
from parts import require
from supernode_rig import layer_tree, push_image, read_pack, supernode, url_of

from agent.supernode_client import SupernodeClient
from imgdist.demo.ports import free_port
from imgdist.demo.processes import wait_until
from imgdist.demo.registry import registry
from imgdist.errors import CorruptError, DeclinedError, TemporaryError
from imgdist.pack.index import Index
from imgdist.wire.control import Resolution

LAYERS = (layer_tree(1), layer_tree(2, 5), layer_tree(3, 1))


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[str]:
    require(shutil.which("docker-registry"), "docker-registry")
    with registry(tmp_path / "reg", f"127.0.0.1:{free_port()}") as address:
        yield address


async def indexes(client: SupernodeClient, resolved: Resolution) -> list[Index]:
    followed = await asyncio.gather(*(client.follow_index(layer.digest) for layer in resolved.layers))
    return [index for index, _ in followed]


async def figures(directory: Path) -> dict[str, float]:
    """/metrics as a table."""
    connector = aiohttp.UnixConnector(str(directory / "s.sock"))
    async with aiohttp.ClientSession(connector=connector) as http, http.get("http://x/metrics") as response:
        lines = [line for line in (await response.text()).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def check_chunks(image: bytes, index: Index) -> None:
    for number in range(index.chunk_count):
        start = index.start(number)
        assert blake3(image[start : start + index.size(number)]).digest() == index.digest(number)


async def test_many_nodes_at_once_cost_the_registry_one_read(tmp_path: Path, debian: str) -> None:
    reference, digest, size_bytes = push_image(tmp_path / "i", debian, "1", *LAYERS)
    with supernode(tmp_path, debian):
        clients = [SupernodeClient(url_of(tmp_path)) for _ in range(8)]
        try:
            resolved = await asyncio.gather(*(client.resolve(reference) for client in clients))
            assert {image.manifest_digest for image in resolved} == {digest}
            found = await asyncio.gather(*map(indexes, clients, resolved))
            assert len({tuple(index.pack_id for index in one) for one in found}) == 1
            for layer, index in zip(resolved[0].layers, found[0], strict=True):
                assert index.diff_id == layer.diff_id
                check_chunks(read_pack(resolved[0].chunks or "", index), index)
            again = await clients[0].resolve(reference)
            assert [layer.state for layer in again.layers] == ["ready"] * 3
            assert [layer.image_bytes for layer in again.layers] == [index.image_size for index in found[0]]
        finally:
            for client in clients:
                await client.close()
        seen = await figures(tmp_path)
    assert seen[f'imgdist_registry_bytes_total{{registry="{debian}"}}'] <= 1.01 * size_bytes
    assert seen["imgdist_convert_seconds_count"] == 3
    assert seen['imgdist_layers{state="ready"}'] == 3
    assert seen['imgdist_store_bytes{what="packs"}'] > 0


async def test_a_restart_needs_no_registry(tmp_path: Path) -> None:
    require(shutil.which("docker-registry"), "docker-registry")
    address = f"127.0.0.1:{free_port()}"
    with registry(tmp_path / "reg", address):
        reference, digest, _ = push_image(tmp_path / "i", address, "1", *LAYERS)
        with supernode(tmp_path, address) as process:
            async with SupernodeClient(url_of(tmp_path)) as client:
                before = await client.resolve(reference)
                packs = [index.pack_id for index in await indexes(client, before)]
            assert process.stop(signal.SIGKILL) == -signal.SIGKILL
    with supernode(tmp_path, address):
        async with SupernodeClient(url_of(tmp_path)) as client:
            by_digest = await client.resolve(reference.replace(":1", "") + f"@{digest}")
            by_tag = await client.resolve(reference)
            for resolved in (by_digest, by_tag):
                assert resolved.manifest_digest == digest
                assert [layer.pack_id for layer in resolved.layers] == [pack.hex() for pack in packs]
            for index in await indexes(client, by_tag):
                check_chunks(read_pack(by_tag.chunks or "", index), index)
            chain = await client.chain(by_tag.layers[-1].chain_id)
            assert chain is not None
            assert chain.layer_digest == by_tag.layers[-1].digest
            with pytest.raises(TemporaryError):
                await client.resolve(reference + "-other")


async def test_the_chunk_process_is_started_again(tmp_path: Path, debian: str) -> None:
    reference, _, _ = push_image(tmp_path / "i", debian, "1", LAYERS[1])
    with supernode(tmp_path, debian) as process:
        async with SupernodeClient(url_of(tmp_path)) as client:
            resolved = await client.resolve(reference)
            (index,) = await indexes(client, resolved)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            (child,) = [int(c) for c in children if b"chunkserver" in Path(f"/proc/{c}/cmdline").read_bytes()]
            os.kill(child, signal.SIGKILL)
            wait_until(lambda: "starting it again" in process.written(), "the restart's log line")
            while (await client.status())["chunks"] is None:  # noqa: ASYNC110 - each turn waits for the supernode
                await asyncio.sleep(0)
            check_chunks(read_pack(resolved.chunks or "", index), index)


async def test_a_layer_that_is_cut_and_refused_still_arrives(tmp_path: Path) -> None:
    layer = tar_gz(layer_tree(4))
    async with serving(FakeRegistry()) as fake:
        fake.add_image([layer], "1")
        fake.faults = [
            answer(429, "/manifests/", Retry_After="0"),
            answer(502, digest_of(layer)),
            cut_after(layer, len(layer) // 2, digest_of(layer)),
        ]
        with supernode(tmp_path, fake.host):
            async with SupernodeClient(url_of(tmp_path)) as client:
                resolved = await client.resolve(f"{fake.host}/a/b:1")
                (index,) = await indexes(client, resolved)
                check_chunks(read_pack(resolved.chunks or "", index), index)


async def test_a_disk_that_refuses_the_blob_fails_no_conversion(tmp_path: Path) -> None:
    layer = tar_gz(layer_tree(4))
    full = {"call": "supernode.blobs.spool.Spool._write_chunks", "do": "ENOSPC", "at": 2, "times": 1000}
    async with serving(FakeRegistry()) as fake:
        fake.add_image([layer], "1")
        with supernode(tmp_path, fake.host, hooks=[full]) as process:
            async with SupernodeClient(url_of(tmp_path)) as client:
                resolved = await client.resolve(f"{fake.host}/a/b:1")
                (index,) = await indexes(client, resolved)
                check_chunks(read_pack(resolved.chunks or "", index), index)
            assert "is not kept" in process.written()
    assert fake.paths(part=digest_of(layer)) == [f"/v2/a/b/blobs/{digest_of(layer)}"] * 2
    assert [path.name for path in (tmp_path / "sn/layers").iterdir()] == [f"{digest_of(layer)[7:]}-v0"]


async def test_wrong_bytes_are_told_and_leave_nothing(tmp_path: Path) -> None:
    good = tar_gz(layer_tree(5, 3))
    async with serving(FakeRegistry()) as fake:
        fake.add_image([good], "1")
        digest = digest_of(good)
        fake.blobs[digest] = good[:-9] + bytes(9)
        with supernode(tmp_path, fake.host):
            async with SupernodeClient(url_of(tmp_path)) as client:
                await client.resolve(f"{fake.host}/a/b:1")
                with pytest.raises(CorruptError):
                    await client.follow_index(digest)
                assert (await client.layer(digest)).state == "absent"
                assert sorted(path.name for path in (tmp_path / "sn/packs").iterdir()) == []
                fake.blobs[digest] = good
                # Held off for a second, by the supernode's own clock.
                while (await client.resolve(f"{fake.host}/a/b:1")).layers[0].state == "absent":  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                assert (await client.follow_index(digest))[0].chunk_count > 0


async def test_a_diff_id_that_is_not_the_layers_is_refused(tmp_path: Path) -> None:
    async with serving(FakeRegistry()) as fake:
        fake.add_image([tar_gz({"a": b"1"})], "1", diff_ids=["sha256:" + "0" * 64])
        with supernode(tmp_path, fake.host):
            async with SupernodeClient(url_of(tmp_path)) as client:
                resolved = await client.resolve(f"{fake.host}/a/b:1")
                with pytest.raises(CorruptError, match="sha256:0000"):
                    await client.follow_index(resolved.layers[0].digest)
                kept = [path.name for path in (tmp_path / "sn/layers").iterdir()]
                assert kept == [f"{resolved.layers[0].digest[7:]}-v10000"], "the blob is as its registry has it"


async def test_what_is_no_tar_and_what_is_unknown(tmp_path: Path) -> None:
    async with serving(FakeRegistry()) as fake:
        fake.add_image([b"no layer at all" * 1000], "junk", diff_ids=["sha256:" + "0" * 64])
        fake.add_image([tar_gz({"a": b"1"})], "odd", media_type="application/vnd.example.layer")
        with supernode(tmp_path, fake.host):
            async with SupernodeClient(url_of(tmp_path)) as client:
                junk = await client.resolve(f"{fake.host}/a/b:junk")
                with pytest.raises((CorruptError, DeclinedError)):
                    await client.follow_index(junk.layers[0].digest)
                odd = await client.resolve(f"{fake.host}/a/b:odd")
                assert odd.layers[0].state == "declined"
                assert "application/vnd.example.layer" in (odd.layers[0].reason or "")


def start_failing(*arguments: str) -> tuple[int, str]:
    argv = [sys.executable, "-m", "imgdist.cli", "supernode", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_what_keeps_it_from_starting_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with supernode(tmp_path):
        cases = [
            (1, "another supernode uses it", "--root", f"{tmp_path}/sn", "--listen", f"unix://{tmp_path}/x.sock"),
            (1, "another process uses the address", "--root", f"{tmp_path}/r", "--listen", url_of(tmp_path)),
            (1, "writable directory", "--root", f"{tmp_path}/file", "--listen", f"unix://{tmp_path}/x.sock"),
            (2, "--allow-plain", "--root", f"{tmp_path}/r", "--listen", f"0.0.0.0:{free_port()}"),
            (2, "too long", "--root", f"{tmp_path}/r", "--listen", f"unix://{tmp_path}/{'x' * 100}"),
        ]
        for code, words, *arguments in cases:
            seen, text = start_failing(*arguments)
            assert (seen, len(text.splitlines())) == (code, 1), text
            assert words in text


def test_sigterm_stops_cleanly_and_leaves_no_socket(tmp_path: Path) -> None:
    with supernode(tmp_path) as process:
        assert process.stop() == 0
        assert process.written().splitlines() == ["ready"]
    assert not list(tmp_path.glob("*.sock"))


def test_under_a_holder_it_tells_the_holder_and_goes_with_it(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [sys.executable, "-m", "imgdist.cli", "supernode", "--root", str(tmp_path / "sn"), "--listen"]
    argv.append(url_of(tmp_path))
    env = {**os.environ, "IMGDIST_HOLDER_FD": str(theirs.fileno()), "IMGDIST_HOLDER_ROLE": "supernode"}
    with ours, subprocess.Popen(argv, stderr=subprocess.PIPE, env=env, pass_fds=[theirs.fileno()], text=True) as child:
        theirs.close()
        ours.settimeout(30)
        assert json.loads(ours.recv(4096))["role"] == "supernode"
        ours.send(b'{"v": 1, "names": []}')
        assert json.loads(ours.recv(4096)) == {"ready": True}
        ours.close()
        _, written = child.communicate(timeout=30)
        assert (child.returncode, written) == (0, "")

"""The chunk server process: real packs, sealed and in progress, over TCP and unix sockets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from imgdist.errors import NotFoundError, TemporaryError
from imgdist.pack import codec
from imgdist.pack.records import Chunk
from imgdist.wire.address import Address
from imgdist.wire.client import ChunkClient
from imgdist.wire.messages import Priority
from imgdist.wire.requests import AnyRequest, ChunkRequest
from supernode.store.writer import PackWriter

LAYER_HEX = "ab" * 32
RAW = [os.urandom(4096) * 64, bytes(8192), b"text" * 1024]


@contextmanager
def running(root: Path, listen: str) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    command = [sys.executable, "-m", "supernode.chunkserver", "--root", str(root), "--listen", listen]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, Address.parse(json.loads(process.stdout.readline())["address"])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """An in-progress pack of three chunks under `tmp_path`."""
    directory = tmp_path / "packs" / f".part-{LAYER_HEX}-v0"
    directory.mkdir(parents=True)
    (tmp_path / "layers").mkdir()
    writer = PackWriter(directory, f"sha256:{LAYER_HEX}")
    for raw in RAW:
        encoding, body = codec.encode(raw)
        writer.add_chunk(Chunk(len(raw) // 4096, blake3(raw).digest(), zero=encoding == codec.ZERO), encoding, body)
    writer.close()
    return directory


def fetch_all(client: ChunkClient, name: str) -> list[bytes]:
    got: list[bytes] = []

    def on_chunk(number: int, encoding: int, body: memoryview) -> None:
        out = bytearray(len(RAW[number]))
        codec.decode_into(encoding, body, memoryview(out))
        got.append(bytes(out))

    client.fetch(ChunkRequest(name, tuple(range(len(RAW))), Priority.DEMAND), on_chunk)
    return got


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix://{}/chunks.sock"])
def test_a_pack_is_served_before_and_after_its_seal(tmp_path: Path, part: Path, listen: str) -> None:
    with running(tmp_path, listen.format(tmp_path)) as (process, address):
        client = ChunkClient(address)
        in_progress, sealed = f"sha256-{LAYER_HEX}-v0", "cd" * 32
        assert fetch_all(client, in_progress) == RAW
        with pytest.raises(NotFoundError, match="not yet"):
            client.fetch(ChunkRequest(in_progress, (3,), Priority.DEMAND), lambda number, encoding, body: None)
        with pytest.raises(NotFoundError):
            fetch_all(client, sealed)
        part.rename(tmp_path / "packs" / sealed)
        (tmp_path / "layers" / f"{LAYER_HEX}-v0").symlink_to(f"../packs/{sealed}")
        assert fetch_all(client, sealed) == fetch_all(client, in_progress) == RAW
        client.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert not (tmp_path / "chunks.sock").exists()


def test_the_swarm_gets_each_chunk_once_and_then_waits_for_it(tmp_path: Path, part: Path) -> None:
    with running(tmp_path, "127.0.0.1:0") as (_, address):
        name, got = f"sha256-{LAYER_HEX}-v0", []
        first, second = ChunkClient(address, node="10.0.0.1:7651"), ChunkClient(address, node="10.0.0.2:7651")

        def ask(client: ChunkClient, lacks: int) -> tuple[int, ...]:
            chosen: list[tuple[int, ...]] = []
            client.fetch(
                AnyRequest.among(name, lacks, 2, Priority.FILL),
                lambda number, encoding, body: got.append(number),
                on_numbers=chosen.append,
            )
            return chosen[0]

        numbers = [*ask(first, 0b111), *ask(second, 0b111)]
        assert sorted(numbers[:3]) == [0, 1, 2]
        assert got == numbers
        with pytest.raises(TemporaryError, match="others got these") as caught:
            ask(second, 1 << numbers[0])
        assert caught.value.retry_after_s is not None
        with pytest.raises(NotFoundError):
            ask(second, 0b11000)
        first.close()
        second.close()


def test_what_was_sent_is_reported(tmp_path: Path, part: Path) -> None:
    with running(tmp_path, f"unix://{tmp_path}/chunks.sock") as (process, address):
        client, received = ChunkClient(address), 0

        def count(number: int, encoding: int, body: memoryview) -> None:
            nonlocal received
            received += len(body)

        client.fetch(ChunkRequest(f"sha256-{LAYER_HEX}-v0", tuple(range(len(RAW))), Priority.FILL), count)
        client.close()
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"sent": {"demand": 0, "trace": 0, "fill": received}}
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == ""


def test_an_address_in_use_is_one_clear_line(tmp_path: Path) -> None:
    listener = Address.parse("127.0.0.1:0").listen()
    port = listener.getsockname()[1]
    command = [sys.executable, "-m", "supernode.chunkserver", "--root", str(tmp_path), "--listen", f"127.0.0.1:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    listener.close()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr

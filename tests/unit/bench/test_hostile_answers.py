"""Hostile answers are what they claim: none of them gives a client a chunk that is right."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from blake3 import blake3

from bench.hostile_answers import LIES, Script, bomb_frame, honest
from imgdist.errors import CorruptError, ImgdistError
from imgdist.pack import BLOCK, codec, records
from imgdist.pack.index import Index, IndexBuilder
from imgdist.pack.records import Chunk, DiffId, Metadata, Seal, Superblock, TarSplit
from imgdist.wire.address import Address
from imgdist.wire.client import ChunkClient
from imgdist.wire.messages import BODY_MAX, Priority
from imgdist.wire.requests import ChunkRequest

_CHUNKS = [random.Random(number).randbytes(64) * (blocks * 64) for number, blocks in enumerate((4, 64, 1, 2))]
_ENCODED = [codec.encode(chunk) for chunk in _CHUNKS]


def _body(number: int) -> tuple[int, bytes]:
    encoding, body = _ENCODED[number]
    return encoding, bytes(body)


@pytest.fixture(scope="module")
def index() -> Index:
    builder = IndexBuilder("sha256:" + "ab" * 32)
    body: list[records.Record] = [Chunk(len(raw) // BLOCK, blake3(raw).digest()) for raw in _CHUNKS]
    body += [Metadata(1, 1), Superblock(b"superblock"), DiffId(b"\xdd" * 32), TarSplit(b"\xee" * 32, 1)]
    stream = b"".join(builder.add(record) for record in body)
    return Index.load(builder.header + stream + records.encode(Seal(builder.pack_id())))


@contextmanager
def _serving(script: Script) -> Iterator[Address]:
    """Answers one request with `script`; a wait in it lasts until the client has gone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as peer:
                peer.recv(8192)
                for piece in script:
                    if isinstance(piece, bytes):
                        peer.sendall(piece)
                    else:
                        peer.recv(1)
                        return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Address("127.0.0.1", listener.getsockname()[1])
        finally:
            thread.join()


def _right(index: Index, address: Address, numbers: Sequence[int]) -> list[int]:
    """The chunks that a client gets right, until it raises what it raises."""
    right = []

    def check(number: int, encoding: int, body: memoryview) -> None:
        raw = bytearray(index.size(number))
        codec.decode_into(encoding, body, memoryview(raw))
        if blake3(raw).digest() != index.digest(number):
            raise CorruptError(f"chunk {number} is wrong")
        right.append(number)

    client = ChunkClient(address, read_timeout_s=0.2)
    try:
        client.fetch(ChunkRequest("0" * 64, tuple(numbers), Priority.FILL), check)
    finally:
        client.close()
    return right


@pytest.mark.parametrize("lie", LIES)
def test_no_lie_passes(lie: str, index: Index) -> None:
    with _serving(LIES[lie]([1, 2], index, _body)) as address, pytest.raises(ImgdistError):
        _right(index, address, [1, 2])


def test_the_truth_passes(index: Index) -> None:
    with _serving(honest([1, 2], index, _body)) as address:
        assert _right(index, address, [1, 2]) == [1, 2]


@pytest.mark.parametrize("size", [4096, 8192, 262144])
def test_a_bomb_passes_for_a_frame_of_its_size_until_it_is_decoded(size: int) -> None:
    frame = bomb_frame(size)
    assert len(frame) <= BODY_MAX
    with pytest.raises(CorruptError, match="does not decode"):
        codec.decode_into(codec.ZSTD, frame, memoryview(bytearray(size)))

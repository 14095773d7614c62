"""What an agent shows to its neighbours: kept bodies first, then raw chunks, and nothing that is not proven."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_layers import MadeLayer

from agent.frames import Frames
from agent.swarm.shelf import Shelf
from imgdist.errors import NotFoundError
from imgdist.pack import codec
from imgdist.wire.address import Address
from imgdist.wire.answer import Row
from imgdist.wire.client import ChunkClient, Told
from imgdist.wire.messages import Priority
from imgdist.wire.numbers import NUMBERS_MAX
from imgdist.wire.requests import ChunkRequest
from imgdist.wire.server import ChunkServer

LAYER_NAME = "sha256-" + "ab" * 32 + "-v0"


class Store:
    """A layer on disk, of which `present` chunks are there."""

    node = 5
    is_proven = True

    def __init__(self, directory: Path, layer: MadeLayer) -> None:
        self.index = layer.index
        image = bytearray(layer.index.image_size)
        for chunk, raw in enumerate(layer.chunks):
            image[layer.index.start(chunk) : layer.index.start(chunk) + len(raw)] = raw
        (directory / "image").write_bytes(image)
        self.image_fd = os.open(directory / "image", os.O_RDWR | os.O_CLOEXEC)
        self.frames: Frames | None = Frames(directory / "frames")
        self.present: set[int] = set()
        self.users = 0
        self.closed = False

    @contextlib.contextmanager
    def use(self) -> Iterator[bool]:
        self.users += 1
        try:
            yield not self.closed
        finally:
            self.users -= 1

    def has(self, chunk: int) -> bool:
        assert self.users
        return chunk in self.present

    def close(self) -> None:
        assert not self.users, "nobody may be kept waiting"
        self.closed = True
        os.close(self.image_fd)


@pytest.fixture
def layer() -> MadeLayer:
    return MadeLayer([4, 64, 3, 1, 2], zero=[3])


@pytest.fixture
def store(tmp_path: Path, layer: MadeLayer) -> Iterator[Store]:
    made = Store(tmp_path, layer)
    yield made
    if not made.closed:
        made.close()


@pytest.fixture
def shelf(store: Store, layer: MadeLayer) -> Shelf:
    return Shelf({layer.name: store, LAYER_NAME: store}.get)


def read(row: Row) -> tuple[int, bytes]:
    return row.encoding, os.pread(row.fd, row.length, row.offset)


def test_a_kept_body_goes_before_the_image(shelf: Shelf, store: Store, layer: MadeLayer) -> None:
    encoding, body = layer.encoded[1]
    store.present = {0, 1, 3}
    assert store.frames is not None
    store.frames.append(1, encoding, body)
    reader = shelf.open(LAYER_NAME)
    assert reader is not None
    assert read(reader.row(1)) == (encoding, bytes(body))
    assert read(reader.row(0)) == (codec.RAW, layer.chunks[0])
    assert read(reader.row(3)) == (codec.ZERO, b"")
    for absent in (2, 4, 5, 1 << 31):
        with pytest.raises(NotFoundError):
            reader.row(absent)


def test_what_nobody_vouches_for_is_not_shown(shelf: Shelf, store: Store, layer: MadeLayer) -> None:
    store.present, store.is_proven = {0}, False
    reader = shelf.open(layer.name)
    assert reader is not None
    with pytest.raises(NotFoundError):
        reader.row(0)
    assert shelf.open("00" * 32) is None


def test_uploads_hold_up_no_close_and_read_what_they_had(shelf: Shelf, store: Store, layer: MadeLayer) -> None:
    store.present = {0, 1}
    reader = shelf.open(layer.name)
    assert reader is not None
    row = reader.row(1)
    store.close()
    assert read(row) == (codec.RAW, layer.chunks[1])
    with pytest.raises(NotFoundError):
        reader.row(0)


def test_no_descriptor_is_left(shelf: Shelf, store: Store, layer: MadeLayer) -> None:
    store.present = {0, 1}
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        reader = shelf.open(layer.name)
        assert reader is not None
        reader.row(0), reader.row(1)
    del reader
    assert len(os.listdir("/proc/self/fd")) == before


def test_news_is_what_came_since(shelf: Shelf, layer: MadeLayer) -> None:
    for chunk in (4, 2):
        shelf.arrived(Store.node, chunk)
    reader = shelf.open(layer.name)
    assert reader is not None
    assert reader.arrivals.since(0) == ((4, 2), 2)
    assert reader.arrivals.since(2) == ((), 2)
    shelf.arrived(Store.node, 9)
    shelf.arrived(6, 1)
    assert reader.arrivals.since(1) == ((2, 9), 3)
    for chunk in range(1000):
        shelf.arrived(Store.node, chunk)
    numbers, seen = reader.arrivals.since(3)
    assert (numbers, seen) == (tuple(range(1000 - NUMBERS_MAX, 1000)), 1003)
    shelf.forget(Store.node)
    again = shelf.open(layer.name)
    assert again is not None
    assert again.arrivals.since(3) == ((), 0)


def test_a_neighbour_gets_every_chunk_and_the_news(shelf: Shelf, store: Store, layer: MadeLayer) -> None:
    assert store.frames is not None
    for chunk in (0, 1):
        encoding, body = layer.encoded[chunk]
        store.frames.append(chunk, encoding, body)
    store.present = {0, 1, 2, 3}
    listener = Address.parse("127.0.0.1:0").listen()
    server = ChunkServer(shelf, [listener])
    server.start()
    client = ChunkClient(Address.parse(f"127.0.0.1:{listener.getsockname()[1]}"))
    got: dict[int, bytes] = {}
    told: list[Told] = []

    def on_chunk(number: int, encoding: int, body: memoryview) -> None:
        out = memoryview(bytearray(len(layer.chunks[number])))
        codec.decode_into(encoding, body, out)
        got[number] = bytes(out)

    try:
        shelf.arrived(Store.node, 3)
        client.fetch(ChunkRequest(layer.name, (0, 1, 2, 3), Priority.FILL), on_chunk, told.append)
        shelf.arrived(Store.node, 4)
        client.fetch(ChunkRequest(layer.name, (1,), Priority.FILL), on_chunk, told.append)
        client.fetch(ChunkRequest(layer.name, (1,), Priority.FILL), on_chunk, told.append)
    finally:
        client.close()
        server.stop()
    assert got == dict(enumerate(layer.chunks[:4]))
    assert [answer.have for answer in told] == [(3,), (4,), ()]


def test_what_is_on_its_way_is_waited_for(store: Store, layer: MadeLayer) -> None:
    expected = {1, 2}
    shelf = Shelf({layer.name: store}.get, lambda node, chunk: node == store.node and chunk in expected)
    reader = shelf.open(layer.name)
    assert reader is not None
    reader.wait([0, 4], 60)  # nobody brings those
    store.present = {0}
    reader.wait([0], 60)  # here already

    waiting = threading.Thread(target=reader.wait, args=([0, 1, 2], 60))
    waiting.start()
    store.present |= {1}
    shelf.arrived(store.node, 1)
    waiting.join(0.05)
    assert waiting.is_alive(), "one of them is still to come"
    store.present |= {2}
    shelf.arrived(store.node, 2)
    waiting.join(10)
    assert not waiting.is_alive()


def test_what_does_not_come_after_all_is_waited_for_no_longer(store: Store, layer: MadeLayer) -> None:
    expected = {1}
    shelf = Shelf({layer.name: store}.get, lambda node, chunk: chunk in expected)
    reader = shelf.open(layer.name)
    assert reader is not None
    reader.wait([1], 0.01)  # time is over
    waiting = threading.Thread(target=reader.wait, args=([1], 60))
    waiting.start()
    expected.clear()
    waiting.join(10)
    assert not waiting.is_alive()

"""A supernode process on unix sockets, and small images pushed to whatever registry a suite has."""

from __future__ import annotations

import json
import random
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from faults import edge
from faults.edge import Hook

from imgdist.demo.image import ImageWriter, add_file
from imgdist.demo.processes import Process
from imgdist.demo.push import push
from imgdist.pack import codec
from imgdist.pack.index import Index
from imgdist.wire.address import Address
from imgdist.wire.client import ChunkClient
from imgdist.wire.messages import Priority
from imgdist.wire.requests import ChunkRequest


@contextmanager
def supernode(directory: Path, *registries: str, hooks: Sequence[Hook] = ()) -> Iterator[Process]:
    """A supernode with root `directory`/sn, on `directory`/s.sock, that speaks plain HTTP to `registries`; `hooks`:
    what fails in its process."""
    module = ["-m", "imgdist.cli"] if not hooks else [edge.__file__, json.dumps(hooks), "imgdist.cli"]
    argv = [sys.executable, *module, "supernode", "--root", str(directory / "sn")]
    argv += ["--listen", url_of(directory), "--chunk-listen", f"unix://{directory}/c.sock"]
    for registry in registries:
        argv += ["--plain-http", registry]
    with Process("supernode", argv, directory / "supernode.log") as process:
        process.wait_for_line("ready")
        yield process


def url_of(directory: Path) -> str:
    return f"unix://{directory}/s.sock"


def layer_tree(seed: int, files: int = 40) -> dict[str, bytes]:
    """Files that compress a little, the same for the same seed."""
    chance = random.Random(seed)
    return {
        f"d{seed}/f{number}": chance.randbytes(chance.randrange(20_000)) + bytes(chance.randrange(60_000))
        for number in range(files)
    }


def push_image(directory: Path, registry: str, tag: str, *layers: dict[str, bytes]) -> tuple[str, str, int]:
    """Push an image of such layers; (reference, manifest digest, bytes of all blobs and the manifest)."""
    writer = ImageWriter(directory)
    for number, files in enumerate(layers):

        def fill(tar: tarfile.TarFile, files: dict[str, bytes] = files) -> None:
            for name, content in files.items():
                add_file(tar, name, content)

        writer.add_layer(f"layer {number}", fill)
    image = writer.finish(command=["/bin/true"])
    reference, digest = push(image, registry, "test/image", tag)
    return reference, digest, image.layers_bytes + image.config.size_bytes + image.manifest.size_bytes


def read_pack(chunks: str, index: Index) -> bytes:
    """The layer image of a pack, every chunk fetched from `chunks` and decoded."""
    image = bytearray(index.block0().ljust(index.image_size, b"\0"))
    view = memoryview(image)
    client = ChunkClient(Address.parse(chunks))

    def put(number: int, encoding: int, body: memoryview) -> None:
        start = index.start(number)
        codec.decode_into(encoding, body, view[start : start + index.size(number)])

    try:
        wanted = [number for number in range(index.chunk_count) if not index.is_zero(number)]
        for at in range(0, len(wanted), 64):
            client.fetch(ChunkRequest(index.pack_id.hex(), tuple(wanted[at : at + 64]), Priority.FILL), put)
    finally:
        client.close()
    return bytes(image)

"""The image of miss-latency: one large file with the content of real programs, and a tree of many small ones."""

from __future__ import annotations

import io
import random
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

from imgdist.demo.image import Image, ImageWriter, member
from imgdist.pack import CHUNK_MAX

BLOB = "blob"
"""A file whose chunks are all of CHUNK_MAX bytes, and the first ones of their layer: chunk i holds its i-th piece."""
TREE = "tree"
FILES = 38_000
_LARGE_DIRECTORIES = (5000, 1500, *[400] * 10, *[200] * 10)
"""What Debian with Python and a few scientific packages has of directories beyond one block of entries; the rest of
the files stands in directories of up to 30."""
_SOURCES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/bin", "/usr/lib")


def make(directory: Path, size: int) -> Image:
    """The image in `directory`, its blob of about `size` bytes kept beside it as `content`."""
    writer = ImageWriter(directory, level=1)
    content = directory / "content"
    with content.open("wb") as out:
        for piece in _programs():
            out.write(piece)
            if out.tell() >= size:
                break
        out.truncate(out.tell() // CHUNK_MAX * CHUNK_MAX)

    def blob(tar: tarfile.TarFile) -> None:
        with content.open("rb") as file:
            tar.addfile(member(BLOB, size=content.stat().st_size, mode=0o644), file)

    writer.add_layer("a large file", blob)
    writer.add_layer("a tree of small files", _tree)
    return writer.finish(command=["/bin/true"])


def _programs() -> Iterator[bytes]:
    for source in [*map(Path, _SOURCES), Path(sysconfig.get_paths()["purelib"])]:
        for path in sorted(source.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path.read_bytes()


def _tree(tar: tarfile.TarFile) -> None:
    chance = random.Random(38)
    sizes = list(_LARGE_DIRECTORIES)
    while (rest := FILES - sum(sizes)) > 0:
        sizes.append(min(rest, chance.randint(1, 30)))
    chance.shuffle(sizes)
    tar.addfile(member(TREE, type=tarfile.DIRTYPE, mode=0o755))
    for number, size in enumerate(sizes):
        parent = f"{TREE}/{number // 100:02}-packages/module-{number:04}"
        if number % 100 == 0:
            tar.addfile(member(str(Path(parent).parent), type=tarfile.DIRTYPE, mode=0o755))
        tar.addfile(member(parent, type=tarfile.DIRTYPE, mode=0o755))
        for file in range(size):
            text = f"# {parent} {file}\n".encode() * chance.randint(1, 30)
            tar.addfile(member(f"{parent}/{file:04}_{chance.getrandbits(40):x}.py", size=len(text)), io.BytesIO(text))

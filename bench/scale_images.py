"""Images of many layers and of large ones, made of numbers: each byte is known from its place."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from blake3 import blake3

from imgdist.demo.image import Image, ImageWriter, add_file, member

BLOCK_BYTES = 256 << 10
_SEED_BYTES = 8 << 10
FILES_EACH, FILE_BYTES = 16, 64 << 10
"""Of a layer of `of_layers`: 1 MiB, so that 128 of them are what an ordinary image weighs."""
Fill = Callable[[tarfile.TarFile], None]


class Numbers:
    """A file without an end to read from: each 256 KiB differ from all others, and compress to a thirtieth."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._offset = 0

    def read(self, size: int) -> bytes:
        """At most `size` bytes, at least one."""
        block, within = divmod(self._offset, BLOCK_BYTES)
        if not within:
            self._block = self.block(block)
        data = self._block[within : within + size]
        self._offset += len(data)
        return data

    def block(self, number: int) -> bytes:
        """The `number`-th 256 KiB."""
        seed = blake3(f"{self._seed} {number}".encode()).digest(length=_SEED_BYTES)
        return seed * (BLOCK_BYTES // _SEED_BYTES)


def of_layers(directory: Path, count: int, busybox: Path = Path("/bin/busybox")) -> tuple[Image, Image]:
    """An image of `count` layers, and its squashed twin: the same files in one."""
    base = _base(busybox)
    rest = [_numbered(number) for number in range(1, count)]
    many, one = ImageWriter(directory / "many", level=1), ImageWriter(directory / "one", level=1)
    for fill in (base, *rest):
        many.add_layer("a layer", fill)

    def all_of_it(tar: tarfile.TarFile) -> None:
        for fill in (base, *rest):
            fill(tar)

    one.add_layer("all of it", all_of_it)
    return many.finish(command=["/bin/sh"]), one.finish(command=["/bin/sh"])


def of_mounts(directory: Path, first: int, count: int, size_bytes: int) -> Image:
    """An image of `count` layers, numbered from `first` on, of one file each."""
    writer = ImageWriter(directory, level=1)
    for number in range(first, first + count):
        writer.add_layer("a layer", _large(f"{number:03}", {"file": size_bytes}))
    return writer.finish(command=["/file"])


def of_one_layer(directory: Path, fill: Fill) -> Image:
    """An image of one layer."""
    writer = ImageWriter(directory, level=1)
    writer.add_layer("one layer", fill)
    return writer.finish(command=["/bin/true"])


def large_files(sizes: dict[str, int]) -> Fill:
    """Files of `Numbers`, seeded by their names, of so many bytes each."""
    return _large("", sizes)


def many_files(count: int, size_bytes: int) -> Fill:
    """`count` files of `size_bytes`, 1000 a directory, beginning with their number; what follows is the same in all."""
    rest = Numbers("many").block(0)[:size_bytes]

    def fill(tar: tarfile.TarFile) -> None:
        for number in range(count):
            if number % 1000 == 0:
                tar.addfile(member(f"{number // 1000:03}", type=tarfile.DIRTYPE, mode=0o755))
            info = member(f"{number // 1000:03}/{number % 1000:03}", size=size_bytes, mode=0o644)
            tar.addfile(info, BytesIO((b"%08d" % number + rest)[:size_bytes]))

    return fill


def _base(busybox: Path) -> Fill:
    def fill(tar: tarfile.TarFile) -> None:
        for name in ("bin", "dev", "etc", "n", "proc", "sys"):
            tar.addfile(member(name, type=tarfile.DIRTYPE, mode=0o755))
        add_file(tar, "bin/busybox", busybox.read_bytes(), 0o755)
        for name in ("cat", "echo", "sh"):
            tar.addfile(member(f"bin/{name}", type=tarfile.SYMTYPE, linkname="busybox", mode=0o777))

    return fill


def _numbered(number: int) -> Fill:
    """Files that do not compress, as most of what images weigh."""

    def fill(tar: tarfile.TarFile) -> None:
        tar.addfile(member(f"n/{number:03}", type=tarfile.DIRTYPE, mode=0o755))
        for file in range(FILES_EACH):
            content = blake3(b"%d %d" % (number, file)).digest(length=FILE_BYTES)
            add_file(tar, f"n/{number:03}/{file:02}", content)

    return fill


def _large(prefix: str, sizes: dict[str, int]) -> Fill:
    def fill(tar: tarfile.TarFile) -> None:
        tar.copybufsize = BLOCK_BYTES  # type: ignore[attr-defined]  # 16 KiB otherwise: twice the time for 10 GB
        for name, size in sizes.items():
            tar.addfile(member(name, size=size, mode=0o644), Numbers(prefix + name))  # type: ignore[arg-type]

    return fill

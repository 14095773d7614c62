"""What the kernel and fsck.erofs say of layer images with large, long and many things in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from blake3 import blake3
from layer_image import Built, build_image
from lazy_images import mounted
from raw_tar import END, directory, file, hard_link, header, pax, record, symlink

from imgdist.erofs import LayerWriter
from imgdist.erofs.tar.split import reassemble
from imgdist.pack import BLOCK

_GIB = 1 << 30


def test_seventy_thousand_entries(tmp_path: Path) -> None:
    """Names before and after `.` and `..` in byte order, and a directory of hundreds of blocks."""
    names = [b"!%05d" % number for number in range(35_000)] + [b"%05d-\xff" % number for number in range(35_000)]
    build_image([b"".join(file(b"d/" + name) for name in reversed(names)) + END], tmp_path / "i")
    with mounted(tmp_path / "i", tmp_path / "m") as root:
        assert sorted(os.listdir(os.fsencode(root / "d"))) == sorted(names)
        for name in names[::5000]:
            assert os.lstat(os.path.join(os.fsencode(root), b"d", name)).st_size == 0
        assert not (root / "d/absent").exists()


@pytest.mark.parametrize("length", range(3900, 4096, 13))
def test_root_directory_that_nearly_fills_its_block(length: int, tmp_path: Path) -> None:
    """The root has a fixed place: its tail goes into a block of its own when it does not fit."""
    fixed = 2 * 12 + 3  # `.` and `..`
    names = [b"%02d" % number + b"n" * 200 for number in range(18)]
    rest = length - fixed - sum(12 + len(name) for name in names)
    names.append(b"x" * (rest - 12))
    built = build_image([b"".join(pax({b"path": name}) + file(b"f") for name in names) + END], tmp_path / "i")
    assert built.summary.inodes == 20
    with mounted(tmp_path / "i", tmp_path / "m") as root:
        assert sorted(os.listdir(os.fsencode(root))) == sorted(names)
        assert root.stat().st_size == length


def test_symlinks_and_small_files_beside_many_xattrs(tmp_path: Path) -> None:
    """What does not fit behind its inode goes into blocks, and nothing crosses one."""
    records = {b"SCHILY.xattr.security.n%03d" % number: b"%d" % number for number in range(255)}
    many = b"".join(record(*item) for item in records.items())
    tar = b""
    for length in (1, 3000, 3031, 3032, 3033, 4030, 4031, 4032, 4033, 4095):
        target = b"t" * length
        tar += pax({b"linkpath": target}) + symlink(b"plain%d" % length, b"")
        tar += pax(many + record(b"linkpath", target)) + symlink(b"many%d" % length, b"")
    for size in (0, 1, 511, 512, 513):
        tar += pax(many) + file(b"file%d" % size, b"f" * size)
    build_image([tar + END], tmp_path / "i")
    with mounted(tmp_path / "i", tmp_path / "m") as root:
        for path in root.iterdir():
            if path.is_symlink():
                assert len(os.readlink(path)) == int(path.name.strip("plainmy"))
            else:
                assert path.read_bytes() == b"f" * int(path.name.removeprefix("file"))
            expected = 0 if path.name.startswith("plain") else 255
            names = os.listxattr(path, follow_symlinks=False)
            assert len(names) == expected
            assert all(os.getxattr(path, name, follow_symlinks=False) == b"%d" % int(name[-3:]) for name in names)


def test_xattrs_up_to_the_largest(tmp_path: Path) -> None:
    """Values cross blocks in the shared area."""
    sizes = [0, 1, 4091, 4092, 4093, 4096, 9000, 65535]
    tar = b"".join(pax({b"SCHILY.xattr.user.v": _value(size)}) + file(b"f%d" % size) for size in sizes)
    build_image([tar + END], tmp_path / "i")
    with mounted(tmp_path / "i", tmp_path / "m") as root:
        for size in sizes:
            assert os.getxattr(root / f"f{size}", "user.v") == _value(size)


def _value(size: int) -> bytes:
    return (hashlib.sha256(b"%d" % size).digest() * (size // 32 + 1))[:size]


def test_hard_links_share_an_inode(tmp_path: Path) -> None:
    tar = file(b"a", b"x" * 600) + b"".join(hard_link(b"d/l%d" % number, b"a") for number in range(300))
    tar += directory(b"d/e") + directory(b"d/f")
    built = build_image([tar + END], tmp_path / "i")
    assert built.summary.files == 1
    with mounted(tmp_path / "i", tmp_path / "m") as root:
        assert {path.stat().st_ino for path in root.glob("d/l*")} == {(root / "a").stat().st_ino}
        assert (root / "a").stat().st_nlink == 301
        assert (root / "d").stat().st_nlink == 4


def test_file_larger_than_four_gib(tmp_path: Path) -> None:
    """Streamed; only what is not zero is written, so the image is sparse."""
    size = 4 * _GIB + 12_345
    build_sparse(_big(size), tmp_path / "i")
    with mounted(tmp_path / "i", tmp_path / "m") as root, (root / "big").open("rb") as big:
        assert os.fstat(big.fileno()).st_size == size
        big.seek(4 * _GIB)
        assert big.read() == b"e" * 12_345
        assert (root / "after").read_bytes() == b"a" * 1000


def _big(size: int) -> Iterator[bytes]:
    yield header(b"big", b"0", size)
    zeros = bytes(16 << 20)
    for _ in range(4 * _GIB // len(zeros)):
        yield zeros
    yield b"e" * (size - 4 * _GIB) + bytes(-size % 512) + file(b"after", b"a" * 1000) + END


def build_sparse(pieces: Iterator[bytes], image: Path) -> None:
    """As `build_image`, leaving holes for chunks of zeros."""
    nothing = bytes(1 << 18)
    with image.open("wb") as out:
        out.seek(BLOCK)

        def emit(raw: memoryview, metadata: bool) -> None:
            if bytes(raw) == nothing[: len(raw)]:
                out.seek(len(raw), os.SEEK_CUR)
            else:
                out.write(raw)

        writer = LayerWriter(emit)
        for piece in pieces:
            writer.feed(piece)
        summary = writer.finish(lambda: bytes(32))
        out.truncate(summary.image_size)
        out.seek(1024)
        out.write(summary.superblock)


def test_image_and_split_give_the_tar_back(tmp_path: Path) -> None:
    tar = b"".join(file(b"f%d" % number, b"%d" % number * number) for number in range(2000)) + END
    built = build_image([tar], tmp_path / "i")
    with (tmp_path / "i").open("rb") as image:

        def read(offset: int, count: int) -> bytes:
            return os.pread(image.fileno(), count, offset)

        assert b"".join(reassemble(BytesIO(built.split), read)) == tar


def test_uuid_comes_from_the_chunks(tmp_path: Path) -> None:
    built: Built = build_image([file(b"f", b"x" * 5000) + END], tmp_path / "i")
    expected = blake3(b"".join(digest for digest, _, _ in built.chunks)).digest()[:16]
    assert built.summary.uuid == expected
    assert (tmp_path / "i").read_bytes()[1024 + 48 : 1024 + 64] == expected


@pytest.mark.parametrize("tar", [b"", END, file(b".wh..wh..opq") + END])
def test_empty_layer(tar: bytes, tmp_path: Path) -> None:
    built = build_image([tar], tmp_path / "i")
    assert (built.summary.image_size, built.summary.inodes, built.summary.metadata_extents) == (8192, 1, [(1, 1)])
    with mounted(tmp_path / "i", tmp_path / "m") as root:
        assert os.listdir(root) == []
        assert root.stat().st_mode & 0o7777 == 0o755

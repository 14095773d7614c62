"""Layers that were made to do harm, by name: what the supernode must say of each, and in which words.

Each is built when it is asked for, compressed, from some hundred bytes up to the millions of members that the limits of
imgdist.limits end.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import zstandard
from raw_tar import END, directory, file, hard_link, header, long_name, padded, pax, record, symlink

MIB = 1 << 20
_SPARSE_10 = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"s"}
_MANY = 1_600_000
"""Of what is limited to 1,500,000, or 1,000,000 (members)."""
_FILES = 600_000
"""Of what is limited to some 450,000 by the memory that it takes."""


@dataclass(frozen=True)
class Hostile:
    """A layer, the state in which it ends ("declined", "corrupt" or "ready"), and words of the reason."""

    build: Callable[[], bytes]
    state: str
    words: str = ""
    heavy: str = ""
    """Seconds of work: the group of such in which it is tried."""


def zipped(pieces: Iterable[bytes]) -> bytes:
    """One gzip member of `pieces`, quickly."""
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join([*map(compressor.compress, pieces), compressor.flush()])


def _declined(words: str, build: Callable[[], bytes], *, heavy: str = "") -> Hostile:
    return Hostile(build, "declined", words, heavy)


def _corrupt(words: str, build: Callable[[], bytes]) -> Hostile:
    return Hostile(build, "corrupt", words)


def named(block: bytes, names: Iterable[bytes]) -> Iterator[bytes]:
    """A member of one block again and again, each time with another name, in pieces of some hundred KiB."""
    blank = bytearray(block)
    blank[:100], blank[148:156] = bytes(100), b" " * 8
    rest = sum(blank)
    blocks = []
    for name in names:
        blank[: len(name)] = name
        blank[148:156] = b"%06o\0 " % (rest + sum(name))
        blocks.append(bytes(blank))
        blank[: len(name)] = bytes(len(name))
        if len(blocks) == 1000:
            yield b"".join(blocks)
            blocks.clear()
    yield b"".join(blocks)


def _numbers(pattern: bytes, count: int = _FILES) -> Iterator[bytes]:
    return (pattern % number for number in range(count))


def _bodies(block: bytes, count: int) -> Iterator[bytes]:
    return (block * 1000 for _ in range(count // 1000))


def _xattrs(number: int) -> bytes:
    values = [(b"SCHILY.xattr.user.%d" % at, b"%d" % number) for at in range(200)]
    return pax(values) + header(b"x%d" % number)


def _link_chain() -> Iterator[bytes]:
    """Files below a chain of symlinks: each is looked up through all of it."""
    yield b"".join(symlink(b"l%d" % number, b"l%d" % (number + 1)) for number in range(39)) + directory(b"l39")
    yield from named(header(), _numbers(b"l0/%d/f"))


def _zstd(content: bytes, times: int = 1) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(content) * times


_GOOD = file(b"f", b"x" * 3000)

CASES: dict[str, Hostile] = {
    # Bombs
    "gzip_bomb": _declined("200-fold", lambda: gzip.compress(bytes(16 * MIB)) * 80),
    "zstd_bomb": _declined("200-fold", lambda: _zstd(bytes(64 * MIB), 20), heavy="bombs"),
    "file_bomb": _declined(
        "200-fold", lambda: _zstd(header(size=64 << 30)) + _zstd(bytes(64 * MIB), 20), heavy="bombs"
    ),
    "zstd_window": _corrupt(
        "too much memory", lambda: b"\x28\xb5\x2f\xfd\x80\xa0" + (100).to_bytes(4, "little") + b"\x01\0\0"
    ),
    "zstd_frames": _declined("zstd frames", lambda: b"\x50\x2a\x4d\x18\0\0\0\0" * _MANY, heavy="bombs"),
    "zstd_blocks": _declined(
        "zstd frames", lambda: b"\x28\xb5\x2f\xfd\x00\x58" + b"\0\0\0" * _MANY + b"\x01\0\0", heavy="bombs"
    ),
    "gzip_members": Hostile(lambda: gzip.compress(b"") * 1_000_000, "ready", heavy="bombs"),
    "gzip_name": _corrupt("gzip", lambda: b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"n" * MIB),
    "size_of_images": _declined("larger than", lambda: header(size=1 << 60)),
    "size_largest": _declined("larger than", lambda: header(size=(1 << 63) - 1)),
    # Sparse files
    "sparse_exabyte": _declined(
        "holes", lambda: pax(_SPARSE_10 | {b"GNU.sparse.realsize": b"%d" % (1 << 60)}) + file(b"s", padded(b"0\n"))
    ),
    "sparse_many": _declined(
        "holes",
        lambda: zipped(
            pax(_SPARSE_10 | {b"GNU.sparse.realsize": b"%d" % (1 << 30)}) + file(b"s", padded(b"0\n"))
            for _ in range(100)
        ),
        heavy="sparse",
    ),
    "sparse_map_bomb": _declined(
        "sparse map",
        lambda: pax(_SPARSE_10 | {b"GNU.sparse.realsize": b"1"}) + file(b"s", b"999999\n" + b"0\n" * MIB),
    ),
    "sparse_maps": _declined(
        "sparse segments",
        lambda: zipped(
            pax(_SPARSE_10 | {b"GNU.sparse.realsize": b"1"}) + file(b"s", padded(b"250000\n" + b"0\n" * 500_000))
            for _ in range(20)
        ),
        heavy="sparse",
    ),
    "sparse_overlap": _corrupt(
        "overlaps",
        lambda: pax(_SPARSE_10 | {b"GNU.sparse.realsize": b"900"}) + file(b"s", padded(b"2\n0\n5\n3\n5\n") + b"a" * 10),
    ),
    # Headers
    "pax_bomb": _declined("extension header", lambda: header(b"x", b"x", 8 << 30)),
    "longname_bomb": _declined("extension header", lambda: header(b"x", b"L", 8 << 30, magic=b"ustar  \0")),
    "pax_many": _declined("extension header", lambda: pax({b"comment": b"c" * MIB})),
    "pax_records": _declined(
        "extension headers", lambda: zipped([pax(record(b"c", b"") * 200_000) + header()] * 20), heavy="headers"
    ),
    "headers_endless": _declined(
        "extension headers", lambda: zipped(_bodies(pax({b"mtime": b"1600000000.5"}), _MANY)), heavy="headers"
    ),
    "longnames_endless": _declined(
        "extension headers", lambda: zipped(_bodies(long_name(b"n" * 99), _MANY)), heavy="headers"
    ),
    "pax_negative": _corrupt("negative size", lambda: header(b"x", b"x", -512)),
    "size_negative": _corrupt("negative size", lambda: header(size=-1)),
    "time_nan": _corrupt("time", lambda: pax({b"mtime": b"nan"}) + header()),
    "checksum": _corrupt("checksum", lambda: _GOOD[:148] + b"0000000\0" + _GOOD[156:]),
    # Members
    "files_millions": _declined("of memory", lambda: zipped(named(header(), _numbers(b"d/%d"))), heavy="members"),
    "file_again": _declined("of memory", lambda: zipped(_bodies(header(), _FILES)), heavy="members"),
    "directory_again": _declined("members", lambda: zipped(_bodies(header(b"d", b"5"), _MANY)), heavy="members"),
    "directories_millions": _declined("of memory", lambda: zipped(named(header(), _numbers(b"%d/f"))), heavy="members"),
    "links_millions": _declined(
        "of memory", lambda: zipped([_GOOD, *named(hard_link(b"", b"f"), _numbers(b"l%d"))]), heavy="members"
    ),
    "whiteouts_millions": _declined("of memory", lambda: zipped(named(header(), _numbers(b".wh.%d"))), heavy="members"),
    "opaques_millions": _declined(
        "members", lambda: zipped(_bodies(header(b"d/.wh..wh..opq"), _MANY)), heavy="members"
    ),
    "globals_millions": _declined("members", lambda: zipped(_bodies(pax(b"", b"g"), _MANY)), heavy="members"),
    "xattrs_millions": _declined("of memory", lambda: zipped(map(_xattrs, range(4000))), heavy="members"),
    "symlinks_chained": _declined("symlinks", lambda: zipped(_link_chain()), heavy="members"),
    # Paths
    "path_deep": _declined(
        "of memory", lambda: zipped(long_name(b"%d" % n + b"/a" * 2000) + header() for n in range(1000))
    ),
    "path_long": _declined("4095", lambda: long_name(b"/".join([b"d" * 100] * 41)) + header()),
    "name_long": _declined("255", lambda: long_name(b"n" * 256) + header()),
    "implied_long": _declined(
        "implied",
        lambda: zipped(long_name(b"%0250d/" % n + b"d" * 250 + b"/f") + header() for n in range(30_000)),
        heavy="paths",
    ),
    "symlink_loop": _declined("symlinks", lambda: symlink(b"a", b"b") + symlink(b"b", b"a") + file(b"a/f", b"1")),
    # Escapes: refused, or kept inside
    "hard_link_out": _declined("no such file", lambda: hard_link(b"b", b"../../../../etc/passwd")),
    "hard_link_loop": _declined("no such file", lambda: hard_link(b"a", b"b") + hard_link(b"b", b"a")),
    "whiteout_dotdot": _declined("whiteout", lambda: file(b".wh...")),
    "dotdot": Hostile(lambda: file(b"../../../../etc/passwd", b"x") + END, "ready"),
    "absolute": Hostile(lambda: file(b"/etc/passwd", b"x") + END, "ready"),
    "symlink_write": Hostile(lambda: symlink(b"l", b"/etc") + file(b"l/passwd", b"x") + END, "ready"),
    "root_replaced": Hostile(lambda: symlink(b"/", b"/etc") + file(b"passwd", b"x") + END, "ready"),
    "overlay_forgery": Hostile(
        lambda: pax({b"SCHILY.xattr.trusted.overlay.redirect": b"/etc"}) + directory(b"d") + END, "ready"
    ),
    "ids_absurd": Hostile(lambda: file(b"a", uid=(1 << 62) + 7) + pax({b"uid": b"-2"}) + file(b"b") + END, "ready"),
    # Not what it says
    "not_tar": _corrupt("tar header", lambda: b"no layer at all" * 1000),
    "tar_truncated": _corrupt("cut short", lambda: _GOOD[:-700]),
    "gzip_truncated": _corrupt("gzip", lambda: gzip.compress(_GOOD + END)[:-9]),
    "gzip_garbage": _corrupt("gzip", lambda: gzip.compress(_GOOD + END) + b"garbage"),
    "gzip_crc": _corrupt("gzip", lambda: gzip.compress(_GOOD + END)[:-8] + bytes(8)),
    "zstd_truncated": _corrupt("zstd", lambda: _zstd(_GOOD + END)[:-1]),
    "zeros_then_member": _corrupt("zeros", lambda: _GOOD + bytes(512) + _GOOD + END),
}

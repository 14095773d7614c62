"""Layers whose pack ids are checked in, built by code: together they have everything that the format can say.

`python golden_layers.py` prints their pack ids as JSON, made by the Python that runs it.
"""

from __future__ import annotations

import io
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from struct import pack

sys.path.insert(0, str(Path(__file__).parents[1]))

from raw_tar import END, directory, file, hard_link, header, long_name, padded, pax, symlink

from imgdist.pack import codec, records
from imgdist.pack.index import IndexBuilder
from supernode.convert.decompress import Readable
from supernode.convert.pipeline import Options, convert

_X = b"SCHILY.xattr."
_ACL = pack("<I", 2) + b"".join(pack("<HHI", tag, 7, 5 if tag == 2 else 0xFFFFFFFF) for tag in (1, 2, 4, 16, 32))
_SPARSE = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"900000"}


def _noise(seed: int, size: int) -> bytes:
    """The same on every machine: CPython promises it of `random` for integer seeds."""
    return random.Random(seed).randbytes(size)


LAYERS: dict[str, bytes] = {
    "empty": END,
    "directories": directory(b"etc", mode=0o755) + directory(b"etc/a", mode=0o1777, uid=5) + file(b"usr/lib/x/y", b"z"),
    "small files": b"".join(file(b"d%d/f%d" % (n % 7, n), b"%d" % n * (n % 200), mtime=n) for n in range(900)),
    "chunk cuts": b"".join(file(b"f%d" % n, _noise(n, n * 40_000)) for n in range(1, 14)),
    "large file": file(b"big", _noise(1, 1_300_001)) + file(b"zeros", bytes(600_000)) + file(b"after", b"x" * 513),
    "links": file(b"a", b"1" * 600) + hard_link(b"z/b", b"a", mode=0o600) + symlink(b"l", b"../a")
    + hard_link(b"m", b"l"),
    "symlinks": directory(b"t") + symlink(b"l", b"/t") + file(b"l/f", b"1") + pax({b"linkpath": b"t" * 4080})
    + symlink(b"long", b""),
    "devices": header(b"c", b"3", major=5000, minor=300) + header(b"b", b"4", major=8, minor=1) + header(b"p", b"6"),
    "whiteouts": file(b".wh.gone", uid=3) + file(b"d/.wh..wh..opq") + file(b"d/.wh.x") + file(b"d/y", b"1"),
    "xattrs": pax({_X + b"user.b": b"\0\xff", _X + b"user.a": b"v" * 5000}) + file(b"f", b"1")
    + pax({_X + b"security.capability": pack("<5I", 0x02000001, 8192, 0, 0, 0)}) + file(b"g", b"2")
    + pax({_X + b"system.posix_acl_access": _ACL, _X + b"system.posix_acl_default": _ACL}) + directory(b"d")
    + file(b"d/inherits", b"3") + pax({_X + b"user.b": b"\0\xff"}) + file(b"h"),
    "times": pax({b"mtime": b"1600000000.123456789"}) + file(b"a") + file(b"b", mtime=-5)
    + pax({b"mtime": b"9223372036.854775808"}) + file(b"c") + pax({b"mtime": b"1.5"}) + symlink(b"s", b"x"),
    "names": file(b"caf\xe9", b"1") + file("名前".encode(), b"2") + long_name(b"n" * 255) + file(b"x", b"3")
    + pax({b"path": b"/".join([b"deep" * 10] * 60)}) + file(b"x", b"4") + file(b"A", b"5") + file(b"a", b"6"),
    "ids": file(b"a", uid=70_000, gid=4_000_000_000) + file(b"b", uid=0xFFFFFFFF) + pax({b"uid": b"99999999"})
    + file(b"c"),
    "sparse": pax(_SPARSE) + file(b"s", padded(b"2\n1000\n5\n400000\n700\n") + b"hello" + b"e" * 700),
    "replaced": file(b"f", b"1" * 9000) + file(b"f", b"2") + directory(b"d") + file(b"d/x", b"3")
    + file(b"d", b"4" * 700),
    "wide directory": b"".join(file(b"entry-%05d" % n) for n in range(3000)),
    "behind the end": file(b"f", b"1") + END + b"what follows the end" * 5000,
    "no end": file(b"f", b"1" * 100),
}  # fmt: skip


class _Sink:
    """Keeps nothing but the pack id."""

    def __init__(self) -> None:
        self._builder = IndexBuilder()

    def add_chunk(self, chunk: records.Chunk, encoding: int, body: codec.Body) -> None:
        self.add_record(chunk)

    def add_record(self, record: records.Record) -> None:
        self._builder.add(record)

    def add_split(self, data: bytes) -> None:
        pass

    def finish(self) -> bytes:
        return self._builder.pack_id()


def pack_id(source: Readable, threads: int = 1, level: int | None = None) -> str:
    """The pack id of the layer that `source` gives."""
    return convert(source, _Sink(), Options(threads=threads, level=level)).pack_id.hex()


def pack_ids() -> Iterator[tuple[str, str]]:
    """(name, pack id) of every layer."""
    for name, tar in LAYERS.items():
        yield name, pack_id(io.BytesIO(tar))


if __name__ == "__main__":
    print(json.dumps(dict(pack_ids()), indent=1, ensure_ascii=False))

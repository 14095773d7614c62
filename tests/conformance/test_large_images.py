"""Layers of many and of large files, compared as the odd ones are; with `--matrix full` only, as containerd writes
gigabytes for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from image_comparison import Outcome, compare
from raw_tar import directory, file, padded, pax
from unpackers import Unpacker

_GIB = 1 << 30


def _many_entries() -> list[bytes]:
    """70,000 files in one directory, of which the layer above hides 1,000 and replaces 1,000."""
    names = [b"d/%05d" % number for number in range(70_000)]
    above = b"".join(file(name.replace(b"/", b"/.wh.")) for name in names[::70])
    return [directory(b"d") + b"".join(map(file, names)), above + b"".join(file(name, name) for name in names[1::70])]


def _sparse_beyond_four_gib() -> list[bytes]:
    size = 4 * _GIB + 12_345
    records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"big"}
    segments = padded(b"2\n%d\n5\n%d\n700\n" % (_GIB, size - 700))
    return [pax(records | {b"GNU.sparse.realsize": b"%d" % size}) + file(b"x", segments + b"hello" + b"e" * 700)]


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("make", [_many_entries, _sparse_beyond_four_gib])
def test_large_image_equals_containerds(make: Callable[[], list[bytes]], containerds: list[Unpacker]) -> None:
    assert compare(make(), containerds) == Outcome("equal")

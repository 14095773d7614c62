"""What of a layer only unpacking shows, if nothing lies below it."""

from __future__ import annotations

import pytest
from raw_tar import END, directory, file, header

from imgdist.erofs.writer import LayerWriter


def hides(*members: bytes) -> bytes:
    writer = LayerWriter(lambda raw, metadata: None)
    writer.feed(b"".join(members) + END)
    return writer.finish(lambda: bytes(32)).hides


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([directory(b"d"), file(b"d/f", b"1")], b""),
        ([file(b".wh.gone")], b"gone"),
        ([directory(b"d"), directory(b"d/e"), file(b"d/e/.wh.x"), file(b"y/.wh.a")], b"y/a"),
        ([directory(b"d"), file(b"d/.wh..wh..opq"), directory(b"d/e")], b""),
        ([directory(b"d"), file(b"d/.wh..wh..opq"), file(b"d/e/f")], b"d"),
        ([directory(b"d"), directory(b"d/e"), file(b"d/e/.wh..wh..opq"), file(b"d/e/f/g/h")], b"d/e"),
        ([header(b"null", b"3", mode=0o666, major=1, minor=3)], b""),
        ([header(b"gone", b"3", mode=0)], b"gone"),
    ],
)
def test_what_is_hidden(members: list[bytes], expected: bytes) -> None:
    assert hides(*members) == expected

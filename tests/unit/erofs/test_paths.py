"""How a member's path is resolved through the symlinks of its layer."""

from __future__ import annotations

import pytest

from imgdist.erofs import paths
from imgdist.errors import DeclinedError

_TREE: dict[bytes, bytes | bool] = {
    b"a": True,
    b"a/b": True,
    b"a/up": b"../c",
    b"a/out": b"../../../c",
    b"abs": b"/a/b",
    b"c": b"a",
    b"chain": b"abs/../b",
    b"d": True,
    b"d/l": b"../s/../x",
    b"dangling": b"no/where",
    b"f": False,
    b"s": b"a/b",
    b"lexical": b"s/../x",
    b"real": b"/s/../x",
    b"loop": b"pool",
    b"pool": b"loop",
    b"root": b"/",
    b"through": b"f/../a",
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"", b""),
        (b"/", b""),
        (b"a/b", b"a/b"),
        (b"new/dir", b"new/dir"),
        (b"abs", b"a/b"),
        (b"abs/new", b"a/b/new"),
        (b"a/up/b", b"a/b"),
        (b"a/out/b", b"a/b"),
        (b"chain", b"a/b"),
        (b"dangling/new", b"no/where/new"),
        (b"root/a", b"a"),
        (b"through/b", b"a/b"),
        (b"d/l/f", b"x/f"),  # a relative target's dot-dot is text
        (b"/lexical", b"x"),
        (b"lexical", b"a/x"),  # but where it is all of a relative path
        (b"real", b"a/x"),
        (b"real/f", b"x/f"),
        (b"d/../a", b"a"),
        (b"s/..", b"a"),
        (b"f/../a", b"a"),
    ],
)
def test_resolved_as_containerd_does(path: bytes, expected: bytes) -> None:
    assert paths.resolve(path, _TREE.get) == expected


@pytest.mark.parametrize("path", [b"f/x", b"a/../f/x", b"loop", b"loop/x", b"n" * 256, b"/".join([b"n" * 200] * 21)])
def test_what_leads_nowhere_is_declined(path: bytes) -> None:
    with pytest.raises(DeclinedError):
        paths.resolve(path, _TREE.get)


def test_work_is_accounted_for() -> None:
    spent: list[int] = []
    paths.resolve(b"c/b", _TREE.get, spent.append)
    assert sum(spent) > 3

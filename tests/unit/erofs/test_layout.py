"""EROFS structures, POSIX ACLs and paths as values and bytes."""

from __future__ import annotations

from struct import unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdist.erofs import acl, layout
from imgdist.erofs.paths import PATH_MAX, clean
from imgdist.erofs.tar.whiteouts import hidden_name
from imgdist.errors import DeclinedError

_NAMES = st.lists(st.binary(min_size=1, max_size=255).filter(lambda name: not set(name) & {0, 47}), unique=True)


def test_crc32c_is_the_kernels() -> None:
    """The check value of CRC-32C, without its final inversion."""
    assert layout.crc32c(b"123456789") == 0xE3069283 ^ 0xFFFFFFFF


def test_superblock() -> None:
    block = layout.superblock(root_nid=2, inodes=7, blocks=9, meta_block=3, xattr_block=8, uuid=b"u" * 16)
    assert len(block) == 128
    magic, checksum, compat, bits, _, root = unpack_from("<IIIBBH", block)
    assert (magic, compat, bits, root) == (0xE0F5E1E2, 3, 12, 2)
    assert block[80:84] == bytes(4), "feature_incompat 0: every kernel mounts it"
    assert checksum == layout.crc32c((block[:4] + bytes(4) + block[8:]).ljust(3072, b"\0"))


@given(_NAMES)
def test_directory_blocks_can_be_read_back(names: list[bytes]) -> None:
    entries = sorted(
        (name, number, 1 + number % 7) for number, name in enumerate([b".", b"..", *set(names) - {b".", b".."}])
    )
    encoded = layout.directory(entries)
    assert len(encoded) == layout.directory_size([entry[0] for entry in entries])
    found = []
    for start in range(0, len(encoded), 4096):
        block = encoded[start : start + 4096]
        count = unpack_from("<H", block, 8)[0] // 12
        rows = [unpack_from("<QHB", block, 12 * row) for row in range(count)]
        ends = [row[1] for row in rows[1:]] + [len(block)]
        found += [(block[at:end].rstrip(b"\0"), nid, kind) for (nid, at, kind), end in zip(rows, ends, strict=True)]
    assert found == entries


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"user.a", (1, b"a")),
        (b"security.capability", (6, b"capability")),
        (b"trusted.overlay.opaque", (4, b"overlay.opaque")),
        (b"system.posix_acl_access", (2, b"")),
        (b"system.posix_acl_accessx", None),
        (b"other", None),
    ],
)
def test_xattr_namespaces(name: bytes, expected: tuple[int, bytes] | None) -> None:
    assert layout.xattr_index(name) == expected


def test_acl_after_chmod() -> None:
    named = acl.encode([(1, 7, 0), (2, 5, 1000), (4, 7, 0), (16, 7, 0), (32, 7, 0)])
    changed = acl.with_mode(named, 0o640)
    assert changed is not None
    assert acl.parse(changed) == [
        (1, 6, 0xFFFFFFFF),
        (2, 5, 1000),
        (4, 7, 0xFFFFFFFF),
        (16, 4, 0xFFFFFFFF),
        (32, 0, 0xFFFFFFFF),
    ]
    assert acl.with_mode(acl.encode([(1, 7, 0), (4, 7, 0), (32, 7, 0)]), 0o640) is None


@given(st.binary(max_size=60))
def test_acl_garbage_is_declined_or_known(value: bytes) -> None:
    try:
        entries = acl.parse(value)
    except DeclinedError:
        return
    assert entries is None or acl.parse(acl.encode(entries)) == entries


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"", b""), (b"/", b""), (b".", b""), (b"./", b""), (b"..", b""), (b"./.", b""), (b"./..", b""), (b"//", b""),
        (b"a", b"a"), (b"./a/", b"a"), (b"/a//b/./c", b"a/b/c"), (b"a/../../b", b"b"), (b".a", b".a"),
        (b"a/.b", b"a/.b"), (b"./a//", b"a"), (b".", b""),
        (b"..a/b..", b"..a/b.."), (b"a/..", b""), (b"a/b/..", b"a"), (b"a//", b"a"), (b".//a", b"a"), (b"a/.", b"a"),
    ],
)  # fmt: skip
def test_clean(name: bytes, path: bytes) -> None:
    assert clean(name) == path


@given(st.lists(st.sampled_from([b"a", b"b", b".", b"..", b"", b".x"])).map(b"/".join))
def test_clean_is_what_walking_gives(name: bytes) -> None:
    walked: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            walked = walked[:-1]
        elif part not in (b"", b"."):
            walked.append(part)
    assert clean(name) == b"/".join(walked)


def test_longest_path() -> None:
    assert clean(b"x" * PATH_MAX)
    with pytest.raises(DeclinedError):
        clean(b"x" * (PATH_MAX + 1))


def test_whiteouts() -> None:
    assert hidden_name(b".wh.gone") == b"gone"
    assert hidden_name(b".wh..wh..opq") is None
    assert hidden_name(b".wh..wh.aufs") == b".wh.aufs"
    for bad in (b".wh.", b".wh..", b".wh..."):
        with pytest.raises(DeclinedError):
            hidden_name(bad)

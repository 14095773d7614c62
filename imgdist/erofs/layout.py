"""EROFS on disk: the structures of Linux' fs/erofs/erofs_fs.h that an uncompressed image needs, as values -> bytes.

Features are those every kernel from 5.10 on mounts: feature_incompat 0, feature_compat SB_CHKSUM | MTIME, 4 KiB
blocks, extended (64-byte) inodes, FLAT_PLAIN and FLAT_INLINE data, all xattrs in the shared area.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct

from imgdist.pack import BLOCK

SUPERBLOCK_OFFSET = 1024
SLOT = 32
"""Bytes per inode number: inode `nid` starts at meta_blkaddr * BLOCK + nid * SLOT."""
INODE_BYTES = 64
INLINE_XATTRS_MAX = 255
XATTR_VALUE_MAX = 65535
NAME_MAX = 255

EXTENDED_PLAIN = 1 | 0 << 1
EXTENDED_INLINE = 1 | 2 << 1

S_IFMT, S_IFREG, S_IFDIR, S_IFLNK = 0o170000, 0o100000, 0o040000, 0o120000
S_IFCHR, S_IFBLK, S_IFIFO = 0o020000, 0o060000, 0o010000
_FILE_TYPES = {S_IFREG: 1, S_IFDIR: 2, S_IFCHR: 3, S_IFBLK: 4, S_IFIFO: 5, S_IFLNK: 7}

INODE = Struct("<HHHHQIIIIQII16x")
"""erofs_inode_extended: format, xattr count, mode, 0, size, block | device, number, uid, gid, mtime, its ns, links."""

_DIRENT = Struct("<QHBB")
_XATTR_ENTRY = Struct("<BBH")
_XATTR_HEADER = Struct("<IB7x")
_SUPERBLOCK = Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_MAGIC = 0xE0F5E1E2
_FEATURE_COMPAT = 0x1 | 0x2  # SB_CHKSUM, MTIME

_XATTR_INDEXES = (
    (b"system.posix_acl_access", 2, True),
    (b"system.posix_acl_default", 3, True),
    (b"user.", 1, False),
    (b"trusted.", 4, False),
    (b"security.", 6, False),
)


def superblock(*, root_nid: int, inodes: int, blocks: int, meta_block: int, xattr_block: int, uuid: bytes) -> bytes:
    """Return erofs_super_block (128 bytes, from byte 1024 on) with its checksum; the rest of block 0 is zeros."""

    def pack(checksum: int) -> bytes:
        return _SUPERBLOCK.pack(
            _MAGIC, checksum, _FEATURE_COMPAT, 12, 0, root_nid, inodes, 0, 0, blocks, meta_block, xattr_block,
            uuid, b"", 0, 0, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip

    return pack(crc32c(pack(0).ljust(BLOCK - SUPERBLOCK_OFFSET, b"\0")))


def crc32c(data: bytes) -> int:
    """Return CRC-32C as EROFS has it: seed ~0, not inverted at the end. ~0.3 ms for a block."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


def _crc_table() -> list[int]:
    table = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)
        table.append(entry)
    return table


_CRC_TABLE = _crc_table()


def file_type(mode: int) -> int:
    """Return the type that a directory entry carries for an inode of `mode`."""
    return _FILE_TYPES[mode & S_IFMT]


def directory_size(names: Sequence[bytes]) -> int:
    """Return i_size of a directory of these names, sorted, `.` and `..` included."""
    *full, last = _cuts(names)
    return len(full) * BLOCK + _DIRENT.size * (len(names) - sum(full)) + sum(map(len, names[len(names) - last :]))


def directory(entries: Sequence[tuple[bytes, int, int]]) -> bytes:
    """Encode (name, nid, file type) entries, sorted by name; in each block the entries stand before the names."""
    out = bytearray()
    start = 0
    for count in _cuts([entry[0] for entry in entries]):
        out += bytes(-len(out) % BLOCK)
        chosen = entries[start : start + count]
        start += count
        at = _DIRENT.size * count
        for name, nid, kind in chosen:
            out += _DIRENT.pack(nid, at, kind, 0)
            at += len(name)
        out += b"".join([entry[0] for entry in chosen])
    return bytes(out)


def _cuts(names: Sequence[bytes]) -> list[int]:
    """Return how many names each block of a directory holds."""
    if len(names) * _DIRENT.size + sum(map(len, names)) <= BLOCK:
        return [len(names)]
    counts = []
    used = count = 0
    for name in names:
        need = _DIRENT.size + len(name)
        if used + need > BLOCK:
            counts.append(count)
            used = count = 0
        used += need
        count += 1
    return [*counts, count]


def xattr_index(name: bytes) -> tuple[int, bytes] | None:
    """Return (name index, rest of the name) of an xattr, None if EROFS has no index for its namespace."""
    for prefix, index, whole in _XATTR_INDEXES:
        if name == prefix if whole else name.startswith(prefix):
            return index, name[len(prefix) :]
    return None


def xattr_entry(name: bytes, value: bytes) -> bytes:
    """Encode one xattr for the shared area, padded to 4 bytes."""
    found = xattr_index(name)
    assert found is not None, name
    index, suffix = found
    body = _XATTR_ENTRY.pack(len(suffix), index, len(value)) + suffix + value
    return body + bytes(-len(body) % 4)


def xattr_body(shared: Iterable[int]) -> bytes:
    """Encode what follows an inode: the numbers of its shared xattrs (byte offset in the area / 4)."""
    numbers = list(shared)
    if not numbers:
        return b""
    return _XATTR_HEADER.pack(0, len(numbers)) + Struct(f"<{len(numbers)}I").pack(*numbers)


def xattr_body_size(count: int) -> int:
    """Return len(xattr_body(...)) for `count` xattrs."""
    return _XATTR_HEADER.size + 4 * count if count else 0


def xattr_icount(body_size: int) -> int:
    """Return i_xattr_icount, which counts the body in a unit of its own."""
    return (body_size - _XATTR_HEADER.size) // 4 + 1 if body_size else 0

"""The kernel's FUSE protocol, read-only part: bytes of a request -> values, values -> bytes of a reply.

Source: linux/fuse.h (structure and constant names are its); the machine's byte order, as the kernel speaks it.
Pure: no descriptor, no clock. From any bytes only ProtocolError comes out.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from struct import Struct
from typing import NamedTuple

from imgdist.errors import ProtocolError

Buffer = bytes | bytearray | memoryview

LOOKUP, FORGET, GETATTR = 1, 2, 3
OPEN, READ, STATFS, RELEASE = 14, 15, 17, 18
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 25, 26, 27, 28, 29
INTERRUPT, DESTROY, BATCH_FORGET = 36, 38, 42

NO_REPLY = frozenset({FORGET, BATCH_FORGET})
"""Requests that the kernel waits for no answer to."""

MODIFYING = frozenset({4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 51})
"""SETATTR, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, WRITE, SETXATTR, REMOVEXATTR, CREATE, FALLOCATE,
RENAME2, COPY_FILE_RANGE, TMPFILE: answered with EROFS. All else that we do not know is ENOSYS; the kernel remembers."""

ROOT_NODE = 1
NAME_MAX = 255
MAX_WRITE = 4096
"""We take no writes; the least value allowed keeps a request, and so a slot, small."""
MAX_PAGES = 256
MAX_READ = MAX_PAGES * 4096
"""Bytes of the largest read that the kernel may ask for."""
MAX_BACKGROUND = 1024
"""Reads of a direct-I/O loop device are background requests. Measured: with 64 allowed and 80 waiting, a hit on
another file froze 1.6 s; with 1024 allowed and 100 waiting it took 1.0 ms."""
UNIQUE_RESEND = 1 << 63
"""Set in the `unique` of a request that the kernel sends again. An answer must repeat it; a comparison must not."""

_ASYNC_READ, _ASYNC_DIO, _PARALLEL_DIROPS, _MAX_PAGES = 1 << 0, 1 << 15, 1 << 18, 1 << 22
_WANTED = _ASYNC_READ | _ASYNC_DIO | _PARALLEL_DIROPS | _MAX_PAGES
_FOPEN_KEEP_CACHE = 1 << 1
_NOTIFY_RESEND = 7
_MINOR = 38
_MINOR_LEAST = 31  # Linux 5.4; our floor is 5.10
_VALID_S = 3600  # a layer's name, size and mode never change while it is there

_IN_HEADER = Struct("=IIQQIIIHH")  # fuse_in_header: len opcode unique nodeid uid gid pid total_extlen padding
_READ_IN = Struct("=QQIIQII")  # fuse_read_in: fh offset size read_flags lock_owner flags padding
_INIT_IN = Struct("=IIII")  # fuse_init_in: major minor max_readahead flags
_UNIQUE = Struct("=Q")  # fuse_interrupt_in
_OUT_HEADER = Struct("=IiQ")  # fuse_out_header: len error unique
_INIT_OUT = Struct("=IIIIHHIIHHI7I")  # fuse_init_out: .. max_pages map_alignment flags2 unused
_ATTR = Struct("=QQQQQQIIIIIIIIII")
_ENTRY_HEAD = Struct("=QQQQII")  # fuse_entry_out before its attr
_ATTR_HEAD = Struct("=QII")  # fuse_attr_out before its attr
_OPEN_OUT = Struct("=QIi")
_STATFS_OUT = Struct("=QQQQQIIII6I")
_DIRENT = Struct("=QQII")

IN_HEADER_SIZE = _IN_HEADER.size
_OPCODE_OFFSET = 4


class Request(NamedTuple):
    """One request: `node` is the file (0 where none), `offset`/`size` of READ and READDIR in bytes, `name` of LOOKUP,
    `target` the `unique` that an INTERRUPT is about."""

    opcode: int
    unique: int
    node: int
    offset: int = 0
    size: int = 0
    name: bytes = b""
    target: int = 0

    @property
    def key(self) -> int:
        """What identifies the request over resends."""
        return self.unique & ~UNIQUE_RESEND


class Init(NamedTuple):
    """What the kernel offers: protocol version, read-ahead in bytes, FUSE_* flags (low word)."""

    major: int
    minor: int
    max_readahead: int
    flags: int


def parse_request(buffer: Buffer) -> Request:
    """Decode exactly one request as read() gave it. Raises ProtocolError."""
    received = len(buffer)
    if received < IN_HEADER_SIZE:
        raise ProtocolError(f"FUSE request: expected at least {IN_HEADER_SIZE} bytes, got {received}")
    length, opcode, unique, node, *_ = _IN_HEADER.unpack_from(buffer)
    if length != received:
        raise ProtocolError(f"FUSE request {opcode}: header says {length} bytes, got {received}")
    if opcode in (READ, READDIR):
        if received < IN_HEADER_SIZE + _READ_IN.size:
            raise ProtocolError(f"FUSE request {opcode}: cut short after {received} bytes")
        fields = _READ_IN.unpack_from(buffer, IN_HEADER_SIZE)
        return Request(opcode, unique, node, fields[1], fields[2])
    if opcode == LOOKUP:
        return Request(opcode, unique, node, name=_name(bytes(buffer[IN_HEADER_SIZE:])))
    if opcode == INTERRUPT:
        if received < IN_HEADER_SIZE + _UNIQUE.size:
            raise ProtocolError(f"FUSE interrupt: cut short after {received} bytes")
        return Request(opcode, unique, node, target=_UNIQUE.unpack_from(buffer, IN_HEADER_SIZE)[0])
    return Request(opcode, unique, node)


def parse_init(buffer: Buffer) -> Init:
    """Decode the body of an INIT request. Raises ProtocolError for a kernel that we cannot speak with."""
    if len(buffer) < IN_HEADER_SIZE + _INIT_IN.size:
        raise ProtocolError(f"FUSE init: cut short after {len(buffer)} bytes")
    init = Init(*_INIT_IN.unpack_from(buffer, IN_HEADER_SIZE))
    if init.major != 7 or init.minor < _MINOR_LEAST:
        raise ProtocolError(
            f"FUSE protocol: expected 7.{_MINOR_LEAST} or newer 7.x (Linux 5.4), the kernel speaks "
            f"{init.major}.{init.minor}"
        )
    return init


def unique_of(buffer: Buffer) -> int | None:
    """The `unique` of a request that may otherwise make no sense; None if there is none to answer."""
    if len(buffer) < IN_HEADER_SIZE:
        return None
    unique: int = _IN_HEADER.unpack_from(buffer)[2]
    return unique


def slot_request(slot: memoryview) -> Buffer | None:
    """The bytes of the request that a slot holds, None where it is free. Raises ProtocolError if they make no sense."""
    if slot[_OPCODE_OFFSET] == 0:
        return None
    length = _IN_HEADER.unpack_from(slot)[0]
    if not IN_HEADER_SIZE <= length <= len(slot):
        raise ProtocolError(f"request slot: expected {IN_HEADER_SIZE} to {len(slot)} bytes, its header says {length}")
    return slot[:length]


def free_slot(slot: memoryview) -> None:
    """Mark a slot as free: one byte, so that a kill cannot leave it half done (every opcode we meet is below 256)."""
    slot[_OPCODE_OFFSET] = 0


def data_header(unique: int, size: int) -> bytes:
    """Header of a successful reply with `size` bytes after it."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + size, 0, unique)


def error_reply(unique: int, errno: int) -> bytes:
    """Reply that fails the request with `errno` (positive), or acknowledges it without data (0)."""
    return _OUT_HEADER.pack(_OUT_HEADER.size, -errno, unique)


def init_reply(unique: int, init: Init) -> bytes:
    """Accept the session: parallel direct reads of up to MAX_READ bytes, MAX_BACKGROUND of them at a time."""
    body = _INIT_OUT.pack(
        7, min(init.minor, _MINOR), init.max_readahead, init.flags & _WANTED,
        MAX_BACKGROUND, MAX_BACKGROUND * 3 // 4, MAX_WRITE, 1, MAX_PAGES, 0, 0, *([0] * 7),
    )  # fmt: skip
    return data_header(unique, len(body)) + body


def entry_reply(unique: int, node: int, size: int) -> bytes:
    """Reply to LOOKUP: the layer file `node` of `size` bytes."""
    body = _ENTRY_HEAD.pack(node, 0, _VALID_S, _VALID_S, 0, 0) + _attr(node, size)
    return data_header(unique, len(body)) + body


def attr_reply(unique: int, node: int, size: int) -> bytes:
    """Reply to GETATTR of the root or of a layer file of `size` bytes."""
    body = _ATTR_HEAD.pack(_VALID_S, 0, 0) + _attr(node, size)
    return data_header(unique, len(body)) + body


def open_reply(unique: int, node: int) -> bytes:
    """Reply to OPEN and OPENDIR: the handle is the node, so that nothing has to be remembered; bytes never change."""
    keep = 0 if node == ROOT_NODE else _FOPEN_KEEP_CACHE
    return data_header(unique, _OPEN_OUT.size) + _OPEN_OUT.pack(node, keep, 0)


def statfs_reply(unique: int, blocks: int, files: int) -> bytes:
    """Reply to STATFS: `blocks` of 4096 bytes in all layers, none free."""
    body = _STATFS_OUT.pack(blocks, 0, 0, files, 0, 4096, NAME_MAX, 4096, 0, *([0] * 6))
    return data_header(unique, len(body)) + body


def readdir_reply(unique: int, entries: Iterable[tuple[int, bytes]], offset: int, size: int) -> bytes:
    """Reply to READDIR: `.` and `..`, then `entries` (node, name), from position `offset` on, at most `size` bytes."""
    body = bytearray()
    listing = [(ROOT_NODE, b".", stat.S_IFDIR), (ROOT_NODE, b"..", stat.S_IFDIR)]
    listing += [(node, name, stat.S_IFREG) for node, name in entries]
    for position, (node, name, kind) in enumerate(listing[offset:], start=offset + 1):
        entry = _DIRENT.pack(node, position, len(name), kind >> 12) + name
        entry += b"\0" * (-len(entry) % 8)
        if len(body) + len(entry) > size:
            break
        body += entry
    return data_header(unique, len(body)) + bytes(body)


def resend_notice() -> bytes:
    """FUSE_NOTIFY_RESEND (Linux 6.9): the kernel queues again all that was read and not answered. Older: EINVAL."""
    return _OUT_HEADER.pack(_OUT_HEADER.size, _NOTIFY_RESEND, 0)


def _attr(node: int, size: int) -> bytes:
    mode, links = (stat.S_IFDIR | 0o500, 2) if node == ROOT_NODE else (stat.S_IFREG | 0o400, 1)
    return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, links, 0, 0, 0, 4096, 0)


def _name(body: bytes) -> bytes:
    name, zero, _ = body.partition(b"\0")
    if not zero:
        raise ProtocolError("FUSE lookup: expected a name with a zero byte after it")
    return name

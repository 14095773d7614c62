"""Tars written byte by byte: every header field, good or bad, is the test's to choose."""

from __future__ import annotations

from struct import pack

END = bytes(1024)


def header(
    name: bytes = b"f",
    kind: bytes = b"0",
    size: int | bytes = 0,
    *,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 1_700_000_000,
    link: bytes = b"",
    major: int | bytes = 0,
    minor: int | bytes = 0,
    prefix: bytes = b"",
    magic: bytes = b"ustar\x0000",
) -> bytes:
    """One header block with the right checksum; numbers that are bytes stand as they are."""
    block = bytearray(
        pack(
            "100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x",
            name,
            _number(mode, 8),
            _number(uid, 8),
            _number(gid, 8),
            _number(size, 12),
            _number(mtime, 12),
            b" " * 8,
            kind,
            link,
            magic,
            b"",
            b"",
            _number(major, 8),
            _number(minor, 8),
            prefix,
        )
    )
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _number(value: int | bytes, width: int) -> bytes:
    if isinstance(value, bytes):
        return value
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    raw = bytearray(value.to_bytes(width, "big", signed=True))
    raw[0] |= 0x80
    return bytes(raw)


def padded(data: bytes) -> bytes:
    """`data` and the zeros up to the next block."""
    return data + bytes(-len(data) % 512)


def record(key: bytes, value: bytes) -> bytes:
    """One pax record."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest)
    while length != len(str(length)) + len(rest):
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def pax(
    records: dict[bytes, bytes] | list[tuple[bytes, bytes]] | bytes, kind: bytes = b"x", name: bytes = b"PaxHeaders.0/f"
) -> bytes:
    """An extended header."""
    pairs = records.items() if isinstance(records, dict) else records
    body = pairs if isinstance(pairs, bytes) else b"".join(record(*pair) for pair in pairs)
    return header(name, kind, len(body)) + padded(body)


def file(name: bytes, data: bytes = b"", **fields: int | bytes) -> bytes:
    """A regular file."""
    return header(name, b"0", len(data), **fields) + padded(data)  # type: ignore[arg-type]


def directory(name: bytes, **fields: int | bytes) -> bytes:
    """A directory."""
    return header(name, b"5", 0, **({"mode": 0o755} | fields))  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes, **fields: int | bytes) -> bytes:
    """A symbolic link."""
    return header(name, b"2", 0, link=target, **({"mode": 0o777} | fields))  # type: ignore[arg-type]


def hard_link(name: bytes, target: bytes, **fields: int | bytes) -> bytes:
    """A hard link."""
    return header(name, b"1", 0, link=target, **fields)  # type: ignore[arg-type]


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    """A GNU header that carries the next member's name (L) or link target (K)."""
    return header(b"././@LongLink", kind, len(name) + 1, magic=b"ustar  \0") + padded(name + b"\0")

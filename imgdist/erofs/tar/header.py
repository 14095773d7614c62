"""One 512-byte tar header as a `Member`: v7, ustar, star and GNU, with Go's archive/tar as the measure.

containerd unpacks layers with Go's reader, so what is accepted, ignored or refused here follows it field by field.
Fields repeat from member to member: every parser of a raw field is cached, which makes a header ~3 us.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from zlib import adler32

from imgdist.errors import CorruptError

HEADER_BYTES = 512
OUT_OF_RANGE = -1
"""A device number whose major or minor part does not fit 32 bits."""
_MAX_TIME = (9_223_372_036, 854_775_807)  # containerd's last time: 2^63 - 1 nanoseconds after 1970
_OCTAL = re.compile(rb"[0-7]+")
_FIELDS_CACHED = 4096  # a guess: tars have few owners and modes, some thousand sizes and times


@dataclass(slots=True)
class Member:
    """A tar member. `kind` is the type flag's code, `size` what follows in the tar (0 for kinds without a body).

    `mtime_s`, `mtime_ns` are already bounded (see `bounded_time`); `device` is `makedev` as the kernel's 32 bits, or
    `OUT_OF_RANGE`.
    """

    kind: int
    name: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    mtime_s: int
    mtime_ns: int
    size: int
    device: int
    xattrs: dict[bytes, bytes] | None = None


def parse_header(block: bytes) -> Member:
    """Decode one header of 512 bytes that is not all zeros.

    Raises:
        CorruptError: the checksum or a number in it is wrong (where Go's reader says `ErrHeader`).
    """
    _check_sum(block)
    end = block.find(0, 0, 100)
    name = block[: end if end >= 0 else 100]
    mode, uid, gid = _owner(block[100:124])
    prefix, device = _extension(block)
    if prefix:
        name = prefix + b"/" + name
    return Member(
        block[156],
        name,
        block[157:257].split(b"\0", 1)[0] if block[157] else b"",
        mode,
        uid,
        gid,
        _seconds(block[136:148]),
        0,
        parse_number(block[124:136]),
        device,
    )


def extension_size(block: bytes) -> int:
    """Return the size that the header of a pax extension states: `parse_header(block).size`, and refuses the same."""
    _check_sum(block)
    _owner(block[100:124])
    _seconds(block[136:148])
    _extension(block)
    return parse_number(block[124:136])


def bounded_time(seconds: int, nanoseconds: int) -> tuple[int, int]:
    """Return the time as containerd sets it: before 1970 and after 2262 become 1970-01-01."""
    if (0, 0) <= (seconds, nanoseconds) <= _MAX_TIME:
        return seconds, nanoseconds
    return 0, 0


@lru_cache(_FIELDS_CACHED)
def parse_number(raw: bytes) -> int:
    """Decode an octal or base-256 field to a signed 64-bit number (CorruptError where it is neither)."""
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big", signed=False) & ((1 << (8 * len(raw) - 1)) - 1)
        if raw[0] & 0x40:
            value -= 1 << (8 * len(raw) - 1)
        if not -(1 << 63) <= value < 1 << 63:
            raise CorruptError(f"tar header: number {raw!r} does not fit 64 bits")
        return value
    return _parse_octal(raw)


def _parse_octal(raw: bytes) -> int:
    digits = raw[:-1]
    if digits.isdigit() and raw[-1] in b"\0 " and b"8" not in digits and b"9" not in digits:  # as most are written
        return int(digits, 8)
    digits = raw.strip(b" \0").split(b"\0", 1)[0]
    if not digits:
        return 0
    if not _OCTAL.fullmatch(digits):
        raise CorruptError(f"tar header: expected an octal number, saw {raw!r}")
    value = int(digits, 8)
    if value >= 1 << 64:
        raise CorruptError(f"tar header: number {raw!r} does not fit 64 bits")
    return value - (1 << 64) if value >= 1 << 63 else value


@lru_cache(_FIELDS_CACHED)
def _promised_sum(raw: bytes) -> int:
    """Return the sum of all 512 bytes that the checksum field promises (it counts itself as spaces)."""
    return _parse_octal(raw) - 8 * ord(" ") + sum(raw)


def _check_sum(block: bytes) -> None:
    if (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2 != _promised_sum(block[148:156]):
        _check_signed_sum(block)


def _check_signed_sum(block: bytes) -> None:
    counted = block[:148] + b" " * 8 + block[156:]
    signed = sum(counted) - 256 * sum(byte > 127 for byte in counted)
    if _parse_octal(block[148:156]) not in (sum(counted), signed):
        raise CorruptError(f"tar header: checksum {block[148:156]!r} does not match; this is no tar header")


@lru_cache(_FIELDS_CACHED)
def _owner(raw: bytes) -> tuple[int, int, int]:
    return parse_number(raw[:8]), parse_number(raw[8:16]), parse_number(raw[16:24])


@lru_cache(_FIELDS_CACHED)
def _seconds(raw: bytes) -> int:
    return bounded_time(parse_number(raw), 0)[0]


@lru_cache(_FIELDS_CACHED)
def _device(raw: bytes) -> int:
    """Return `new_encode_dev` of major (12 bits) and minor (20 bits), cut as mknod(2) cuts them."""
    major, minor = parse_number(raw[:8]), parse_number(raw[8:])
    if not (0 <= major < 1 << 32 and 0 <= minor < 1 << 32):
        return OUT_OF_RANGE
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12


def _extension(block: bytes) -> tuple[bytes, int]:
    """Return (path prefix, device) of a ustar, star or GNU header; a GNU header has no prefix, one of v7 neither."""
    if not (block[345] or block[357] or block[508]):  # no prefix, no times of GNU or star: what most headers are
        return b"", _plain_device(block[257:345])
    magic = block[257:265]
    if magic[:6] == b"ustar\0":
        star = block[508:] == b"tar\0"
        if star:
            parse_number(block[476:488])
            parse_number(block[488:500])
        prefix = block[345 : 476 if star else 500].split(b"\0", 1)[0] if block[345] else b""
        return prefix, _device(block[329:345])
    if magic != b"ustar  \0":
        return b"", 0
    return _buggy_gnu_prefix(block) if block[345] or block[357] else b"", _device(block[329:345])


@lru_cache(_FIELDS_CACHED)
def _plain_device(raw: bytes) -> int:
    """Return the device of a header from its magic, the names of its owner, and the device numbers behind them."""
    return _device(raw[72:]) if raw[:6] == b"ustar\0" or raw[:8] == b"ustar  \0" else 0


def _buggy_gnu_prefix(block: bytes) -> bytes:
    """Return the prefix that Go before 1.8 wrote over the access and change times of a GNU header, if it did."""
    try:
        for raw in (block[345:357], block[357:369]):
            if raw[0]:
                parse_number(raw)
    except CorruptError:
        prefix = block[345:500].split(b"\0", 1)[0]
        return prefix if prefix.isascii() else b""
    return b""

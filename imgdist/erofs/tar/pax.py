"""Pax extended headers (POSIX.1-2017, pax, "pax Extended Header"), read as Go's archive/tar reads them."""

from __future__ import annotations

import re
from collections.abc import Callable

from imgdist.erofs.tar.header import Member, bounded_time
from imgdist.errors import CorruptError

XATTR_PREFIX = b"SCHILY.xattr."
SPARSE_MAP = b"GNU.sparse.map"
_INTEGER = re.compile(rb"[+-]?[0-9]+")
_DIGITS_MAX = 100  # no number of 64 bits has more, but for zeros in front
_RECORD = re.compile(rb"([+-]?[0-9]{1,19}) ([^=]+)=")
_TIME = re.compile(rb"([+-]?[0-9]+)(?:\.([0-9]*))?")
_TIME_FORMS = [rb"%d %%b=%%b[0-9]{10}\.[0-9]{%d}\n%%b" % (21 + digits, digits) for digits in range(9, 0, -1)]
_TIME_FORMS.append(rb"20 %b=%b[0-9]{10}\n%b")
_OTHER_TIMES = rb"(?:%b)*" % b"|".join(form % (b"[ac]time", b"", b"") for form in _TIME_FORMS)
_MTIME = rb"(?:%b)([0-9]{10})\.?([0-9]*)\n" % b"|".join(form % (b"mtime", b"(?=", b")") for form in _TIME_FORMS)
_TIMES_ONLY = re.compile(_OTHER_TIMES + _MTIME + _OTHER_TIMES)
_SPARSE_00 = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_TEXT = (b"path", b"linkpath", b"uname", b"gname")


def parse_records(body: bytes, spend: Callable[[int], None] = lambda records: None) -> dict[bytes, bytes]:
    """Decode "length key=value\\n" records; the last one of a key wins. `spend(count)` accounts for them.

    Sparse format 0.0 repeats `GNU.sparse.offset` and `.numbytes`: they become one `GNU.sparse.map` as in 0.1.

    Raises:
        CorruptError: a length, key or value that the format does not allow.
    """
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    start, end, count = 0, len(body), 0
    while start < end:
        key, value, start = _record(body, start)
        count += 1
        if key in _SPARSE_00:
            if (len(sparse) % 2 == 0) != (key == b"GNU.sparse.offset") or b"," in value:
                raise CorruptError(f"pax header: sparse record {key!r} out of order")
            sparse.append(value)
        else:
            records[key] = value
    spend(count)
    if sparse:
        records[SPARSE_MAP] = b",".join(sparse)
    return records


def only_times(body: bytes) -> tuple[int, int] | None:
    """Return the bounded mtime of a header that says nothing but times, as GNU tar and BuildKit write for each member.

    None: read it with `parse_records`, which says the same of those that this takes, six times as slowly.
    """
    match = _TIMES_ONLY.fullmatch(body)
    if match is None:
        return None
    seconds, fraction = match.groups()
    return bounded_time(int(seconds), int(fraction.ljust(9, b"0")) if fraction else 0)


def _record(body: bytes, start: int) -> tuple[bytes, bytes, int]:
    """Return (key, value, start of the next record)."""
    match = _RECORD.match(body, start)
    if not match:
        raise CorruptError(f"pax header: expected a record, saw {body[start : start + 40]!r}")
    length, key = match.groups()
    value_start, end = match.end(), start + int(length)
    if end > len(body) or end <= value_start or body[end - 1] != ord("\n"):
        raise CorruptError(f"pax header: the record of {key[:40]!r} has the wrong length {length!r}")
    value = body[value_start : end - 1]
    if b"\0" in (value if key in _TEXT else key):
        raise CorruptError(f"pax header: malformed record {key[:40]!r}")
    return key, value, end


def merge(member: Member, records: dict[bytes, bytes]) -> None:
    """Let `records` override the fields of `member`; an empty value keeps the header's own.

    Raises:
        CorruptError: a number or time that is none.
    """
    xattrs: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key == b"mtime" and value:
            member.mtime_s, member.mtime_ns = bounded_time(*_time(value))
        elif key in (b"atime", b"ctime") and value:
            _time(value)  # not kept, but containerd refuses a wrong one
        elif key.startswith(XATTR_PREFIX):
            xattrs[key[len(XATTR_PREFIX) :]] = value
        elif not value:
            continue
        elif key == b"path":
            member.name = value
        elif key == b"size":
            member.size = integer(value)
        elif key == b"linkpath":
            member.link = value
        elif key == b"uid":
            member.uid = integer(value)
        elif key == b"gid":
            member.gid = integer(value)
    if xattrs:
        member.xattrs = xattrs


def integer(value: bytes) -> int:
    """Decode a decimal, signed 64-bit number (CorruptError if it is none)."""
    if _INTEGER.fullmatch(value) and len(value) <= _DIGITS_MAX:
        number = int(value)
        if -(1 << 63) <= number < 1 << 63:
            return number
    raise CorruptError(f"pax header: expected a number of 64 bits, saw {value[:40]!r}")


def _time(value: bytes) -> tuple[int, int]:
    """Return (seconds, nanoseconds) of a decimal time; digits beyond the ninth are cut."""
    match = _TIME.fullmatch(value)
    if not match:
        raise CorruptError(f"pax header: expected a time, saw {value[:40]!r}")
    whole, fraction = match.groups()
    seconds = int(whole) if len(whole) < 19 else integer(whole)
    if not fraction:
        return seconds, 0
    nanoseconds = int(fraction[:9].ljust(9, b"0"))
    return seconds, -nanoseconds if whole.startswith(b"-") else nanoseconds

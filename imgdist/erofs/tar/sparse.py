"""Sparse members in pax form: GNU formats 0.0, 0.1 (map in the header) and 1.0 (map before the data)."""

from __future__ import annotations

from imgdist.erofs.tar.header import HEADER_BYTES, Member
from imgdist.erofs.tar.pax import SPARSE_MAP, integer
from imgdist.errors import CorruptError

Segment = tuple[int, int]
"""(offset in the file, length) of one run of data; what lies between is zero."""


def is_sparse(member: Member, records: dict[bytes, bytes]) -> str | None:
    """Return "header" or "body", where the map of a sparse member is, or None; sets its real name and size."""
    version = records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")
    if version in ((b"0", b"0"), (b"0", b"1")) or (version == (b"", b"") and records.get(SPARSE_MAP)):
        place = "header"
    elif version == (b"1", b"0"):
        place = "body"
    else:
        return None
    member.name = records.get(b"GNU.sparse.name") or member.name
    size = records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize")
    if size:
        member.size = integer(size)
    return place


def map_from_header(records: dict[bytes, bytes]) -> list[Segment]:
    """Decode the map of formats 0.0 and 0.1 (unchecked: see `check_map`)."""
    numbers = [integer(number) for number in records.get(SPARSE_MAP, b"").split(b",") if number]
    if len(numbers) != 2 * integer(records.get(b"GNU.sparse.numblocks", b"")):
        raise CorruptError("sparse member: the map has another length than GNU.sparse.numblocks says")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


class MapReader:
    """Takes the map of format 1.0, decimal lines before the data, block by block."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._lines = 0
        self._count: int | None = None  # of segments

    @property
    def size_bytes(self) -> int:
        """What was fed so far."""
        return len(self._text)

    def feed(self, block: bytes | bytearray) -> list[Segment] | None:
        """Take the body's next block; the segments once the last of their lines is in."""
        self._text += block
        self._lines += block.count(b"\n")
        if self._count is None:
            first, newline, _ = self._text.partition(b"\n")
            if not newline:
                if len(self._text) > HEADER_BYTES:
                    raise CorruptError("sparse member: the map does not start with a number")
                return None
            self._count = integer(bytes(first))
            if self._count < 0:
                raise CorruptError("sparse member: negative number of segments")
        if self._lines <= 2 * self._count:
            return None
        numbers = [integer(number) for number in bytes(self._text).split(b"\n", 2 * self._count + 1)[1:-1]]
        return list(zip(numbers[::2], numbers[1::2], strict=True))


def check_map(segments: list[Segment], size: int, stored: int) -> None:
    """Check that segments ascend, do not overlap, end within `size` and need exactly the `stored` bytes."""
    end = 0
    for offset, length in segments:
        if offset < end or length < 0 or offset + length > size:
            raise CorruptError(f"sparse member: segment {offset}+{length} overlaps, or ends after {size}")
        end = offset + length
    if size < 0 or sum(length for _, length in segments) != stored:
        raise CorruptError(f"sparse member: the map does not describe the {stored} bytes stored")

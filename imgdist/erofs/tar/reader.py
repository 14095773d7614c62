"""The streaming tar reader: bytes in any pieces in, members and their data out to a sink. It does no I/O.

The framing is that of Go's archive/tar (containerd's reader): global pax headers are handed on as members, sparse pax
members become full files, a missing end of archive is fine, one zero block before more members is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from imgdist.erofs.tar import pax, sparse
from imgdist.erofs.tar.header import HEADER_BYTES, Member, extension_size, parse_header
from imgdist.erofs.tar.split import SplitWriter
from imgdist.errors import CorruptError, DeclinedError
from imgdist.limits import Limits

REGULAR_V7, REGULAR, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"\x000123456"
PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK, GNU_SPARSE = b"xgLKS"
_BODILESS = frozenset((LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO))
_ZERO = bytes(HEADER_BYTES)


class Body(Protocol):
    """Where a member's data goes. `image_offset` is its place in the layer image, None if it has none."""

    image_offset: int | None

    def write(self, piece: memoryview) -> None:
        """Take the next bytes."""

    def zeros(self, count: int) -> None:
        """Take `count` zero bytes, a hole of a sparse member."""

    def end(self) -> None:
        """All bytes are in."""


class TarReader:
    """Reads one tar. `begin(member)` is called for every member and says where its data goes.

    `feed` and `finish` raise CorruptError for a malformed or truncated tar and DeclinedError for one beyond the
    limits or of a kind that containerd refuses; the reader is of no use afterwards.
    """

    def __init__(self, begin: Callable[[Member], Body], split: SplitWriter, limits: Limits) -> None:
        self._begin = begin
        self._split = split
        self._limits = limits
        self._state: Callable[[memoryview, int, int], int] = self._header
        self._carry = bytearray()  # of a header, extension or sparse map that is not whole yet
        self._read = self._members = self._holes = self._spent = 0
        self._zero_block = False
        self._body: Body
        self._told = 0  # of the piece that is fed, what the tar-split knows
        self._untold = False  # it does not know yet that the current body is in the image
        self._stored = 0  # bytes of the current body still to come
        self._padding = 0
        self._extension_kind = self._extension_size = 0
        self._segments: list[sparse.Segment] = []
        self._written = 0  # of a sparse member's real size
        self._reset()

    def _reset(self) -> None:
        """Forget the extension headers, which described one member."""
        self._records: dict[bytes, bytes] = {}
        self._times: tuple[int, int] | None = None
        self._long_name = self._long_link = b""
        self._extended_next = False

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next piece of the tar."""
        self._read += len(data)
        if self._read > self._limits.tar_bytes:
            raise DeclinedError(f"layer: its tar is larger than {self._limits.tar_bytes} bytes")
        view = memoryview(data)
        at, end = 0, len(view)
        self._told = 0
        while at < end:
            at = self._state(view, at, end)
        if self._told < end:
            self._split.literal(view[self._told :])

    def finish(self) -> None:
        """End the tar (CorruptError: in the middle of a member)."""
        if self._state in (self._rest, self._pad) or (self._state == self._header and not self._carry):
            return
        raise CorruptError(f"layer: the tar is cut short after {self._read} bytes")

    # States: each takes bytes of the view from `at` on and returns where it stopped. What goes to the image is told to
    # the tar-split as such; all other bytes are literal, from `_told` on, and handed over together.

    def _header(self, view: memoryview, at: int, end: int) -> int:
        if not self._carry and end - at >= HEADER_BYTES:
            after = at + HEADER_BYTES
            block = view[at:after].tobytes()
            if block[156] == PAX and not self._zero_block:
                return self._pax(block, view, after, end)
        else:
            after = min(at + HEADER_BYTES - len(self._carry), end)
            self._carry += view[at:after]
            if len(self._carry) < HEADER_BYTES:
                return after
            block = bytes(self._carry)
            self._carry.clear()
        if block == _ZERO:
            if self._zero_block:
                self._state = self._rest
            self._zero_block = True
        elif self._zero_block:
            raise CorruptError("layer: a block of zeros in the tar is followed by another member")
        else:
            self._member(parse_header(block))
        return after

    def _pax(self, block: bytes, view: memoryview, at: int, end: int) -> int:
        """Take a pax header; also its body, if all of it is at hand."""
        self._extend(PAX, extension_size(block))
        size, padding = self._extension_size, self._padding
        if not size or end - at < size + padding:
            return at
        self._padding = 0
        self._pad_next()
        self._extended(view[at : at + size].tobytes())
        return at + size + padding

    def _extension(self, view: memoryview, at: int, end: int) -> int:
        after = min(at + self._extension_size - len(self._carry), end)
        self._carry += view[at:after]
        if len(self._carry) == self._extension_size:
            body = bytes(self._carry)
            self._carry.clear()
            self._pad_next()
            self._extended(body)
        return after

    def _data(self, view: memoryview, at: int, end: int) -> int:
        after = min(at + self._stored, end)
        body = self._body
        if body.image_offset is not None:
            if self._untold:
                self._tell(view, at, body.image_offset, self._stored)
            self._told = after
        body.write(view[at:after])
        self._stored -= after - at
        if not self._stored:
            body.end()
            if end - after >= self._padding:
                self._state = self._header
                return after + self._padding
            self._state = self._pad
        return after

    def _pad(self, view: memoryview, at: int, end: int) -> int:
        after = min(at + self._padding, end)
        self._padding -= after - at
        if not self._padding:
            self._state = self._header
        return after

    def _rest(self, view: memoryview, at: int, end: int) -> int:
        return end

    def _sparse_map(self, view: memoryview, at: int, end: int) -> int:
        after = min(at + min(HEADER_BYTES - len(self._carry), self._stored), end)
        self._carry += view[at:after]
        self._stored -= after - at
        if len(self._carry) == HEADER_BYTES:
            segments = self._map.feed(self._carry)
            self._carry.clear()
            if segments is not None:
                self._begin_sparse(segments)
                return after
            if self._map.size_bytes >= self._limits.header_bytes:
                raise DeclinedError(f"layer: a sparse map is larger than {self._limits.header_bytes} bytes")
        if not self._stored:
            raise CorruptError("sparse member: its map is cut short")
        return after

    def _sparse_data(self, view: memoryview, at: int, end: int) -> int:
        offset, length = self._segments[-1]
        if self._written < offset:
            self._hole(offset - self._written)
        after = min(at + offset + length - self._written, end)
        if self._body.image_offset is not None:
            if self._written == offset:
                self._tell(view, at, self._body.image_offset + offset, length)
            self._told = after
        self._body.write(view[at:after])
        self._written += after - at
        if self._written == offset + length:
            self._next_segment()
        return after

    def _tell(self, view: memoryview, at: int, image_offset: int, length: int) -> None:
        """Tell the tar-split that `length` bytes from here on are in the image, and what was before them."""
        if self._told < at:
            self._split.literal(view[self._told : at])
        self._split.image(image_offset, length)
        self._untold = False

    # What a whole header or extension leads to.

    def _member(self, member: Member) -> None:
        kind = member.kind
        if member.size < 0 and kind not in _BODILESS:
            raise CorruptError(f"layer: member {member.name!r} has a negative size")
        if kind in (PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK):
            self._extended_header = member
            self._extend(kind, member.size)
            return
        if self._extended_next:
            self._apply_extensions(member)
        if kind == REGULAR_V7:
            member.kind = kind = DIRECTORY if member.name.endswith(b"/") else REGULAR
        if kind == GNU_SPARSE:
            raise DeclinedError(f"layer: member {member.name!r} is in the old GNU sparse format, as containerd refuses")
        self._count()
        if kind in _BODILESS:
            if self._records and sparse.is_sparse(member, self._records):
                raise CorruptError(f"sparse member: {member.name!r} is no regular file")
            self._padding = member.size = 0
            self._start(member)
            return
        if member.size < 0:
            raise CorruptError(f"layer: member {member.name!r} has a negative size")
        self._stored = member.size
        self._padding = -member.size % HEADER_BYTES
        place = sparse.is_sparse(member, self._records) if self._records else None
        if place is None:
            self._start(member)
            return
        self._sparse_member = member
        if place == "header":
            self._begin_sparse(sparse.map_from_header(self._records))
        elif self._stored:
            self._map = sparse.MapReader()
            self._state = self._sparse_map
        else:
            raise CorruptError("sparse member: its map is cut short")

    def _extend(self, kind: int, size: int) -> None:
        """Begin an extension header of `size` bytes."""
        if size < 0:
            raise CorruptError("layer: an extension header has a negative size")
        if size > self._limits.header_bytes:
            raise DeclinedError(f"layer: an extension header is larger than {self._limits.header_bytes} bytes")
        self._spend(1)
        self._extension_kind, self._extension_size = kind, size
        self._padding = -size % HEADER_BYTES
        self._state = self._extension
        if not size:
            self._pad_next()
            self._extended(b"")

    def _apply_extensions(self, member: Member) -> None:
        if self._times is not None:
            member.mtime_s, member.mtime_ns = self._times
        elif self._records:
            pax.merge(member, self._records)
        if self._long_name:
            member.name = self._long_name
        if self._long_link:
            member.link = self._long_link

    def _extended(self, body: bytes) -> None:
        """Keep what an extension header says of the next member; a global one is handed on as a member."""
        self._extended_next = True
        if self._extension_kind == GNU_NAME:
            self._long_name = body.split(b"\0", 1)[0]
        elif self._extension_kind == GNU_LINK:
            self._long_link = body.split(b"\0", 1)[0]
        elif self._extension_kind == PAX:
            self._times = pax.only_times(body)
            self._records = pax.parse_records(body, self._spend) if self._times is None else {}
        else:
            self._count()
            member = self._extended_header
            member.name = pax.parse_records(body, self._spend).get(b"path") or member.name
            self._begin(member).end()
            self._reset()

    def _spend(self, records: int) -> None:
        self._spent += records
        if self._spent > self._limits.records:
            raise DeclinedError(
                f"layer: more than {self._limits.records} extension headers, records and sparse segments"
            )

    def _count(self) -> None:
        self._members += 1
        if self._members > self._limits.members:
            raise DeclinedError(f"layer: more than {self._limits.members} members")

    def _start(self, member: Member) -> None:
        """Begin a member that is stored whole."""
        self._body = body = self._begin(member)
        if self._extended_next:
            self._reset()
        if self._stored:
            self._untold = True
            self._state = self._data
        else:
            body.end()
            self._pad_next()

    def _begin_sparse(self, segments: list[sparse.Segment]) -> None:
        member = self._sparse_member
        self._spend(len(segments))
        sparse.check_map(segments, member.size, self._stored)
        self._holes += member.size - self._stored
        if self._holes > self._limits.hole_bytes:
            raise DeclinedError(f"layer: holes of sparse members exceed {self._limits.hole_bytes} bytes")
        self._stored = 0
        self._body = self._begin(member)
        self._reset()
        self._written = 0
        self._segments = segments[::-1]
        self._state = self._sparse_data
        self._next_segment(first=True)

    def _next_segment(self, first: bool = False) -> None:
        """Go to the next segment with data; after the last one fill up the file."""
        if not first:
            self._segments.pop()
        while self._segments and not self._segments[-1][1]:
            self._segments.pop()
        if self._segments:
            return
        self._hole(self._sparse_member.size - self._written)
        self._body.end()
        self._pad_next()

    def _hole(self, count: int) -> None:
        if count:
            self._body.zeros(count)
            self._written += count

    def _pad_next(self) -> None:
        self._state = self._pad if self._padding else self._header

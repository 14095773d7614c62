"""The Range header (RFC 9110 section 14) for one range of bytes. Pure."""

from __future__ import annotations

import re

_RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]{0,20})\s*-\s*([0-9]{0,20})\s*")


class UnsatisfiableError(ValueError):
    """Nothing of the range is there: 416."""


def chosen(header: str | None, size: int) -> tuple[int, int] | None:
    """The bytes [start, end) that are asked for; None: all of them, as a whole (200).

    Several ranges, other units and what makes no sense are ignored, as section 14.2 allows. UnsatisfiableError if the
    range begins beyond the end.
    """
    found = _RANGE.fullmatch(header or "")
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":
        length = int(found[2])
        if length == 0 or size == 0:
            raise UnsatisfiableError
        return max(0, size - length), size
    start, last = int(found[1]), int(found[2] or size)
    if last < start and found[2]:
        return None
    if start >= size:
        raise UnsatisfiableError
    return start, min(last + 1, size)


def content_range(start: int, end: int, size: int) -> str:
    """The Content-Range of [start, end)."""
    return f"bytes {start}-{end - 1}/{size}"

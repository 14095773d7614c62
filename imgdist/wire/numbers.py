"""Chunk numbers on the wire: lists such as `3-7,9`, and bitmaps of what somebody lacks. Pure.

Within the program a set of chunks is an int, bit i for chunk i.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

from imgdist.errors import ProtocolError

NUMBERS_MAX = 64
"""Most numbers of a list; chunks of one request: 16 MiB raw, well above link x RTT of 1 Gbit/s x 100 ms."""
LACKS_MAX = 4096
"""Most bytes of a bitmap: 32,768 chunks, 8 GiB of image."""
CHUNKS_MAX = 1 << 22
"""Chunks that a bitmap may speak of: 1 TiB of image, and an int of 512 KiB (as in imgdist.wire.mesh)."""

_DIGITS = len(str(1 << 32))
_NUMBERS_PART = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")
_LACKS = re.compile(rb"([0-9]{1,8}):([0-9A-Za-z_-]{1,5464})")


def parse_numbers(text: str) -> tuple[int, ...]:
    """`3-7,9` as chunk numbers. Raises ProtocolError for anything else, or above `NUMBERS_MAX` numbers."""
    if text.isdecimal() and text.isascii() and len(text) < _DIGITS:
        return (int(text),)
    numbers: list[int] = []
    for part in text.split(","):
        match = _NUMBERS_PART.fullmatch(part)
        if match is None:
            raise ProtocolError(f"chunk numbers {text!r}: expected numbers and ranges such as 3-7,9")
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last >= 1 << 32 or last < first or last - first >= NUMBERS_MAX - len(numbers):
            raise ProtocolError(
                f"chunk numbers {text!r}: expected 1 to {NUMBERS_MAX} numbers below 2^32, ranges rising"
            )
        numbers.extend(range(first, last + 1))
    return tuple(numbers)


def format_numbers(numbers: Sequence[int]) -> str:
    """Chunk numbers as `parse_numbers` reads them, neighbours joined into ranges, order kept."""
    if len(numbers) == 1:
        return str(numbers[0])
    parts: list[str] = []
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            parts.append(str(numbers[start]) if i - start == 1 else f"{numbers[start]}-{numbers[i - 1]}")
            start = i
    return ",".join(parts)


def format_lacks(lacks: int) -> str:
    """A set of chunks, not empty, as `<first>:<base64url of its bitmap, least significant bit first, no padding>`.

    What lies more than `LACKS_MAX` x 8 chunks behind its first one is left out.
    """
    first = ((lacks & -lacks).bit_length() - 1) & ~7
    bits = (lacks >> first) & ((1 << 8 * LACKS_MAX) - 1)
    bitmap = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    return f"{first}:{base64.urlsafe_b64encode(bitmap).rstrip(b'=').decode('ascii')}"


def parse_lacks(value: bytes) -> int:
    """The set of chunks that `format_lacks` wrote. Raises ProtocolError, also for an empty one."""
    match = _LACKS.fullmatch(value)
    if match is None:
        raise ProtocolError(f"missing chunks: expected <first>:<base64url>, got {value[:80]!r}")
    first = int(match[1])
    try:
        bitmap = base64.urlsafe_b64decode(match[2] + b"=" * (-len(match[2]) % 4))
    except binascii.Error:
        raise ProtocolError(f"missing chunks: expected base64url, got {value[:80]!r}") from None
    lacks = int.from_bytes(bitmap, "little")
    if first % 8 or len(bitmap) > LACKS_MAX or not lacks or first + lacks.bit_length() > CHUNKS_MAX:
        raise ProtocolError(
            f"missing chunks: expected a multiple of 8 and 1 to {LACKS_MAX} bytes, got {first} and {len(bitmap)}"
        )
    return lacks << first

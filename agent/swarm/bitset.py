"""Sets of chunk numbers as Python integers: bit i is chunk i. 10,000 chunks are 1.3 kB, an AND of two takes 0.15 us.

What Python does slowly with long integers is avoided here [measured, 10,000 bits]: `x & -x` and `x & ~y` take 1 us (use
`x ^ (x & y)`, 0.35 us), `bit_count` 1.2 us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

_MANY = 64
_WORD = 256
_MASK = (1 << _WORD) - 1


def bits_of(numbers: Iterable[int]) -> int:
    """The set of these numbers."""
    members = list(numbers)
    if not members:
        return 0
    base = min(members)  # a run of neighbours is a short integer until the end
    if len(members) > _MANY:
        return _spread(members, base) << base
    bits = 0
    for number in members:
        bits |= 1 << (number - base)
    return bits << base


def _spread(members: list[int], base: int) -> int:
    """The set of many, each `base` lower: one pass, where adding each to a long integer would copy that every time."""
    held = bytearray((max(members) - base >> 3) + 1)
    for number in members:
        held[number - base >> 3] |= 1 << (number - base & 7)
    return int.from_bytes(held, "little")


def numbers_of(bits: int) -> list[int]:
    """The members, ascending."""
    numbers: list[int] = []
    base = 0
    while bits:
        word = bits & _MASK
        while word:
            low = word & -word
            numbers.append(base + low.bit_length() - 1)
            word ^= low
        bits >>= _WORD
        base += _WORD
    return numbers


def without(bits: int, others: int) -> int:
    """The members of `bits` that are not in `others`."""
    return bits ^ (bits & others)


def few(bits: int, most: int) -> list[int] | None:
    """All members, ascending, if they are `most` or fewer; None if they are more. Taken from the highest down, a member
    costs 0.4 us of 10,000 bits, wherever it is."""
    if bits.bit_count() > most:
        return None
    members: list[int] = []
    while bits:
        highest = bits.bit_length() - 1
        members.append(highest)
        bits ^= 1 << highest
    members.reverse()
    return members


def pick(bits: int, count: int, random: Callable[[], float]) -> list[int]:
    """Up to `count` members: those that follow a random number, and then from the start, ascending in each part."""
    start = int(random() * bits.bit_length())
    upper = bits >> start
    chosen = _lowest(upper, count, start)
    if len(chosen) < count and start:
        chosen += _lowest(bits ^ (upper << start), count - len(chosen), 0)
    return chosen


def _lowest(bits: int, count: int, base: int) -> list[int]:
    """The `count` lowest members, each `base` higher."""
    chosen: list[int] = []
    while bits:
        word = bits & _MASK
        while word:
            low = word & -word
            chosen.append(base + low.bit_length() - 1)
            if len(chosen) == count:
                return chosen
            word ^= low
        if bits.bit_length() <= _WORD:
            return chosen
        bits >>= _WORD
        skipped = (bits ^ (bits - 1)).bit_length() - 1 if bits else 0  # zeros below the lowest member
        bits >>= skipped
        base += _WORD + skipped
    return chosen

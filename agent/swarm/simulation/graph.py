"""Who is whose neighbour."""

from __future__ import annotations

from random import Random


def neighbours(nodes: int, zones: list[int], at_random: int, in_zone: int, random: Random) -> list[list[int]]:
    """Each node's neighbours, about `at_random` of all and `in_zone` of its zone; with few nodes all others.

    The tracker's random lists, as connections that serve both ways: a union of random rings, two neighbours each.
    """
    if nodes - 1 <= at_random + in_zone:
        return [[other for other in range(nodes) if other != node] for node in range(nodes)]
    sets: list[set[int]] = [set() for _ in range(nodes)]
    members: dict[int, list[int]] = {}
    for node, zone_of in enumerate(zones):
        members.setdefault(zone_of, []).append(node)
    for _ in range(at_random // 2):
        _ring(list(range(nodes)), sets, random)
    for _ in range(in_zone // 2):
        for zone in members.values():
            _ring(list(zone), sets, random)
    return [sorted(others) for others in sets]


def _ring(ring: list[int], sets: list[set[int]], random: Random) -> None:
    random.shuffle(ring)
    for one, other in zip(ring, [*ring[1:], ring[0]], strict=True):
        if one != other:
            sets[one].add(other)
            sets[other].add(one)

"""Which nodes of a swarm prove a pack: by rendezvous hashing, so that nobody has to agree with anybody. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from blake3 import blake3

PROVERS = 3
"""Nodes that prove a pack where `verify.mode` is "some": one may be wrong, or in the liar's hands."""


def is_chosen(node: str, others: Iterable[str], pack_id: str, count: int = PROVERS) -> bool:
    """Whether `node` is among the `count` of all that the hash of node and pack ranks first. Who knows only some of the
    others is chosen more easily, never less: each pack is proved by at least `count` nodes, if there are as many."""
    own = _rank(node, pack_id)
    return sum(_rank(other, pack_id) < own for other in set(others) - {node}) < count


def _rank(node: str, pack_id: str) -> bytes:
    return blake3(f"{pack_id} {node}".encode()).digest()

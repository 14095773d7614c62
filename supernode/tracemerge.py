"""What many starts of one image touched, as one order: weighed, aged and bounded. Pure.

Each start gives every chunk that it touched a vote; every later start makes earlier votes worth less. A chunk is told
to the next start while a fair share of the recent ones touched it, and forgotten when hardly any did: a program that
runs now and then does not swell the trace of the one that always runs, and what is no longer read goes by itself.
"""

from __future__ import annotations

import struct
from array import array

from msgspec import Struct

from imgdist.pack import FORMAT_VERSION
from imgdist.wire.control import TRACE_ENTRIES_MAX, TRACE_LAYERS_MAX, Trace

ENTRY = struct.Struct("<HI")
KEPT_VERSION = 1
AGEING = 0.9
"""What a vote is worth after each later start: about the last ten count (a guess)."""
TOLD_SHARE = 0.2
"""Of the recent starts must have touched a chunk for the next one to be told of it (a guess: one in five)."""
FORGOTTEN_SHARE = 0.02
"""Below this a chunk is dropped: 37 starts after a single touch."""
STARTS_KEPT = 64
"""Latest starts that are told apart: one that reports in pieces votes once (a guess: the most that go on at once)."""

_Key = tuple[str, int]


class Kept(Struct, frozen=True):
    """All that is known of an image's starts. `weights` has a float32 an entry, `totals` a number a layer: what a chunk
    of it would weigh that every start touched; `starts` are the latest ones' numbers, newest last."""

    v: int
    layers: tuple[str, ...]
    entries: bytes
    weights: bytes
    totals: tuple[float, ...]
    starts: tuple[int, ...]


def merge(kept: Kept | None, trace: Trace) -> Kept:
    """Count one start's report in: the whole of it or the next piece. A chunk that is new comes behind the one that was
    touched before it. Only layers that the report names age: a node sees no reads of those it has whole."""
    votes: dict[_Key, float] = {}
    totals: dict[str, float] = {}
    starts: tuple[int, ...] = ()
    if kept is not None:
        votes = dict(zip(_keys(kept.layers, kept.entries), array("f", kept.weights), strict=True))
        totals, starts = dict(zip(kept.layers, kept.totals, strict=True)), kept.starts
    seen = set(trace.layers)
    if trace.start == 0 or trace.start not in starts:
        votes = {key: weight * AGEING if key[0] in seen else weight for key, weight in votes.items()}
        totals |= {digest: totals.get(digest, 0.0) * AGEING + 1 for digest in trace.layers}
        starts = (*starts, trace.start)[-STARTS_KEPT:]
    totals |= {digest: max(totals.get(digest, 0.0), 1.0) for digest in trace.layers}  # which a later piece names first
    touched = dict.fromkeys(_keys(trace.layers, trace.entries))
    weighed = [(key, min(votes.get(key, 0.0) + (key in touched), totals[key[0]])) for key in _woven(votes, touched)]
    remembered = [(key, weight) for key, weight in weighed if weight >= FORGOTTEN_SHARE * totals[key[0]]]
    return _packed(remembered, totals, starts)


def told(kept: Kept) -> Trace:
    """What the next start is told."""
    numbers: dict[str, int] = {}
    packed = bytearray()
    totals = dict(zip(kept.layers, kept.totals, strict=True))
    for (digest, chunk), weight in zip(_keys(kept.layers, kept.entries), array("f", kept.weights), strict=True):
        if weight >= TOLD_SHARE * totals[digest]:
            packed += ENTRY.pack(numbers.setdefault(digest, len(numbers)), chunk)
    return Trace(FORMAT_VERSION, tuple(numbers), bytes(packed))


def _keys(layers: tuple[str, ...], entries: bytes) -> list[_Key]:
    return [(layers[layer], chunk) for layer, chunk in ENTRY.iter_unpack(entries)]


def _woven(known: dict[_Key, float], touched: dict[_Key, None]) -> list[_Key]:
    """The known order, each new key behind the one touched before it, and behind all if that is new itself."""
    behind: dict[_Key | None, list[_Key]] = {}
    last: _Key | None = None
    for key in touched:
        if key in known:
            last = key
        else:
            behind.setdefault(last, []).append(key)
    order = []
    for key in known:
        order.append(key)
        order += behind.get(key, ())
    return order + behind.get(None, [])


def _packed(weighed: list[tuple[_Key, float]], totals: dict[str, float], starts: tuple[int, ...]) -> Kept:
    """Within the bounds; where there is too much, what the fewest starts touched goes, of that the latest."""
    if len(weighed) > TRACE_ENTRIES_MAX:
        by_weight = sorted(range(len(weighed)), key=lambda i: (-weighed[i][1], i))
        weighed = [weighed[i] for i in sorted(by_weight[:TRACE_ENTRIES_MAX])]
    numbers: dict[str, int] = {}
    entries, weights = bytearray(), array("f")
    for (digest, chunk), weight in weighed:
        if digest not in numbers and len(numbers) == TRACE_LAYERS_MAX:
            continue
        entries += ENTRY.pack(numbers.setdefault(digest, len(numbers)), chunk)
        weights.append(weight)
    layers = tuple(numbers)
    return Kept(KEPT_VERSION, layers, bytes(entries), weights.tobytes(), tuple(totals[d] for d in layers), starts)

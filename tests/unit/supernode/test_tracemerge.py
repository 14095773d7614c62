"""Many starts of an image become one order: weighed, aged, bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec import msgpack

from imgdist.wire.control import TRACE_ENTRIES_MAX, Trace
from supernode.tracemerge import ENTRY, Kept, merge, told
from supernode.traces import TRACE_MAX, decode_kept

LAYERS = tuple(f"sha256:{number:064x}" for number in range(5))
CHUNKS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2**32 - 1)), max_size=30)


def report(*chunks: tuple[int, int], layers: tuple[str, ...] = LAYERS, start: int = 0) -> Trace:
    return Trace(0, layers, b"".join(ENTRY.pack(*chunk) for chunk in chunks), start)


def after(*reports: Trace) -> Kept:
    kept = None
    for one in reports:
        kept = merge(kept, one)
    assert kept is not None
    return kept


def named(found: Trace) -> list[tuple[str, int]]:
    return [(found.layers[layer], chunk) for layer, chunk in ENTRY.iter_unpack(found.entries)]


def test_a_new_chunk_comes_behind_the_one_touched_before_it() -> None:
    kept = after(report((0, 1), (0, 2), (0, 3)), report((0, 2), (1, 9), (0, 3), (0, 4)))
    assert named(told(kept)) == [(LAYERS[0], 1), (LAYERS[0], 2), (LAYERS[1], 9), (LAYERS[0], 3), (LAYERS[0], 4)]


def test_what_was_touched_before_anything_known_comes_last() -> None:
    kept = after(report((0, 1)), report((0, 7), (0, 1)))
    assert named(told(kept)) == [(LAYERS[0], 1), (LAYERS[0], 7)]


def test_what_one_start_in_many_touched_is_not_told_but_remembered() -> None:
    usual, rare = [(0, 1), (0, 2)], [(0, 50), (0, 51)]
    kept = after(*[report(*usual)] * 12, report(*rare), *[report(*usual)] * 3)
    assert [chunk for _, chunk in named(told(kept))] == [1, 2]
    assert len(kept.entries) // ENTRY.size == 4


def test_two_programs_that_start_in_turn_are_both_told() -> None:
    kept = after(*[report((0, 1)), report((0, 50))] * 6)
    assert sorted(chunk for _, chunk in named(told(kept))) == [1, 50]


def test_what_no_start_touches_any_more_is_forgotten() -> None:
    kept = after(report((0, 1), (0, 2)), *[report((0, 2))] * 40)
    assert [chunk for _, chunk in ENTRY.iter_unpack(kept.entries)] == [2]


def test_a_layer_that_a_node_has_whole_does_not_age() -> None:
    kept = after(report((0, 1), (1, 1)), *[report((0, 1), layers=LAYERS[:1])] * 40)
    assert named(told(kept)) == [(LAYERS[0], 1), (LAYERS[1], 1)]


def test_pieces_of_one_start_vote_once() -> None:
    kept = after(report((0, 9)), report((0, 1), start=5), report((0, 2), start=5), report((0, 2), start=5))
    assert kept.totals == (1.9,)
    assert kept.starts == (0, 5)
    assert [chunk for _, chunk in named(told(kept))] == [9, 1, 2]


def test_the_trace_is_bounded_and_what_few_starts_touched_goes_first() -> None:
    most = [(0, chunk) for chunk in range(TRACE_ENTRIES_MAX)]
    kept = after(report(*most), report(*most[:-1], (1, 1)))
    assert len(kept.entries) // ENTRY.size == TRACE_ENTRIES_MAX
    found = {chunk for layer, chunk in ENTRY.iter_unpack(kept.entries) if kept.layers[layer] == LAYERS[1]}
    assert found == {1}
    assert len(msgpack.encode(told(kept))) <= TRACE_MAX


@given(CHUNKS, CHUNKS)
def test_nothing_that_two_starts_touched_is_lost(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    kept = after(report(*first), report(*second))
    found = named(told(kept))
    assert set(found) == {(LAYERS[layer], chunk) for layer, chunk in (*first, *second)}
    assert len(set(found)) == len(found)
    assert decode_kept(msgpack.encode(kept)) == kept

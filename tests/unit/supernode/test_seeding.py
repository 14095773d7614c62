"""Super-seeding: everybody gets something else, until all is out; who got it is known; memory is bounded."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from clock import Clock
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import NotFoundError, TemporaryError
from imgdist.wire.answer import Row
from supernode import crowds as crowds_module
from supernode import seeding as seeding_module
from supernode.seeding import HEARD_S, RECEIVERS, RECENT_S, PackSeeding, Seeding

A, B, C, D = (f"10.0.0.{i}:7651" for i in range(1, 5))


class Pack:
    """A reader of so many chunks."""

    arrivals = None

    def __init__(self, count: int, identity: int = 0) -> None:
        self.count, self.identity = count, identity

    def row(self, number: int) -> Row:
        raise NotImplementedError

    def wait(self, numbers: Sequence[int], seconds: float) -> bool:
        raise NotImplementedError


@pytest.fixture
def seeding(clock: Clock) -> Seeding:
    return Seeding(clock, random.Random(1).random)


def bits(numbers: list[int]) -> int:
    return sum(1 << number for number in numbers)


def test_a_crowd_that_starts_at_once_gets_each_chunk_once(seeding: Seeding) -> None:
    pack = Pack(96)
    chosen = [n for node in (A, B, C) for _ in range(4) for n in seeding.choose("p", pack, (1 << 96) - 1, 8, node)]
    assert sorted(chosen) == list(range(96))
    assert chosen != sorted(chosen), "nor in the same order"


def test_what_is_not_there_yet_is_not_chosen(seeding: Seeding) -> None:
    pack = Pack(4)
    assert sorted(seeding.choose("p", pack, 0xFF, 8, A)) == [0, 1, 2, 3]
    with pytest.raises(NotFoundError):
        seeding.choose("p", pack, 0xF0, 8, A)
    pack.count = 6
    assert sorted(seeding.choose("p", pack, 0xF0, 8, A)) == [4, 5]


def test_what_others_just_got_is_theirs_to_pass_on_for_a_while(seeding: Seeding, clock: Clock) -> None:
    pack = Pack(8)
    got = seeding.choose("p", pack, 0xFF, 8, A)
    with pytest.raises(TemporaryError) as caught:
        seeding.choose("p", pack, bits(got[:2]), 8, B)
    assert caught.value.retry_after_s == seeding_module.RETRY_S
    clock.now += 2 * RECENT_S
    assert sorted(seeding.choose("p", pack, bits(got[:2]), 8, B)) == sorted(got[:2])


def test_who_is_no_member_or_cannot_be_reached_keeps_nobody_waiting(seeding: Seeding) -> None:
    pack = Pack(2)
    for node in (None, "", B, None):
        assert sorted(seeding.choose("p", pack, 3, 8, node)) == [0, 1]
    with pytest.raises(TemporaryError):
        seeding.choose("p", pack, 3, 8, "")


def test_what_was_asked_for_by_its_number_counts_too(seeding: Seeding) -> None:
    pack = Pack(6)
    for numbers in ([0, 1, 2, 3], [0, 1], [0]):
        seeding.begun("p", pack, numbers, None)
    assert [set(seeding.choose("p", pack, lacks, 2, None)) for lacks in (63, 15)] == [{4, 5}, {2, 3}]
    assert seeding.choose("p", pack, 0b11, 1, None) == [1]


@given(st.lists(st.tuples(st.integers(1, (1 << 40) - 1), st.integers(1, 8)), min_size=1, max_size=60), st.randoms())
def test_a_choice_is_always_of_the_least_sent(asked: list[tuple[int, int]], dice: random.Random) -> None:
    seeding, pack, sent = Seeding(lambda: 0.0, dice.random), Pack(40), dict.fromkeys(range(40), 0)
    for lacks, count in asked:
        among = [n for n in range(40) if lacks >> n & 1]
        chosen = seeding.choose("p", pack, lacks, count, None)
        assert len(set(chosen)) == len(chosen) == min(count, len(among))
        expected = sorted(sent[n] for n in among)[: len(chosen)]
        assert [sent[n] for n in chosen] == expected
        for n in chosen:
            sent[n] += 1


def test_ties_are_broken_by_chance() -> None:
    pack = PackSeeding()
    chosen = [pack.least_sent(0b1111, 2, random.Random(seed).random) for seed in range(50)]
    assert {tuple(pair) for pair in chosen} == {(0, 1), (1, 2), (2, 3), (3, 0)}


def test_who_asks_is_sent_to_the_last_one_who_got_all_of_it(seeding: Seeding) -> None:
    pack = Pack(4)
    assert seeding.elsewhere("p", [0], A, waits=False) == []
    seeding.begun("p", pack, [0, 1], A)
    seeding.sent("p", [0, 1], A)
    seeding.sent("p", [1], B)
    assert seeding.elsewhere("p", [0, 1], C, waits=False) == [A]
    assert seeding.elsewhere("p", [1, 2], "n:1", waits=False) == []
    assert seeding.elsewhere("other", [1], D, waits=False) == []
    assert seeding.elsewhere("p", [1], D, waits=False) == [C, B], "who was sent elsewhere is about to have it, too"


def test_a_crowd_stands_in_a_line_by_address_whoever_asks_first(seeding: Seeding) -> None:
    seeding.begun("p", Pack(4), [0], None)
    assert [seeding.elsewhere("p", [0], node, waits=False) for node in (C, A, D, B)] == [[], [], [C, A], [A]]
    chain = [f"n:{i + 100}" for i in range(2 * RECEIVERS)]
    for before, node in zip([D, *chain], chain, strict=False):
        assert seeding.elsewhere("p", [0], node, waits=False)[0] == before


def test_who_was_sent_elsewhere_often_enough_is_served(seeding: Seeding) -> None:
    seeding.begun("p", Pack(4), [0], A)
    seeding.sent("p", [0], A)
    assert seeding.elsewhere("p", [0], B, waits=True) == []
    assert seeding.elsewhere("p", [0], B, waits=False) == [A]


def test_who_comes_back_is_sent_to_any_who_asked_earlier(seeding: Seeding) -> None:
    seeding.begun("p", Pack(4), [0], A)
    crowd = [A, B, C, D]
    for node in crowd:
        seeding.elsewhere("p", [0], node, waits=False)
    named = {
        place: {one for _ in range(50) for one in seeding.elsewhere("p", [0], crowd[place], waits=False)}
        for place in range(4)
    }
    assert named == {place: set(crowd[:place]) for place in range(4)}, "the first is served"


def test_the_largest_crowd_is_remembered_in_part(seeding: Seeding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowds_module, "CROWD_MAX", 3)
    seeding.begun("p", Pack(4), [0], A)
    for node in (A, B, C):
        seeding.elsewhere("p", [0], node, waits=False)
    assert [seeding.elsewhere("p", [0], D, waits=False) for _ in range(2)] == [[C, B]] * 2, "as if it came anew"


def test_crowds_are_forgotten_when_they_are_too_many(seeding: Seeding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowds_module, "CROWDS_MAX", 1)
    seeding.begun("p", Pack(4), [0, 1], "")
    assert [seeding.elsewhere("p", [0], node, waits=False) for node in (A, B)] == [[], [A]]
    seeding.elsewhere("p", [1], C, waits=False)
    assert seeding.elsewhere("p", [0], D, waits=False) == [B, A], "as those who got it"


def test_nobody_is_sent_to_who_cannot_be_reached(seeding: Seeding) -> None:
    seeding.begun("p", Pack(4), [0], A)
    seeding.sent("p", [0], A)
    assert seeding.elsewhere("p", [0], "", waits=False) == [A]
    assert seeding.elsewhere("p", [0], B, waits=False) == [A]


def test_nobody_is_sent_to_who_was_not_heard_of_for_long(seeding: Seeding, clock: Clock) -> None:
    pack = Pack(4)
    for node in (A, B):
        seeding.begun("p", pack, [0, 1], node)
        seeding.sent("p", [0, 1], node)
    clock.now += HEARD_S - 1
    seeding.sent("p", [1], A)
    assert seeding.elsewhere("p", [0], C, waits=False) == [B, A]
    clock.now += 2
    assert seeding.elsewhere("p", [0], D, waits=False) == [C, A], "but for B"


def test_what_is_not_there_takes_no_memory(seeding: Seeding) -> None:
    """Any number below 2^32 can be asked for: its ring would be one of 64 GiB."""
    seeding.begun("p", Pack(4), [0], A)
    for numbers in ([4], [0, (1 << 32) - 1]):
        assert seeding.elsewhere("p", numbers, B, waits=False) == []
    assert seeding.elsewhere("p", [3], B, waits=False) == []
    assert seeding.elsewhere("p", [3], C, waits=False) == [B]
    (pack,) = seeding._packs.values()
    assert pack.remembered == 4


def test_one_pack_under_two_names_is_one(seeding: Seeding) -> None:
    seeding.begun("layer", Pack(2, identity=7), [0], A)
    seeding.sent("layer", [0], A)
    assert seeding.choose("sealed", Pack(2, identity=7), 0b11, 1, B) == [1]
    assert seeding.elsewhere("sealed", [0], B, waits=False) == [A]


def test_packs_are_forgotten_when_they_are_too_many(seeding: Seeding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding_module, "PACKS_MAX", 2)
    for i in range(3):
        seeding.begun(str(i), Pack(1, identity=i), [0], A)
        seeding.sent(str(i), [0], A)
    assert [seeding.elsewhere(str(i), [0], B, waits=False) for i in range(3)] == [[], [A], [A]]
    monkeypatch.setattr(seeding_module, "CHUNKS_MAX", 50)
    seeding.sent("2", [49], A)
    assert [seeding.elsewhere(str(i), [0], C, waits=False) for i in range(3)] == [[], [], [B, A]]


def test_nodes_are_forgotten_when_they_are_too_many(seeding: Seeding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding_module, "NODES_MAX", 2)
    seeding.begun("p", Pack(1), [0], None)
    for node in (A, B):
        seeding.sent("p", [0], node)
    assert seeding.elsewhere("p", [0], B, waits=False) == [A]
    seeding.sent("p", [0], C)
    assert seeding.elsewhere("p", [0], D, waits=False) == [C], "of A and B nothing is known any more"

"""Sets as integers, and counts of many sets at once, beside what plain Python says."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agent.swarm.bitset import bits_of, few, numbers_of, pick, without
from agent.swarm.rarity import Rarity

SETS = st.sets(st.integers(0, 2000), max_size=90)


@given(SETS)
def test_a_set_comes_back(numbers: set[int]) -> None:
    assert numbers_of(bits_of(numbers)) == sorted(numbers)


@given(SETS, SETS)
def test_without_is_the_difference(numbers: set[int], others: set[int]) -> None:
    assert numbers_of(without(bits_of(numbers), bits_of(others))) == sorted(numbers - others)


@given(SETS, st.integers(0, 70))
def test_few_are_all_of_them_and_more_are_none(numbers: set[int], most: int) -> None:
    assert few(bits_of(numbers), most) == (sorted(numbers) if len(numbers) <= most else None)


@given(SETS, st.integers(1, 70), st.floats(0, 1, exclude_max=True))
def test_picks_are_different_members_as_many_as_there_are(numbers: set[int], count: int, at: float) -> None:
    chosen = pick(bits_of(numbers), count, lambda: at)
    assert len(chosen) == len(set(chosen)) == min(count, len(numbers))
    assert set(chosen) <= numbers


@given(SETS.filter(bool), st.floats(0, 1, exclude_max=True))
def test_a_pick_is_the_next_member_after_a_random_place(numbers: set[int], at: float) -> None:
    start = int(at * (max(numbers) + 1))
    assert pick(bits_of(numbers), 1, lambda: at) == [min(number for number in numbers if number >= start)]


def test_every_member_is_picked_sometimes() -> None:
    source = random.Random(1).random
    chosen = Counter(pick(0b1011, 1, source)[0] for _ in range(400))
    assert set(chosen) == {0, 1, 3}


@given(st.lists(SETS, max_size=30), SETS)
def test_counts_and_rarest_are_those_of_a_loop(sets: list[set[int]], among: set[int]) -> None:
    rarity = Rarity(bits_of(numbers) for numbers in sets)
    counts = Counter(number for numbers in sets for number in numbers)
    for number in range(0, 2001, 7):
        assert sum((held >> number & 1) << k for k, held in enumerate(rarity.slices)) == counts[number]
    assert numbers_of(rarity.union) == sorted(counts)
    least = min((counts[number] for number in among), default=0)
    assert numbers_of(rarity.rarest(bits_of(among))) == sorted(n for n in among if counts[n] == least)
